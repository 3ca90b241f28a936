#include "core/engine/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"
#include "core/engine/python_text.h"
#include "re2/re2.h"

namespace ovpress {
namespace {

bool IsMatMul(NodeKind kind) {
  return kind == NodeKind::kMatMul || kind == NodeKind::kGroupedMatMul;
}

bool IsCompressibleType(ElementType type) {
  switch (type) {
    case ElementType::kF32:
    case ElementType::kF16:
    case ElementType::kBf16:
    case ElementType::kF64:
    case ElementType::kF8e4m3:
    case ElementType::kF8e5m2:
      return true;
    default:
      return false;
  }
}

bool IsF8(ElementType type) {
  return type == ElementType::kF8e4m3 || type == ElementType::kF8e5m2;
}

// NNCF: would compressing this type in this mode save anything?
bool IsSupported(const CompressionOptions& options, ElementType type,
                 Mode mode) {
  if (!IsCompressibleType(type)) return false;
  if (ModeTraitsOf(mode).is_int8) return !IsF8(type);
  if (mode == Mode::kCodebook) {
    // floor(log2(entries)) against the bits of the type.
    const uint64_t entries = options.codebook->values.size();
    int bits = -1;
    for (uint64_t n = entries; n > 0; n >>= 1) ++bits;
    return bits < BitsPerElement(type);
  }
  return true;
}

// Channel axes by operation (layout.py, node_utils.py).
absl::StatusOr<std::vector<int>> ChannelAxes(const Layer& layer, NodeKind kind,
                                             int64_t port, int rank) {
  std::vector<int> axes;
  // NNCF looks for the input channels of convolutions, too.
  int rank_min = 1;
  switch (kind) {
    case NodeKind::kMatMul: {
      if (rank < 2) return axes;
      const bool transpose =
          layer.IsTrue(port == 0 ? "transpose_a" : "transpose_b");
      const int reduced = (transpose == (port == 0)) ? rank - 2 : rank - 1;
      for (int axis = 0; axis < rank; ++axis) {
        if (axis != reduced) axes.push_back(axis);
      }
      return axes;
    }
    case NodeKind::kGroupedMatMul:
      axes = {0, 1};
      rank_min = 2;
      break;
    case NodeKind::kEmbedding:
      axes = {0};
      break;
    case NodeKind::kConvolution:
      axes = {0};
      rank_min = 2;
      break;
    case NodeKind::kConvolutionBackpropData:
      axes = {1};
      rank_min = 2;
      break;
    case NodeKind::kGroupConvolution:
      axes = {0, 1};
      rank_min = 3;
      break;
    case NodeKind::kGroupConvolutionBackpropData:
      axes = {0, 2};
      rank_min = 3;
      break;
    case NodeKind::kOther:
      break;
  }
  if (rank < rank_min) {
    return absl::InvalidArgumentError(absl::StrCat(
        "weight of '", layer.name, "' (", layer.type,
        ") is a constant of rank ", rank,
        "; this operation needs its channels, hence at least rank ", rank_min,
        ": store the weight in the shape in which it is used"));
  }
  return axes;
}

std::vector<int> ReductionAxes(const std::vector<int>& channel_axes, int rank) {
  std::vector<int> axes;
  for (int axis = 0; axis < rank; ++axis) {
    if (std::find(channel_axes.begin(), channel_axes.end(), axis) ==
        channel_axes.end()) {
      axes.push_back(axis);
    }
  }
  return axes;
}

// Names of nodes to ignore; kInvalidArgument for a rule that matches nothing.
absl::StatusOr<absl::flat_hash_set<std::string>> IgnoredNames(
    const Model& model, const NodeGraph& graph, const IgnoredScope& scope) {
  absl::flat_hash_set<std::string> ignored;
  absl::flat_hash_set<absl::string_view> existing;
  for (const size_t at : graph.order) existing.insert(graph.names[at]);
  std::vector<std::string> unmatched;
  for (const std::string& name : scope.names) {
    if (existing.contains(name)) {
      ignored.insert(name);
    } else {
      unmatched.push_back(absl::StrCat("name ", PythonString(name)));
    }
  }
  for (const std::string& pattern : scope.patterns) {
    RE2::Options quiet;
    quiet.set_log_errors(false);
    const RE2 compiled(pattern, quiet);
    if (!compiled.ok()) {
      return absl::InvalidArgumentError(
          absl::StrCat("ignored pattern ", PythonString(pattern),
                       " is not a regular expression: ", compiled.error()));
    }
    bool matched = false;
    for (const size_t at : graph.order) {
      const std::string& name = graph.names[at];
      if (compiled.Match(name, 0, name.size(), RE2::ANCHOR_START, nullptr, 0)) {
        ignored.insert(name);
        matched = true;
      }
    }
    if (!matched) {
      unmatched.push_back(absl::StrCat("pattern ", PythonString(pattern)));
    }
  }
  const absl::flat_hash_set<absl::string_view> types(scope.types.begin(),
                                                     scope.types.end());
  absl::flat_hash_set<absl::string_view> met;
  for (const size_t at : graph.order) {
    const absl::string_view type = NodeTypeName(model.layers()[at]);
    if (!types.contains(type)) continue;
    ignored.insert(graph.names[at]);
    met.insert(type);
  }
  for (const std::string& type : scope.types) {
    if (!met.contains(type)) {
      unmatched.push_back(absl::StrCat("type ", PythonString(type)));
    }
  }
  if (scope.validate && !unmatched.empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the ignored scope matches no node by ", absl::StrJoin(unmatched, ", "),
        "; correct the rule or turn validation of the ignored scope off"));
  }
  for (const size_t at : FindAlwaysIgnored(model, graph)) {
    ignored.insert(graph.names[at]);
  }
  return ignored;
}

