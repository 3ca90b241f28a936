// Report as JSON and as a table.
#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/engine/compression.h"
#include "nlohmann/json.hpp"

namespace ovpress {

std::string Report::ToJson() const {
  nlohmann::ordered_json json;
  json["ovpress_version"] = std::string(EngineVersion());
  json["bin_bytes_before"] = bin_bytes_before;
  json["bin_bytes_after"] = bin_bytes_after;
  json["size_ratio"] = bin_bytes_after > 0
                           ? static_cast<double>(bin_bytes_before) /
                                 static_cast<double>(bin_bytes_after)
                           : 0.0;
  json["weight_elements"] = weight_elements;
  json["bits_per_weight"] = bits_per_weight;
  json["primary_share"] = primary_share;
  json["warnings"] = warnings;
  nlohmann::ordered_json lines = nlohmann::ordered_json::array();
  for (const WeightReport& weight : weights) {
    nlohmann::ordered_json line;
    line["name"] = weight.name;
    line["node"] = weight.node;
    line["node_type"] = weight.node_type;
    line["shape"] = weight.shape;
    line["from"] = weight.from;
    line["to"] = weight.to;
    line["reason"] = weight.reason;
    line["group_size"] = weight.group_size;
    line["elements"] = weight.elements;
    line["bytes_before"] = weight.bytes_before;
    line["bytes_after"] = weight.bytes_after;
    if (weight.has_error) {
      line["relative_error"] = weight.relative_error;
      // JSON has no infinity: an exact weight has no SQNR.
      line["sqnr_db"] = std::isfinite(weight.sqnr_db)
                            ? nlohmann::ordered_json(weight.sqnr_db)
                            : nlohmann::ordered_json(nullptr);
    }
    if (weight.has_score) line["score"] = weight.score;
    lines.push_back(std::move(line));
  }
  json["weights"] = std::move(lines);
  // Names come from the model and may hold invalid UTF-8.
  return json.dump(2, ' ', false,
                   nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

std::string Report::ToTable() const {
  struct Row {
    std::string to;
    uint64_t layers = 0;
    uint64_t elements = 0;
    uint64_t before = 0;
    uint64_t after = 0;
    double worst_error = 0;
  };
  std::vector<Row> rows;
  bool has_error = false;
  uint64_t all_elements = 0;
  for (const WeightReport& weight : weights) {
    std::string to = weight.to;
    if (weight.to == weight.from) absl::StrAppend(&to, " (kept)");
    if (weight.group_size != -1) {
      absl::StrAppend(&to, " g", weight.group_size);
    }
    auto row = std::find_if(rows.begin(), rows.end(),
                            [&](const Row& r) { return r.to == to; });
    if (row == rows.end()) {
      rows.push_back({to});
      row = rows.end() - 1;
    }
    ++row->layers;
    row->elements += weight.elements;
    row->before += weight.bytes_before;
    row->after += weight.bytes_after;
    all_elements += weight.elements;
    if (weight.has_error) {
      has_error = true;
      row->worst_error = std::max(row->worst_error, weight.relative_error);
    }
  }
  std::string out = absl::StrFormat(
      "%-22s %7s %8s %14s %14s%s\n", "precision", "weights", "share",
      "bytes before", "bytes after", has_error ? "  worst rel. error" : "");
  for (const Row& row : rows) {
    absl::StrAppend(
        &out, absl::StrFormat("%-22s %7d %7.1f%% %14d %14d", row.to, row.layers,
                              all_elements > 0
                                  ? 100.0 * static_cast<double>(row.elements) /
                                        static_cast<double>(all_elements)
                                  : 0.0,
                              row.before, row.after));
    if (has_error) {
      absl::StrAppend(&out, absl::StrFormat("  %16.4f", row.worst_error));
    }
    absl::StrAppend(&out, "\n");
  }
  absl::StrAppend(
      &out,
      absl::StrFormat(
          "model .bin: %d -> %d bytes (%.2f times smaller), %.2f bits per "
          "compressed weight\n",
          bin_bytes_before, bin_bytes_after,
          bin_bytes_after > 0 ? static_cast<double>(bin_bytes_before) /
                                    static_cast<double>(bin_bytes_after)
                              : 0.0,
          bits_per_weight));
  return out;
}

}  // namespace ovpress
