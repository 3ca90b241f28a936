#include "client/cli/compare.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "client/cli/interrupt.h"
#include "client/cli/progress.h"
#include "core/base/status_macros.h"
#include "core/engine/compression.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

struct OpenModel {
  Model model;
  std::unique_ptr<ByteSource> bin;
};

absl::StatusOr<OpenModel> Open(const std::string& xml_path) {
  OVPRESS_ASSIGN_OR_RETURN(std::string xml,
                           ReadSmallFile(xml_path, IrLimits().xml_bytes_max));
  OVPRESS_ASSIGN_OR_RETURN(Model model, Model::Parse(std::move(xml)));
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<ByteSource> bin,
                           OpenFileSource(BinPathOf(xml_path)));
  return OpenModel{std::move(model), std::move(bin)};
}

std::string Decibels(double value) {
  if (std::isinf(value)) return value > 0 ? "equal" : "none";
  return absl::StrFormat("%.2f", value);
}

std::string ShapeText(const std::vector<uint64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ","), "]");
}

std::string TypesText(const ComparedWeight& weight) {
  return absl::StrCat(weight.a.storage, " -> ", weight.b.storage);
}

// Positions of the weights that differ, the lowest SQNR first.
std::vector<size_t> WorstFirst(const ModelComparison& comparison,
                               bool is_weight) {
  std::vector<size_t> order;
  for (size_t i = 0; i < comparison.weights.size(); ++i) {
    const ComparedWeight& weight = comparison.weights[i];
    if (weight.is_weight == is_weight && !weight.distance.equal()) {
      order.push_back(i);
    }
  }
  std::stable_sort(order.begin(), order.end(), [&](size_t x, size_t y) {
    return comparison.weights[x].distance.sqnr_db() <
           comparison.weights[y].distance.sqnr_db();
  });
  return order;
}

std::string WorstLines(const ModelComparison& comparison,
                       const std::vector<size_t>& order, size_t count) {
  std::string out =
      absl::StrFormat("%8s %11s %11s %10s  %-22s %s\n", "SQNR dB", "rel. error",
                      "max error", "cosine", "types", "weight");
  for (size_t i = 0; i < std::min(count, order.size()); ++i) {
    const ComparedWeight& weight = comparison.weights[order[i]];
    const WeightDistance& distance = weight.distance;
    absl::StrAppend(
        &out,
        absl::StrFormat("%8s %11.4g %11.4g %10.7f  %-22s %s %s %s\n",
                        Decibels(distance.sqnr_db()), distance.relative_error(),
                        distance.max_abs_error, distance.cosine(),
                        TypesText(weight), weight.a.name,
                        ShapeText(weight.a.shape), weight.reader_type));
  }
  return out;
}

void AppendUnmatched(const std::vector<UnmatchedWeight>& list,
                     absl::string_view where, std::string* out) {
  if (list.empty()) return;
  absl::StrAppend(out, "only in ", where, " (", list.size(), "):\n");
  for (const UnmatchedWeight& each : list) {
    absl::StrAppend(out, "  ", each.weight.storage, " ",
                    ShapeText(each.weight.shape), " ", each.weight.name,
                    " (read by ", each.reader, ")",
                    each.is_weight ? "" : ", not a weight", "\n");
  }
}

std::string HistogramText(const SqnrHistogram& histogram) {
  constexpr size_t kWidth = 50;
  size_t most = std::max(histogram.equal, histogram.unusable);
  for (const SqnrHistogram::Bin& bin : histogram.bins) {
    most = std::max(most, bin.count);
  }
  std::string out;
  const auto line = [&](const std::string& label, size_t count) {
    // At least one mark for a count above zero.
    const size_t marks =
        most == 0 ? 0 : (count * kWidth + most - 1) / std::max<size_t>(1, most);
    absl::StrAppend(
        &out, absl::StrFormat("%12s | %s%s%d\n", label, std::string(marks, '#'),
                              marks > 0 ? " " : "", count));
  };
  if (histogram.unusable > 0) line("none", histogram.unusable);
  for (const SqnrHistogram::Bin& bin : histogram.bins) {
    line(absl::StrFormat("%g to %g", bin.low, bin.high), bin.count);
  }
  if (histogram.equal > 0) line("equal", histogram.equal);
  return out;
}