std::optional<WeightConfig> BackupConfig(const Plan& plan, ElementType type) {
  WeightConfig config;
  switch (plan.backup_mode) {
    case BackupMode::kKeepFloat:
      return std::nullopt;
    case BackupMode::kFp8E4m3:
      config = {Mode::kFp8E4m3, plan.group_size};
      break;
    case BackupMode::kMxfp8E4m3:
      config = {Mode::kMxfp8E4m3, 32};
      break;
    case BackupMode::kInt8Sym:
      config = {Mode::kInt8Sym, -1};
      break;
    case BackupMode::kInt8Asym:
      config = {Mode::kInt8Asym, -1};
      break;
  }
  if (!IsSupported(plan.options, type, config.mode)) return std::nullopt;
  return config;
}

// Size of the single reduction axis; nullopt if there is not exactly one.
std::optional<uint64_t> ReductionSize(const Model& model,
                                      const PlannedWeight& weight) {
  if (weight.reduction_axes.size() != 1) return std::nullopt;
  return model.constants()[weight.constant]
      .shape[static_cast<size_t>(weight.reduction_axes[0])];
}

absl::Status SelectWeights(const Model& model, Plan* plan, bool* last_skipped) {
  OVPRESS_ASSIGN_OR_RETURN(
      const absl::flat_hash_set<std::string> ignored,
      IgnoredNames(model, plan->graph, plan->options.ignored));
  const NodeGraph& graph = plan->graph;
  absl::flat_hash_set<size_t> taken;
  *last_skipped = false;
  const size_t last_node =
      graph.weights.empty() ? kNone : graph.weights.back().layer;
  for (const WeightInput& input : graph.weights) {
    const Constant& constant = model.constants()[input.constant];
    const bool is_last = input.layer == last_node;
    if (taken.contains(input.constant)) {
      *last_skipped = is_last;
      continue;
    }
    PlannedWeight weight;
    weight.constant = input.constant;
    weight.layer = input.layer;
    weight.port = input.port;
    weight.name = graph.names[constant.layer];
    weight.elements = constant.element_count;
    const int rank = static_cast<int>(constant.shape.size());
    OVPRESS_ASSIGN_OR_RETURN(
        const std::vector<int> channel_axes,
        ChannelAxes(model.layers()[input.layer], graph.kind[input.layer],
                    input.port, rank));
    weight.reduction_axes = ReductionAxes(channel_axes, rank);
    if (ignored.contains(graph.names[input.layer]) ||
        ignored.contains(weight.name)) {
      weight.reason = "ignored";
    } else if (!IsSupported(plan->options, constant.type, plan->options.mode)) {
      weight.reason = "type";
    }
    if (!weight.reason.empty()) {
      *last_skipped = is_last;
      plan->weights.push_back(std::move(weight));
      continue;
    }
    taken.insert(input.constant);
    weight.backup = BackupConfig(*plan, constant.type);
    weight.config = weight.backup;
    weight.reason = "backup";
    plan->weights.push_back(std::move(weight));
  }
  return absl::OkStatus();
}

