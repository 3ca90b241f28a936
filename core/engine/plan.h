// The plan: what happens to each constant and where its output lies. A pure
// value made from the model and the options; no weight byte is read for it.
#ifndef OVPRESS_CORE_ENGINE_PLAN_H_
#define OVPRESS_CORE_ENGINE_PLAN_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/engine/graph.h"
#include "core/engine/options.h"
#include "core/ir/model.h"
#include "core/quant/scheme.h"

namespace ovpress {

// How one weight is compressed (nncf.WeightCompressionConfig).
struct WeightConfig {
  Mode mode = Mode::kInt8Asym;
  int64_t group_size = -1;
  bool operator==(const WeightConfig&) const = default;
};

// A weight as outer x reduce x inner x trailing elements in C order: one scale
// for each (outer, inner), taken over reduce and trailing. Every combination of
// channel and reduction axes that OpenVINO's operations have folds into this.
struct FoldedShape {
  uint64_t outer = 1;
  uint64_t reduce = 1;
  uint64_t inner = 1;
  uint64_t trailing = 1;
  uint64_t groups() const { return outer * inner; }
};

struct PlannedWeight {
  size_t constant = kNone;  // in Model::constants
  size_t layer = kNone;     // its first user, in Model::layers
  int64_t port = 0;         // input of that user
  std::string name;         // the constant's, made unique
  std::vector<int> reduction_axes;
  uint64_t elements = 0;
  bool ratio_defining = false;
  std::optional<WeightConfig> primary;  // ratio-defining weights only
  std::optional<WeightConfig> backup;
  std::optional<WeightConfig> config;  // the choice; nullopt: stays float
  std::string reason;                  // "primary", "backup", "ignored" ...
  bool has_score = false;
  double score = 0;
};

// AWQ: `target` is multiplied by sc along its reduction axis, and the inverse
// goes to where its input comes from.
struct AwqScale {
  size_t weight = kNone;        // the target, index in Plan::weights
  // Further targets that read the same activation: all get the same factors,
  // from the mean over all of them. Extended AWQ only.
  std::vector<size_t> together;
  size_t source_layer = kNone;  // first node of the match
  // The inverse is folded into this weight's output channels ...
  size_t merged_constant = kNone;  // in Model::constants
  int merged_axis = -1;            // the output axis of that constant
  // ... or applied by a new Multiply behind source_layer with a constant of
  // this shape.
  std::vector<uint64_t> multiply_shape;
  ElementType multiply_type = ElementType::kF32;
  bool shared_over_batch = false;  // 3-D weight, activation not 3-D
};

struct Plan {
  CompressionOptions options;
  NodeGraph graph;
  int64_t group_size = -1;  // resolved
  double ratio = 1;         // resolved
  BackupMode backup_mode = BackupMode::kInt8Asym;
  // Considered weights in NNCF's order, the skipped ones included.
  std::vector<PlannedWeight> weights;
  // Indices of the ratio-defining weights, in NNCF's order (embeddings of
  // all_layers at the end).
  std::vector<size_t> ratio_defining;
  bool needs_scores = false;
  std::vector<AwqScale> awq;
  std::vector<std::string> warnings;
};

// kInvalidArgument if NNCF refuses the combination.
absl::StatusOr<Plan> MakePlan(const Model& model,
                              const CompressionOptions& options);

// Mixed precision: `scores` for plan->ratio_defining, in that order. REQUIRES:
// plan->needs_scores.
void ApplyScores(const std::vector<double>& scores, Plan* plan);

// The checks that NNCF makes after the choice (group sizes), then the AWQ
// matches. Call once the choice stands.
absl::Status FinishPlan(const Model& model, Plan* plan);

// 1 / (error + eps of the storage type), in f64.
double SensitivityScore(float error, ElementType type);

// Folds a shape; `group_size` splits the (single) reduction axis.
FoldedShape Fold(const std::vector<uint64_t>& shape,
                 const std::vector<int>& reduction_axes, int64_t group_size);
// Shape of the stored codes (the split shape if grouped) and of the scale.
std::vector<uint64_t> CodeShape(const std::vector<uint64_t>& shape,
                                const std::vector<int>& reduction_axes,
                                int64_t group_size);
std::vector<uint64_t> ScaleShape(const std::vector<uint64_t>& shape,
                                 const std::vector<int>& reduction_axes,
                                 int64_t group_size);

// The codebook of a mode: cb4's own, the user's, or nullptr.
const Codebook* CodebookOf(const CompressionOptions& options, Mode mode);
// Element type of the stored codes.
ElementType CodeTypeOf(const CompressionOptions& options, Mode mode);
// Bits of one code as NNCF counts them (num_bits).
int BitsOf(const CompressionOptions& options, Mode mode);

// The plan as text: one header line per option, then one line per weight.
std::string PlanToText(const Model& model, const Plan& plan);

// AWQ matching, in awq.cc.
absl::Status MatchAwq(const Model& model, Plan* plan);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_PLAN_H_
