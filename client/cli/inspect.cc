#include "client/cli/inspect.h"

#include <filesystem>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "client/cli/progress.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "core/engine/graph.h"
#include "core/ir/model.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

// A weight input's constant, or the low-bit constant below a decompression
// subgraph.
struct Found {
  std::string name;
  std::string node;
  std::string node_type;
  std::string type;
  std::vector<uint64_t> shape;
  uint64_t bytes = 0;
  bool compressed = false;
};

// The low-bit constant that a MatMul, Gather or convolution reads through
// Convert, Subtract, Multiply, Reshape, or nullptr.
const Constant* CompressedSource(const Model& model, size_t layer) {
  for (int depth = 0; depth < 16 && layer != kNone; ++depth) {
    const Layer& at = model.layers()[layer];
    if (at.type == "Const") {
      const Constant& constant = model.constants()[at.constant];
      const int bits = BitsPerElement(constant.type);
      return bits > 0 && bits <= 8 && constant.type != ElementType::kBoolean
                 ? &constant
                 : nullptr;
    }
    if (at.type == "Gather") {
      // A codebook: the indices are the compressed weight.
      if (at.producers.size() < 2) return nullptr;
      layer = at.producers[1].layer;
    } else if ((at.type == "Convert" || at.type == "Subtract" ||
                at.type == "Multiply" || at.type == "Reshape") &&
               !at.producers.empty()) {
      layer = at.producers[0].layer;
    } else {
      return nullptr;
    }
  }
  return nullptr;
}

std::string RtInfo(const Model& model,
                   std::initializer_list<const char*> path) {
  pugi::xml_node node = model.document().child("net").child("rt_info");
  for (const char* name : path) node = node.child(name);
  return node.attribute("value").value();
}

}  // namespace

absl::StatusOr<std::string> InspectModel(const std::string& xml_path,
                                         bool json) {
  OVPRESS_ASSIGN_OR_RETURN(std::string xml,
                           ReadSmallFile(xml_path, IrLimits().xml_bytes_max));
  OVPRESS_ASSIGN_OR_RETURN(const Model model, Model::Parse(std::move(xml)));
  const std::string bin_path =
      absl::StrCat(absl::StripSuffix(xml_path, ".xml"), ".bin");
  std::error_code error;
  const uint64_t bin_size = std::filesystem::file_size(bin_path, error);
  if (!error) OVPRESS_RETURN_IF_ERROR(model.CheckConstantRanges(bin_size));

  const NodeGraph graph = BuildNodeGraph(model);
  std::vector<Found> weights;
  std::map<size_t, bool> seen;
  for (const WeightInput& input : graph.weights) {
    if (!seen.try_emplace(input.constant, true).second) continue;
    const Constant& constant = model.constants()[input.constant];
    weights.push_back({graph.names[constant.layer], graph.names[input.layer],
                       std::string(model.layers()[input.layer].type),
                       std::string(ElementTypeName(constant.type)),
                       constant.shape, constant.size_bytes, false});
  }
  for (const size_t at : graph.order) {
    if (graph.kind[at] == NodeKind::kOther || !graph.from_parameter[at]) {
      continue;
    }
    for (const Producer& producer : model.layers()[at].producers) {
      if (producer.layer == kNone || graph.from_parameter[producer.layer]) {
        continue;
      }
      const Layer& below = model.layers()[producer.layer];
      if (below.type == "Const") continue;
      const Constant* constant = CompressedSource(model, producer.layer);
      if (constant == nullptr || constant->layer == kNone) continue;
      const size_t index =
          static_cast<size_t>(constant - model.constants().data());
      if (!seen.try_emplace(index, true).second) continue;
      weights.push_back({graph.names[constant->layer], graph.names[at],
                         std::string(model.layers()[at].type),
                         std::string(ElementTypeName(constant->type)),
                         constant->shape, constant->size_bytes, true});
    }
  }

  struct Total {
    uint64_t count = 0;
    uint64_t bytes = 0;
  };
  std::map<std::string, Total> by_type;
  for (const Constant& constant : model.constants()) {
    Total& total = by_type[std::string(ElementTypeName(constant.type))];
    ++total.count;
    total.bytes += constant.size_bytes;
  }
  const std::string mode =
      RtInfo(model, {"nncf", "weight_compression", "mode"});
  uint64_t compressed = 0;
  for (const Found& weight : weights) compressed += weight.compressed;

  if (json) {
    nlohmann::ordered_json out;
    out["name"] = std::string(model.name());
    out["ir_version"] = model.version();
    out["layers"] = model.layers().size();
    out["constants"] = model.constants().size();
    out["bin_bytes_used"] = model.BinBytesUsed();
    if (!error) out["bin_bytes"] = bin_size;
    out["compressed_mode"] = mode;
    for (const auto& [type, total] : by_type) {
      out["constant_types"][type] = {{"count", total.count},
                                     {"bytes", total.bytes}};
    }
    out["weights"] = nlohmann::ordered_json::array();
    for (const Found& weight : weights) {
      out["weights"].push_back({{"name", weight.name},
                                {"node", weight.node},
                                {"node_type", weight.node_type},
                                {"type", weight.type},
                                {"shape", weight.shape},
                                {"bytes", weight.bytes},
                                {"compressed", weight.compressed}});
    }
    return out.dump(2, ' ', false,
                    nlohmann::ordered_json::error_handler_t::replace) +
           "\n";
  }
  std::string out = absl::StrCat(
      "model '", model.name(), "', IR version ", model.version(), ", ",
      model.layers().size(), " layers, ", model.constants().size(),
      " constants, ", HumanBytes(model.BinBytesUsed()), " of weights file\n");
  if (!mode.empty()) {
    absl::StrAppend(&out, "compressed before with mode ", mode, "\n");
  }
  absl::StrAppend(
      &out, absl::StrFormat("%-10s %9s %14s\n", "type", "constants", "bytes"));
  for (const auto& [type, total] : by_type) {
    absl::StrAppend(&out, absl::StrFormat("%-10s %9d %14d\n", type, total.count,
                                          total.bytes));
  }
  absl::StrAppend(&out, weights.size(), " weights (", compressed,
                  " compressed already):\n");
  for (const Found& weight : weights) {
    absl::StrAppend(&out, absl::StrFormat("  %-8s", weight.type), " [",
                    absl::StrJoin(weight.shape, ","), "]  ",
                    HumanBytes(weight.bytes), "  ", weight.name, "  (",
                    weight.node_type, " ", weight.node, ")",
                    weight.compressed ? "  compressed" : "", "\n");
  }
  return out;
}

}  // namespace ovpress