void SelectRatioDefining(bool last_skipped, Plan* plan) {
  std::vector<size_t>& chosen = plan->ratio_defining;
  if (ModeTraitsOf(plan->options.mode).is_int8) {
    for (size_t i = 0; i < plan->weights.size(); ++i) {
      if (plan->weights[i].reason == "backup") chosen.push_back(i);
    }
    return;
  }
  const bool all_layers = plan->options.all_layers.value_or(false);
  for (size_t i = 0; i < plan->weights.size(); ++i) {
    const PlannedWeight& weight = plan->weights[i];
    if (weight.reason == "backup" && IsMatMul(plan->graph.kind[weight.layer])) {
      chosen.push_back(i);
    }
  }
  if (!all_layers && !last_skipped && !chosen.empty()) {
    plan->weights[chosen.back()].reason = "backup: last layer";
    chosen.pop_back();
  }
  for (size_t i = 0; i < plan->weights.size(); ++i) {
    PlannedWeight& weight = plan->weights[i];
    if (weight.reason != "backup" ||
        plan->graph.kind[weight.layer] != NodeKind::kEmbedding) {
      continue;
    }
    if (all_layers && weight.reduction_axes.size() == 1) {
      chosen.push_back(i);
    } else {
      weight.reason = "backup: embedding";
    }
  }
}

std::string DescribeWeight(const Model& model, const Plan& plan,
                           const PlannedWeight& weight) {
  const Constant& constant = model.constants()[weight.constant];
  return absl::StrCat(
      "weight '", weight.name, "' of '", plan.graph.names[weight.layer], "' (",
      model.layers()[weight.layer].type, ", ", ElementTypeName(constant.type),
      "[", absl::StrJoin(constant.shape, ","), "])");
}

absl::Status SeveralReductionAxes(const Model& model, const Plan& plan,
                                  const PlannedWeight& weight,
                                  const WeightConfig& config,
                                  absl::string_view what_to_choose) {
  return absl::InvalidArgumentError(absl::StrCat(
      DescribeWeight(model, plan, weight), " has ",
      weight.reduction_axes.size(), " reduction axes, but mode ",
      ModeTraitsOf(config.mode).name, " with group size ", config.group_size,
      " needs exactly one; ignore this layer or choose another ",
      what_to_choose));
}

// Group size fallback, then the primary configuration of what remains. Like
// NNCF, asks each weight for its channel size first, even if it will get the
// backup precision.
absl::Status AssignPrimary(const Model& model, Plan* plan) {
  std::vector<size_t> kept;
  for (const size_t index : plan->ratio_defining) {
    PlannedWeight& weight = plan->weights[index];
    int64_t group_size = plan->group_size;
    const std::optional<uint64_t> size = ReductionSize(model, weight);
    if (group_size != -1 && !size.has_value() &&
        plan->options.group_size_fallback != GroupSizeFallback::kError) {
      return SeveralReductionAxes(model, *plan, weight,
                                  {plan->options.mode, group_size}, "mode");
    }
    if (group_size != -1 && size.has_value() &&
        *size % static_cast<uint64_t>(group_size) != 0) {
      if (plan->options.group_size_fallback == GroupSizeFallback::kIgnore) {
        weight.config.reset();
        weight.backup.reset();
        weight.reason = absl::StrCat("ignored: channel size ", *size,
                                     " is no multiple of the group size");
        continue;
      }
      if (plan->options.group_size_fallback == GroupSizeFallback::kAdjust) {
        const uint64_t power = *size & (~*size + 1);
        if (static_cast<int64_t>(power) <
            plan->options.min_adjusted_group_size) {
          weight.reason = "backup: no group size fits";
          continue;
        }
        group_size = static_cast<int64_t>(power);
      }
    }
    weight.primary = WeightConfig{plan->options.mode, group_size};
    weight.config = weight.primary;
    weight.reason = "primary";
    weight.ratio_defining = true;
    kept.push_back(index);
  }
  plan->ratio_defining = std::move(kept);
  return absl::OkStatus();
}

