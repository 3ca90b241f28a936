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
  // The weights to score, positions in plan->ratio_defining.
  size_t begin = 0;
  size_t end = 0;
  // Called after each window with its bytes, from compute threads; an error
  // (kCancelled) ends the pass.
  std::function<absl::Status(uint64_t bytes)> advance;
};

// Scores of plan->ratio_defining[begin, end), in that order. A score depends on
// its weight only. kInvalidArgument names the first weight that is not finite
// (unless allow_non_finite).
absl::StatusOr<std::vector<double>> ScoreWeights(const ScoringContext& context);

// Bytes that the pass over these weights reads, for progress.
uint64_t ScoringBytes(const Model& model, const Plan& plan, size_t begin,
                      size_t end);

// The one error for NaN and infinities.
absl::Status NotFiniteError(absl::string_view weight_name);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_SCORING_H_
