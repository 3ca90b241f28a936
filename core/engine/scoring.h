// Sensitivity of the ratio-defining weights: one pass over their bytes.
#ifndef OVPRESS_CORE_ENGINE_SCORING_H_
#define OVPRESS_CORE_ENGINE_SCORING_H_

#include <functional>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/executor.h"
#include "core/base/io.h"
#include "core/engine/plan.h"
#include "core/engine/weight_reader.h"

namespace ovpress {

struct ScoringContext {
  const Model* model = nullptr;
  const Plan* plan = nullptr;
  ByteSource* bin = nullptr;
  Executor* executor = nullptr;
  BufferPool* pool = nullptr;
  size_t window_bytes = 1 << 20;
  // Called after each window with its bytes, from compute threads; an error
  // (kCancelled) ends the pass.
  std::function<absl::Status(uint64_t bytes)> advance;
};

// Scores of plan->ratio_defining, in that order. kInvalidArgument names the
// first weight that is not finite (unless allow_non_finite).
absl::StatusOr<std::vector<double>> ScoreWeights(const ScoringContext& context);

// Bytes that the pass reads, for progress.
uint64_t ScoringBytes(const Model& model, const Plan& plan);

// The one error for NaN and infinities.
absl::Status NotFiniteError(absl::string_view weight_name);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_SCORING_H_