// Infinities are written as null: JSON has none.
nlohmann::ordered_json DistanceJson(const WeightDistance& distance) {
  nlohmann::ordered_json out;
  out["equal"] = distance.equal();
  out["relative_error"] = distance.relative_error();
  out["max_abs_error"] = static_cast<double>(distance.max_abs_error);
  out["sqnr_db"] = distance.sqnr_db();
  out["cosine"] = distance.cosine();
  if (distance.non_finite_a + distance.non_finite_b > 0) {
    out["non_finite_a"] = distance.non_finite_a;
    out["non_finite_b"] = distance.non_finite_b;
  }
  return out;
}

nlohmann::ordered_json WeightJson(const ComparedWeight& weight) {
  nlohmann::ordered_json out;
  out["name"] = weight.a.name;
  if (weight.b.name != weight.a.name) out["name_b"] = weight.b.name;
  out["reader"] = weight.reader;
  out["reader_type"] = weight.reader_type;
  out["is_weight"] = weight.is_weight;
  out["type_a"] = weight.a.storage;
  out["type_b"] = weight.b.storage;
  out["shape"] = weight.a.shape;
  if (weight.b.shape != weight.a.shape) out["shape_b"] = weight.b.shape;
  out["elements"] = weight.elements;
  out["bytes_a"] = weight.a.bytes;
  out["bytes_b"] = weight.b.bytes;
  return out;
}

nlohmann::ordered_json UnmatchedJson(const std::vector<UnmatchedWeight>& list) {
  nlohmann::ordered_json out = nlohmann::ordered_json::array();
  for (const UnmatchedWeight& each : list) {
    out.push_back({{"name", each.weight.name},
                   {"reader", each.reader},
                   {"is_weight", each.is_weight},
                   {"type", each.weight.storage},
                   {"shape", each.weight.shape},
                   {"bytes", each.weight.bytes}});
  }
  return out;
}

}  // namespace