// What NNCF's numeric code refuses for a weight in its final configuration.
absl::Status CheckWeight(const Model& model, const Plan& plan,
                         const PlannedWeight& weight) {
  if (!weight.config.has_value()) return absl::OkStatus();
  const Constant& constant = model.constants()[weight.constant];
  const ModeTraits& traits = ModeTraitsOf(weight.config->mode);
  const int64_t group_size = weight.config->group_size;
  const std::string where = DescribeWeight(model, plan, weight);
  if (group_size != -1) {
    if (weight.reduction_axes.size() != 1) {
      return SeveralReductionAxes(
          model, plan, weight, *weight.config,
          weight.ratio_defining ? "mode" : "backup mode");
    }
    const uint64_t size = *ReductionSize(model, weight);
    if (size % static_cast<uint64_t>(group_size) != 0) {
      return absl::InvalidArgumentError(absl::StrCat(
          where, " has channel size ", size,
          ", which is no multiple of the group size ", group_size, " of mode ",
          traits.name,
          "; choose another group size or backup mode, or ignore this layer"));
    }
  }
  const bool optimized = traits.has_openvino_path &&
                         constant.element_count >= kOpenVinoPathMinElements;
  if (constant.type == ElementType::kF64 && optimized) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, " is f64 with ", constant.element_count,
        " elements; f64 weights of ", kOpenVinoPathMinElements,
        " or more elements are not supported: convert the weight to f32 or "
        "ignore this layer"));
  }
  if (weight.reduction_axes.empty() && optimized) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, " has no reduction axis and ", constant.element_count,
        " elements, of which each would get its own scale; ignore this layer"));
  }
  return absl::OkStatus();
}

}  // namespace

const Codebook* CodebookOf(const CompressionOptions& options, Mode mode) {
  if (mode == Mode::kCb4) return &Cb4Codebook();
  if (mode == Mode::kCodebook) return options.codebook.get();
  return nullptr;
}

ElementType CodeTypeOf(const CompressionOptions& options, Mode mode) {
  if (mode == Mode::kCodebook) return options.codebook->index_type();
  return ModeTraitsOf(mode).code_type;
}

int BitsOf(const CompressionOptions& options, Mode mode) {
  if (mode == Mode::kCodebook) {
    return BitsPerElement(options.codebook->index_type());
  }
  return ModeTraitsOf(mode).bits;
}

FoldedShape Fold(const std::vector<uint64_t>& shape,
                 const std::vector<int>& reduction_axes, int64_t group_size) {
  struct Run {
    bool reduced;
    uint64_t size;
  };
  std::vector<Run> runs;
  const auto append = [&runs](bool reduced, uint64_t size) {
    if (size == 1) return;
    if (!runs.empty() && runs.back().reduced == reduced) {
      runs.back().size *= size;
    } else {
      runs.push_back({reduced, size});
    }
  };
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    const bool reduced =
        std::find(reduction_axes.begin(), reduction_axes.end(),
                  static_cast<int>(axis)) != reduction_axes.end();
    if (reduced && group_size != -1) {
      append(false, shape[axis] / static_cast<uint64_t>(group_size));
      append(true, static_cast<uint64_t>(group_size));
    } else {
      append(reduced, shape[axis]);
    }
  }
  FoldedShape folded;
  size_t at = 0;
  if (at < runs.size() && !runs[at].reduced) folded.outer = runs[at++].size;
  if (at < runs.size()) folded.reduce = runs[at++].size;
  if (at < runs.size()) folded.inner = runs[at++].size;
  if (at < runs.size()) folded.trailing = runs[at++].size;
  return folded;
}

