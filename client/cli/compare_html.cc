// The page of `ovpress compare --html`: plots as inline SVG, a table that sorts
// by a click, nothing from outside. Every text of a model is escaped.
#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/compare.h"
#include "client/cli/progress.h"

namespace ovpress {
namespace {

// Colours that differ in lightness too (Okabe and Ito's palette).
constexpr const char* kColours[] = {"#0072b2", "#d55e00", "#009e73", "#cc79a7",
                                    "#e69f00", "#56b4e9", "#8c6d31", "#777777"};

constexpr absl::string_view kStyle = R"(
body{font:15px/1.45 system-ui,sans-serif;margin:2em auto;max-width:75em;padding:0 1em;color:#222;background:#fff}
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}
table{border-collapse:collapse;font-size:.87em;width:100%}
th,td{padding:.25em .6em;text-align:right;border-bottom:1px solid #ddd;white-space:nowrap}
th.t,td.t{text-align:left}td.n{white-space:normal;overflow-wrap:anywhere;text-align:left}
th{background:#f3f3f3;position:sticky;top:0}#weights th{cursor:pointer}
svg{width:100%;height:auto;font:11px system-ui,sans-serif}svg .g{stroke:#ddd}svg text{fill:#444}
.legend span{margin-right:1.2em;white-space:nowrap}.legend i{display:inline-block;width:.8em;height:.8em;margin-right:.35em}
@media(prefers-color-scheme:dark){body{background:#181818;color:#ddd}th{background:#2a2a2a}th,td{border-color:#3a3a3a}svg .g{stroke:#3a3a3a}svg text{fill:#bbb}}
)";

constexpr absl::string_view kScript = R"(
document.querySelectorAll('#weights th').forEach(function(head,column){
 head.addEventListener('click',function(){
  var body=document.querySelector('#weights tbody'),rows=Array.from(body.rows);
  var down=head.dataset.down!=='1';
  document.querySelectorAll('#weights th').forEach(function(h){h.dataset.down='';h.removeAttribute('aria-sort')});
  head.dataset.down=down?'1':'';head.setAttribute('aria-sort',down?'ascending':'descending');
  var key=function(r){var c=r.cells[column];return c.dataset.v===undefined?c.textContent:Number(c.dataset.v)};
  rows.sort(function(x,y){var a=key(x),b=key(y);return (a<b?-1:a>b?1:0)*(down?1:-1)});
  rows.forEach(function(r){body.appendChild(r)});
 });
});
)";

std::string Escape(absl::string_view text) {
  std::string out;
  for (const char c : text) {
    switch (c) {
      case '&':
        out += "&amp;";
        break;
      case '<':
        out += "&lt;";
        break;
      case '>':
        out += "&gt;";
        break;
      case '"':
        out += "&quot;";
        break;
      case '\'':
        out += "&#39;";
        break;
      default:
        // Control characters are not allowed in HTML.
        out += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;
    }
  }
  return out;
}

std::string Decibels(double value) {
  if (std::isinf(value)) return value > 0 ? "equal" : "none";
  return absl::StrFormat("%.2f", value);
}

// A number that orders like the value; infinities sort at the ends.
std::string SortKey(double value) {
  return absl::StrFormat(
      "%.9g", std::isinf(value) ? std::copysign(1e300, value) : value);
}

const char* ColourOf(const std::map<std::string, size_t>& types,
                     const std::string& type) {
  return kColours[types.at(type) % std::size(kColours)];
}

std::string Legend(const std::map<std::string, size_t>& types) {
  std::string out = "<p class=legend>";
  for (const auto& [type, index] : types) {
    absl::StrAppend(&out, "<span><i style=\"background:",
                    kColours[index % std::size(kColours)], "\"></i>",
                    Escape(type), "</span>");
  }
  return out + "</p>\n";
}

// A step of 1, 2 or 5 times a power of ten that gives about `lines` lines.
double GridStep(double range, double lines) {
  const double raw = std::max(range, 1e-9) / lines;
  const double power = std::pow(10.0, std::floor(std::log10(raw)));
  for (const double factor : {1.0, 2.0, 5.0}) {
    if (factor * power >= raw) return factor * power;
  }
  return 10 * power;
}

constexpr double kWidth = 1000;
constexpr double kHeight = 260;
constexpr double kLeft = 50;
constexpr double kBottom = 30;
constexpr double kTop = 10;

struct Scale {
  double low = 0;
  double high = 1;
  double Y(double value) const {
    return kTop + (kHeight - kTop - kBottom) * (high - value) / (high - low);
  }
};

std::string OpenSvg(absl::string_view title) {
  return absl::StrFormat(
      "<svg viewBox=\"0 0 %g %g\" role=img aria-label=\"%s\">\n", kWidth,
      kHeight, Escape(title));
}

std::string Grid(const Scale& scale) {
  std::string out;
  const double step = GridStep(scale.high - scale.low, 5);
  for (double value = std::ceil(scale.low / step) * step;
       value <= scale.high + 1e-9; value += step) {
    absl::StrAppend(
        &out, absl::StrFormat(
                  "<line class=g x1=\"%g\" x2=\"%g\" y1=\"%.1f\" y2=\"%.1f\"/>"
                  "<text x=\"%g\" y=\"%.1f\" text-anchor=end>%g</text>\n",
                  kLeft, kWidth, scale.Y(value), scale.Y(value), kLeft - 6,
                  scale.Y(value) + 4, value));
  }
  return out;
}

std::string SqnrPlot(const ModelComparison& comparison,
                     const std::map<std::string, size_t>& types) {
  std::vector<const ComparedWeight*> shown;
  double low = 0;
  double high = 1;
  for (const ComparedWeight& weight : comparison.weights) {
    if (!weight.is_weight) continue;
    shown.push_back(&weight);
    const double value = weight.distance.sqnr_db();
    if (!std::isfinite(value)) continue;
    low = std::min(low, value);
    high = std::max(high, value);
  }
  const Scale scale{low, high * 1.05};
  std::string out = OpenSvg("SQNR of each weight in graph order") + Grid(scale);
  const double step =
      (kWidth - kLeft) / static_cast<double>(std::max<size_t>(1, shown.size()));
  for (size_t i = 0; i < shown.size(); ++i) {
    const ComparedWeight& weight = *shown[i];
    const double value = weight.distance.sqnr_db();
    const double x = kLeft + (static_cast<double>(i) + 0.5) * step;
    const double y = std::isinf(value) ? (value > 0 ? kTop : kHeight - kBottom)
                                       : scale.Y(value);
    absl::StrAppend(
        &out,
        absl::StrFormat("<circle cx=\"%.1f\" cy=\"%.1f\" r=\"%g\" fill=\"%s\"%s"
                        "><title>%s: %s%s</title></circle>\n",
                        x, y, std::clamp(step / 2, 1.5, 4.5),
                        ColourOf(types, weight.b.storage),
                        std::isinf(value) ? " fill-opacity=\"0.35\"" : "",
                        Escape(weight.a.name), Decibels(value),
                        std::isinf(value) ? "" : " dB"));
  }
  return out + absl::StrFormat(
                   "<text x=\"%g\" y=\"%g\">first weight in the graph"
                   "</text><text x=\"%g\" y=\"%g\" text-anchor=end>last "
                   "(pale: no error at all)</text></svg>\n",
                   kLeft, kHeight - 8, kWidth - 4, kHeight - 8);
}

std::string HistogramPlot(const ModelComparison& comparison) {
  const SqnrHistogram histogram = MakeSqnrHistogram(comparison);
  std::vector<std::pair<std::string, size_t>> bars;
  if (histogram.unusable > 0) bars.emplace_back("none", histogram.unusable);
  for (const SqnrHistogram::Bin& bin : histogram.bins) {
    bars.emplace_back(absl::StrFormat("%g", bin.low), bin.count);
  }
  if (histogram.equal > 0) bars.emplace_back("equal", histogram.equal);
  size_t most = 1;
  for (const auto& [label, count] : bars) most = std::max(most, count);
  const Scale scale{0, static_cast<double>(most) * 1.05};
  std::string out = OpenSvg("Weights by SQNR") + Grid(scale);
  const double step =
      (kWidth - kLeft) / static_cast<double>(std::max<size_t>(1, bars.size()));
  for (size_t i = 0; i < bars.size(); ++i) {
    const auto& [label, count] = bars[i];
    const double x = kLeft + static_cast<double>(i) * step;
    const double y = scale.Y(static_cast<double>(count));
    absl::StrAppend(
        &out,
        absl::StrFormat(
            "<rect x=\"%.1f\" y=\"%.1f\" width=\"%.1f\" height=\"%.1f\" "
            "fill=\"%s\"><title>%d weights</title></rect><text x=\"%.1f\" "
            "y=\"%g\">%s</text>\n",
            x + 1, y, std::max(1.0, step - 2), kHeight - kBottom - y,
            kColours[0], count, x + 2, kHeight - kBottom + 14, Escape(label)));
  }
  return out + "</svg>\n";
}

// Two bars, A and B, each cut into its storage types.
std::string SizePlot(const ModelComparison& comparison) {
  std::map<std::string, std::pair<uint64_t, uint64_t>> bytes;
  for (const ComparedWeight& weight : comparison.weights) {
    if (!weight.is_weight) continue;
    bytes[weight.a.storage].first += weight.a.bytes;
    bytes[weight.b.storage].second += weight.b.bytes;
  }
  std::map<std::string, size_t> types;
  for (const auto& [type, sizes] : bytes) types.emplace(type, types.size());
  const double most = static_cast<double>(std::max<uint64_t>(
      1, std::max(comparison.weight_bytes_a, comparison.weight_bytes_b)));
  std::string out = Legend(types) + absl::StrFormat(
                                        "<svg viewBox=\"0 0 %g 80\" role=img "
                                        "aria-label=\"Size for each type\">\n",
                                        kWidth);
  for (const bool second : {false, true}) {
    double x = kLeft;
    const int y = second ? 44 : 6;
    absl::StrAppend(&out, "<text x=\"", kLeft - 6, "\" y=\"", y + 20,
                    "\" text-anchor=end>", second ? "B" : "A", "</text>");
    for (const auto& [type, sizes] : bytes) {
      const uint64_t size = second ? sizes.second : sizes.first;
      if (size == 0) continue;
      const double width = (kWidth - kLeft) * static_cast<double>(size) / most;
      absl::StrAppend(
          &out,
          absl::StrFormat("<rect x=\"%.1f\" y=\"%d\" width=\"%.1f\" "
                          "height=\"30\" fill=\"%s\"><title>%s: %s"
                          "</title></rect>\n",
                          x, y, std::max(width, 0.5), ColourOf(types, type),
                          Escape(type), HumanBytes(size)));
      x += width;
    }
  }
  return out + "</svg>\n";
}

std::string Cell(const std::string& text, double key) {
  return absl::StrCat("<td data-v=\"", SortKey(key), "\">", text, "</td>");
}

std::string WeightTable(const ModelComparison& comparison) {
  std::string out =
      "<table id=weights><thead><tr><th>#</th><th class=t>weight</th><th "
      "class=t>read by</th><th class=t>A</th><th class=t>B</th><th "
      "class=t>shape</th><th>bytes in A</th><th>bytes in B</th><th>SQNR "
      "dB</th><th>rel. error</th><th>max error</th><th>cosine</th></tr>"
      "</thead><tbody>\n";
  for (size_t i = 0; i < comparison.weights.size(); ++i) {
    const ComparedWeight& weight = comparison.weights[i];
    const WeightDistance& distance = weight.distance;
    const double max_error = static_cast<double>(distance.max_abs_error);
    absl::StrAppend(
        &out, "<tr>", Cell(absl::StrCat(i + 1), static_cast<double>(i)),
        "<td class=n>", Escape(weight.a.name),
        weight.is_weight ? "" : " <small>(not a weight)</small>", "</td>",
        "<td class=n>", Escape(weight.reader_type), "</td><td class=t>",
        Escape(weight.a.storage), "</td><td class=t>");
    absl::StrAppend(
        &out, Escape(weight.b.storage), "</td><td class=t>[",
        absl::StrJoin(weight.a.shape, ","), "]</td>",
        Cell(absl::StrCat(weight.a.bytes), static_cast<double>(weight.a.bytes)),
        Cell(absl::StrCat(weight.b.bytes),
             static_cast<double>(weight.b.bytes)));
    absl::StrAppend(
        &out, Cell(Decibels(distance.sqnr_db()), distance.sqnr_db()),
        Cell(absl::StrFormat("%.4g", distance.relative_error()),
             distance.relative_error()),
        Cell(absl::StrFormat("%.4g", max_error), max_error),
        Cell(absl::StrFormat("%.7f", distance.cosine()), distance.cosine()),
        "</tr>\n");
  }
  return out + "</tbody></table>\n";
}

std::string Unmatched(const ModelComparison& comparison) {
  std::string out;
  for (const ComparedWeight& weight : comparison.shape_mismatches) {
    absl::StrAppend(&out, "<li>", Escape(weight.a.name), ": [",
                    absl::StrJoin(weight.a.shape, ","), "] in A, [",
                    absl::StrJoin(weight.b.shape, ","), "] in B</li>\n");
  }
  for (const auto& [list, where] : {std::pair(&comparison.only_in_a, "A"),
                                    std::pair(&comparison.only_in_b, "B")}) {
    for (const UnmatchedWeight& each : *list) {
      absl::StrAppend(&out, "<li>only in ", where, ": ",
                      Escape(each.weight.name), " (",
                      Escape(each.weight.storage), " [",
                      absl::StrJoin(each.weight.shape, ","), "])</li>\n");
    }
  }
  for (const std::string& note : comparison.notes) {
    absl::StrAppend(&out, "<li>", Escape(note), "</li>\n");
  }
  return out.empty() ? ""
                     : absl::StrCat("<h2>Not compared, and notes</h2>\n<ul>\n",
                                    out, "</ul>\n");
}

}  // namespace

std::string CompareHtml(const ModelComparison& comparison, const std::string& a,
                        const std::string& b) {
  std::map<std::string, size_t> types;
  size_t weights = 0;
  for (const ComparedWeight& weight : comparison.weights) {
    if (!weight.is_weight) continue;
    ++weights;
    types.emplace(weight.b.storage, types.size());
  }
  return absl::StrCat(
      "<!DOCTYPE html>\n<html lang=en><head><meta charset=utf-8><meta "
      "name=viewport content=\"width=device-width\"><title>ovpress "
      "compare</title><style>",
      kStyle,
      "</style></head><body>\n<h1>Weights of two models</h1>\n<p>A: <b>",
      Escape(a), "</b>, weights file ", HumanBytes(comparison.bin_bytes_a),
      "<br>B: <b>", Escape(b), "</b>, weights file ",
      HumanBytes(comparison.bin_bytes_b), "</p>\n<p>", weights, " weights, ",
      comparison.elements, " elements: SQNR ",
      Decibels(comparison.total.sqnr_db()), " dB, relative error ",
      absl::StrFormat("%.4g", comparison.total.relative_error()), ", cosine ",
      absl::StrFormat("%.7f", comparison.total.cosine()), "; ",
      HumanBytes(comparison.weight_bytes_a), " in A, ",
      HumanBytes(comparison.weight_bytes_b), " in B.</p>\n",
      "<h2>SQNR of each weight, in graph order (dB, higher is better)</h2>\n",
      Legend(types), SqnrPlot(comparison, types),
      "<h2>Weights by SQNR (dB)</h2>\n", HistogramPlot(comparison),
      "<h2>Size for each type</h2>\n", SizePlot(comparison),
      "<h2>All constants compared</h2>\n<p>A click on a heading sorts.</p>\n",
      WeightTable(comparison), Unmatched(comparison), "<script>", kScript,
      "</script>\n</body></html>\n");
}

}  // namespace ovpress