void CompareFlags::Register(CLI::App* app) {
  app->add_option("a", a_xml, "The original (or another compressed) model")
      ->required()
      ->type_name("A.xml");
  app->add_option("b", b_xml, "The model to compare with it")
      ->required()
      ->type_name("B.xml");
  app->add_option("--worst", worst, "How many of the worst weights to list")
      ->capture_default_str();
  app->add_flag("--json", json, "JSON instead of text, all weights in it");
  app->add_option("--html", html_file,
                  "Also write one self-contained page with plots and a table")
      ->type_name("FILE");
  app->add_option("--min-sqnr", min_sqnr_db,
                  "Exit 1 if a weight has a lower SQNR than this, or no "
                  "partner of its shape")
      ->type_name("DB");
  app->add_option("--threads", threads,
                  "Threads to compute with; 0: all that this process may use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str();
  app->add_flag("-q,--quiet", quiet, "No progress bar");
}

SqnrHistogram MakeSqnrHistogram(const ModelComparison& comparison) {
  constexpr size_t kBinsMax = 24;
  SqnrHistogram out;
  std::vector<double> values;
  for (const ComparedWeight& weight : comparison.weights) {
    if (!weight.is_weight) continue;
    const double value = weight.distance.sqnr_db();
    if (std::isfinite(value)) {
      values.push_back(value);
    } else {
      ++(value > 0 ? out.equal : out.unusable);
    }
  }
  if (values.empty()) return out;
  const auto [low, high] = std::minmax_element(values.begin(), values.end());
  double width = 1;
  for (const double factor : {2.5, 2.0, 2.0}) {  // 1, 2.5, 5, 10
    if ((*high - *low) / width > 8) width *= factor;
  }
  while ((*high - *low) / width > static_cast<double>(kBinsMax - 2)) {
    width *= 2;
  }
  const double first = std::floor(*low / width);
  const size_t count =
      static_cast<size_t>(std::floor(*high / width) - first) + 1;
  for (size_t i = 0; i < count; ++i) {
    const double at = (first + static_cast<double>(i)) * width;
    out.bins.push_back({at, at + width, 0});
  }
  for (const double value : values) {
    const double at = std::floor(value / width) - first;
    ++out.bins[std::min(count - 1, static_cast<size_t>(at))].count;
  }
  return out;
}

std::string BelowSqnr(const ModelComparison& comparison, double min_sqnr_db) {
  size_t below = 0;
  const ComparedWeight* worst = nullptr;
  for (const ComparedWeight& weight : comparison.weights) {
    if (!weight.is_weight || weight.distance.sqnr_db() >= min_sqnr_db) continue;
    ++below;
    if (worst == nullptr ||
        weight.distance.sqnr_db() < worst->distance.sqnr_db()) {
      worst = &weight;
    }
  }
  if (worst != nullptr) {
    return absl::StrCat(below, below == 1 ? " weight is" : " weights are",
                        " below ", min_sqnr_db, " dB; the worst is ",
                        worst->a.name, " with ",
                        Decibels(worst->distance.sqnr_db()), " dB");
  }
  for (const ComparedWeight& weight : comparison.shape_mismatches) {
    if (!weight.is_weight) continue;
    return absl::StrCat("weight ", weight.a.name, " has shape ",
                        ShapeText(weight.a.shape), " in one model and ",
                        ShapeText(weight.b.shape), " in the other");
  }
  for (const auto* list : {&comparison.only_in_a, &comparison.only_in_b}) {
    for (const UnmatchedWeight& each : *list) {
      if (!each.is_weight) continue;
      return absl::StrCat("weight ", each.weight.name, " is in one model only");
    }
  }
  return "";
}

std::string CompareText(const ModelComparison& comparison, const std::string& a,
                        const std::string& b, size_t worst) {
  struct Row {
    size_t layers = 0;
    uint64_t elements = 0;
    uint64_t bytes_a = 0;
    uint64_t bytes_b = 0;
    WeightDistance distance;
  };
  std::map<std::string, Row> rows;
  size_t layers = 0;
  size_t others_equal = 0;
  for (const ComparedWeight& weight : comparison.weights) {
    if (!weight.is_weight) {
      others_equal += weight.distance.equal();
      continue;
    }
    ++layers;
    Row& row = rows[TypesText(weight)];
    ++row.layers;
    row.elements += weight.elements;
    row.bytes_a += weight.a.bytes;
    row.bytes_b += weight.b.bytes;
    row.distance.Merge(weight.distance);
  }
  std::string out = absl::StrCat("A: ", a, "\nB: ", b, "\n\n");
  absl::StrAppend(
      &out, absl::StrFormat("%-26s %7s %13s %13s %13s %8s %11s\n",
                            "type A -> B", "weights", "elements", "bytes in A",
                            "bytes in B", "SQNR dB", "rel. error"));
  const auto line = [&](const std::string& name, size_t count,
                        uint64_t elements, uint64_t bytes_a, uint64_t bytes_b,
                        const WeightDistance& distance) {
    absl::StrAppend(
        &out, absl::StrFormat("%-26s %7d %13d %13d %13d %8s %11.4g\n", name,
                              count, elements, bytes_a, bytes_b,
                              Decibels(distance.sqnr_db()),
                              distance.relative_error()));
  };
  for (const auto& [name, row] : rows) {
    line(name, row.layers, row.elements, row.bytes_a, row.bytes_b,
         row.distance);
  }
  line("all weights", layers, comparison.elements, comparison.weight_bytes_a,
       comparison.weight_bytes_b, comparison.total);
  absl::StrAppend(&out, "weights files: ", comparison.bin_bytes_a, " and ",
                  comparison.bin_bytes_b, " bytes\n");

  const std::vector<size_t> order = WorstFirst(comparison, true);
  absl::StrAppend(&out, "\nweights by SQNR, dB:\n",
                  HistogramText(MakeSqnrHistogram(comparison)));
  if (!order.empty() && worst > 0) {
    absl::StrAppend(&out, "\nthe worst ", std::min(worst, order.size()), " of ",
                    layers, " weights:\n",
                    WorstLines(comparison, order, worst));
  }
  const std::vector<size_t> others = WorstFirst(comparison, false);
  if (others_equal + others.size() > 0) {
    absl::StrAppend(&out,
                    "\nother constants (biases, norms ...): ", others_equal,
                    " equal, ", others.size(), " differ\n");
    if (!others.empty() && worst > 0) {
      absl::StrAppend(&out, WorstLines(comparison, others, worst));
    }
  }
  if (!comparison.shape_mismatches.empty()) {
    absl::StrAppend(&out, "\nnot compared, shapes differ (",
                    comparison.shape_mismatches.size(), "):\n");
    for (const ComparedWeight& weight : comparison.shape_mismatches) {
      absl::StrAppend(&out, "  ", weight.a.name, " ", ShapeText(weight.a.shape),
                      " in A, ", ShapeText(weight.b.shape), " in B\n");
    }
  }
  if (!comparison.only_in_a.empty() || !comparison.only_in_b.empty()) {
    out += "\n";
  }
  AppendUnmatched(comparison.only_in_a, "A", &out);
  AppendUnmatched(comparison.only_in_b, "B", &out);
  for (const std::string& note : comparison.notes) {
    absl::StrAppend(&out, "note: ", note, "\n");
  }
  return out;
}

std::string CompareJson(const ModelComparison& comparison, const std::string& a,
                        const std::string& b) {
  nlohmann::ordered_json out;
  out["a"] = {{"model", a}, {"bin_bytes", comparison.bin_bytes_a}};
  out["b"] = {{"model", b}, {"bin_bytes", comparison.bin_bytes_b}};
  nlohmann::ordered_json total;
  total["elements"] = comparison.elements;
  total["bytes_a"] = comparison.weight_bytes_a;
  total["bytes_b"] = comparison.weight_bytes_b;
  total.update(DistanceJson(comparison.total));
  out["total"] = std::move(total);
  out["weights"] = nlohmann::ordered_json::array();
  for (const ComparedWeight& weight : comparison.weights) {
    nlohmann::ordered_json line = WeightJson(weight);
    line.update(DistanceJson(weight.distance));
    out["weights"].push_back(std::move(line));
  }
  out["shape_mismatches"] = nlohmann::ordered_json::array();
  for (const ComparedWeight& weight : comparison.shape_mismatches) {
    out["shape_mismatches"].push_back(WeightJson(weight));
  }
  out["only_in_a"] = UnmatchedJson(comparison.only_in_a);
  out["only_in_b"] = UnmatchedJson(comparison.only_in_b);
  out["notes"] = comparison.notes;
  // Names come from the models and may hold invalid UTF-8.
  return out.dump(2, ' ', false,
                  nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

absl::StatusOr<CompareOutcome> RunCompare(const CompareFlags& flags) {
  OVPRESS_ASSIGN_OR_RETURN(const OpenModel a, Open(flags.a_xml));
  OVPRESS_ASSIGN_OR_RETURN(const OpenModel b, Open(flags.b_xml));
  ProgressBar bar(!flags.quiet, stderr);
  const std::unique_ptr<Executor> executor = MakeTbbExecutor(flags.threads);
  CompareOptions options;
  options.executor = executor.get();
  options.stop = &InterruptFlag();
  options.progress = [&bar](uint64_t done, uint64_t total) {
    bar.Update("comparing", done, total, "");
  };
  absl::StatusOr<ModelComparison> comparison =
      CompareModels(a.model, *a.bin, b.model, *b.bin, options);
  bar.Finish();
  OVPRESS_RETURN_IF_ERROR(comparison.status());
  if (comparison->weights.empty() &&
      (!comparison->only_in_a.empty() || !comparison->only_in_b.empty())) {
    return absl::NotFoundError(
        absl::StrCat("nothing to compare: no constant of '", flags.a_xml,
                     "' is in '", flags.b_xml,
                     "', neither by its name nor by the operation that reads "
                     "it"));
  }
  CompareOutcome out;
  out.text = flags.json ? CompareJson(*comparison, flags.a_xml, flags.b_xml)
                        : CompareText(*comparison, flags.a_xml, flags.b_xml,
                                      flags.worst);
  if (!flags.html_file.empty()) {
    out.html = CompareHtml(*comparison, flags.a_xml, flags.b_xml);
  }
  if (flags.min_sqnr_db.has_value()) {
    out.failure = BelowSqnr(*comparison, *flags.min_sqnr_db);
  }
  return out;
}

}  // namespace ovpress