std::vector<uint64_t> CodeShape(const std::vector<uint64_t>& shape,
                                const std::vector<int>& reduction_axes,
                                int64_t group_size) {
  // A plan that is still open may hold what FinishPlan() will refuse; estimates
  // ask for its shape all the same.
  if (group_size == -1 || reduction_axes.empty()) return shape;
  std::vector<uint64_t> out;
  for (size_t axis = 0; axis < shape.size(); ++axis) {
    if (static_cast<int>(axis) == reduction_axes[0]) {
      out.push_back(shape[axis] / static_cast<uint64_t>(group_size));
      out.push_back(static_cast<uint64_t>(group_size));
    } else {
      out.push_back(shape[axis]);
    }
  }
  return out;
}

std::vector<uint64_t> ScaleShape(const std::vector<uint64_t>& shape,
                                 const std::vector<int>& reduction_axes,
                                 int64_t group_size) {
  std::vector<uint64_t> out = CodeShape(shape, reduction_axes, group_size);
  for (const int axis : reduction_axes) {
    out[static_cast<size_t>(axis) + (group_size == -1 ? 0 : 1)] = 1;
  }
  return out;
}

double SensitivityScore(float error, ElementType type) {
  double eps = std::ldexp(1.0, -23);
  if (type == ElementType::kF16 || type == ElementType::kBf16) {
    eps = std::ldexp(1.0, -10);
  } else if (type == ElementType::kF64) {
    eps = std::ldexp(1.0, -52);
  }
  return 1.0 / (static_cast<double>(error) + eps);
}

absl::StatusOr<Plan> MakePlan(const Model& model,
                              const CompressionOptions& options) {
  OVPRESS_RETURN_IF_ERROR(ValidateOptions(options));
  Plan plan;
  plan.options = options;
  plan.graph = BuildNodeGraph(model);
  const ModeTraits& traits = ModeTraitsOf(options.mode);
  plan.group_size =
      traits.is_int8 ? -1
                     : options.group_size.value_or(traits.default_group_size);
  plan.ratio = options.ratio.value_or(1);
  if (plan.ratio == 0) plan.ratio = 1;
  if (options.backup_mode.has_value()) {
    plan.backup_mode = *options.backup_mode;
  } else if (options.mode == Mode::kMxfp4 || options.mode == Mode::kMxfp8E4m3) {
    plan.backup_mode = BackupMode::kMxfp8E4m3;
  } else if (options.mode == Mode::kFp4 || options.mode == Mode::kFp8E4m3) {
    plan.backup_mode = BackupMode::kFp8E4m3;
  }

  bool last_skipped = false;
  OVPRESS_RETURN_IF_ERROR(SelectWeights(model, &plan, &last_skipped));
  SelectRatioDefining(last_skipped, &plan);
  OVPRESS_RETURN_IF_ERROR(AssignPrimary(model, &plan));
  plan.needs_scores = plan.ratio < 1 && !plan.ratio_defining.empty();
  if (plan.needs_scores) {
    for (const size_t index : plan.ratio_defining) {
      const PlannedWeight& weight = plan.weights[index];
      const Constant& constant = model.constants()[weight.constant];
      const bool large = constant.element_count >= kOpenVinoPathMinElements;
      if (IsF8(constant.type) ||
          (large && constant.type == ElementType::kF64)) {
        return absl::InvalidArgumentError(absl::StrCat(
            "weight '", weight.name, "' is ", ElementTypeName(constant.type),
            ": its sensitivity is not defined, so ratio cannot be ",
            PythonFloat(plan.ratio), "; use ratio 1 or ignore this layer"));
      }
    }
  }
  return plan;
}

void ApplyScores(const std::vector<double>& scores, Plan* plan) {
  std::vector<size_t> order(scores.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](size_t a, size_t b) { return scores[a] < scores[b]; });
  double total = 0;
  for (const size_t index : plan->ratio_defining) {
    total += static_cast<double>(plan->weights[index].elements);
  }
  // Python keeps node names of the primary ones; two weights of one node are
  // chosen together there, and no operation has two.
  std::vector<bool> is_primary(scores.size(), false);
  double taken = 0;
  for (const size_t i : order) {
    const double elements =
        static_cast<double>(plan->weights[plan->ratio_defining[i]].elements);
    if ((taken + elements) / total >= plan->ratio) break;
    is_primary[i] = true;
    taken += elements;
  }
  for (size_t i = 0; i < scores.size(); ++i) {
    PlannedWeight& weight = plan->weights[plan->ratio_defining[i]];
    weight.has_score = true;
    weight.score = scores[i];
    if (!is_primary[i]) {
      weight.config = weight.backup;
      weight.reason = "backup: sensitive";
    }
  }
}

absl::Status FinishPlan(const Model& model, Plan* plan) {
  std::vector<std::string> failed;
  for (const size_t index : plan->ratio_defining) {
    const PlannedWeight& weight = plan->weights[index];
    if (!weight.config.has_value() || weight.config->group_size == -1) continue;
    const std::optional<uint64_t> size = ReductionSize(model, weight);
    if (size.has_value() &&
        *size % static_cast<uint64_t>(weight.config->group_size) != 0) {
      failed.push_back(absl::StrCat("'", plan->graph.names[weight.layer],
                                    "' (channel size ", *size, ")"));
    }
  }
  if (!failed.empty()) {
    const size_t count = failed.size();
    if (failed.size() > 5) failed.resize(5);
    return absl::InvalidArgumentError(absl::StrCat(
        "group size ", plan->group_size,
        " does not divide the channel size of ", count,
        count == 1 ? " layer: " : " layers: ", absl::StrJoin(failed, ", "),
        count > 5 ? ", ..." : "",
        "; choose another group size, set the group size fallback to ignore or "
        "adjust, or ignore these layers"));
  }
  for (const PlannedWeight& weight : plan->weights) {
    OVPRESS_RETURN_IF_ERROR(CheckWeight(model, *plan, weight));
  }
  if (plan->options.awq.value_or(false)) {
    OVPRESS_RETURN_IF_ERROR(MatchAwq(model, plan));
  }
  return absl::OkStatus();
}

std::string PlanToText(const Model& model, const Plan& plan) {
  std::string out = absl::StrCat(
      "mode ", ModeTraitsOf(plan.options.mode).name, ", group size ",
      plan.group_size, ", ratio ", PythonFloat(plan.ratio), ", backup ",
      BackupModeName(plan.backup_mode), ", all layers ",
      plan.options.all_layers.value_or(false) ? "yes" : "no", "\n");
  for (const PlannedWeight& weight : plan.weights) {
    const Constant& constant = model.constants()[weight.constant];
    std::string to = "kept";
    if (weight.config.has_value()) {
      to = std::string(ModeTraitsOf(weight.config->mode).name);
      if (weight.config->group_size != -1) {
        absl::StrAppend(&to, " g", weight.config->group_size);
      }
    }
    if (plan.needs_scores && weight.ratio_defining && !weight.has_score) {
      absl::StrAppend(&to, " or ",
                      weight.backup ? ModeTraitsOf(weight.backup->mode).name
                                    : absl::string_view("kept"));
    }
    absl::StrAppend(&out, ElementTypeName(constant.type), "[",
                    absl::StrJoin(constant.shape, ","), "] -> ", to, "  ",
                    weight.name, "  (", model.layers()[weight.layer].type, " ",
                    plan.graph.names[weight.layer], "; ", weight.reason, ")\n");
  }
  for (const AwqScale& awq : plan.awq) {
    absl::StrAppend(&out, "awq: ", plan.weights[awq.weight].name);
    for (const size_t weight : awq.together) {
      absl::StrAppend(&out, ", ", plan.weights[weight].name);
    }
    absl::StrAppend(
        &out, awq.together.empty() ? " scaled, " : " scaled together, ",
        awq.merged_constant != kNone ? "inverse folded into "
                                     : "inverse multiplied behind ",
        awq.merged_constant != kNone
            ? std::string(model.constants()[awq.merged_constant].name)
            : plan.graph.names[awq.source_layer],
        "\n");
  }
  return out;
}

}  // namespace ovpress
