// Data-free AWQ: which weights are rescaled, and by what.
//
// A target weight W (a MatMul whose configuration has at most 4 bits) is
// multiplied along its input channels by sc = 1 / max(mean|W|, EPS), so that
// all input channels have the same mean magnitude before they share scales;
// the inverse a = 1 / sc goes to where its input comes from: into the output
// channels of the MatMul before, or into a new Multiply. Formula and patterns
// are NNCF's (awq.py, awq_patterns.py); a match is taken only if the model's
// function is kept in exact arithmetic (docs/nncf-differences.md).
//
// Extended (off by default, not in NNCF): Gelu counts as an activation, and if
// all readers of a Multiply's or an Add's output (the end of a norm) are
// targets, they share one sc from the mean over all of them, and the inverse
// goes into the norm's weight or into a new Multiply: (x a)(sc W) = x W for
// each reader, whatever x is.
#ifndef OVPRESS_CORE_ENGINE_AWQ_H_
#define OVPRESS_CORE_ENGINE_AWQ_H_

#include <cstdint>
#include <functional>
#include <vector>

#include "absl/status/status.h"
#include "core/engine/weight_reader.h"
#include "core/ir/model.h"

namespace ovpress {

// A weight and its input channel axis.
struct AwqInput {
  WeightReader reader;
  const Constant* constant = nullptr;
  int reduction_axis = 0;
};

// sc and 1/sc, one value per input channel ([batch, channel] for a 3-D weight
// unless `shared_over_batch`). The mean is NumPy's f32 mean, bit for bit: rows
// added in order along a strided axis, pairwise along the contiguous one.
// Several weights are taken one after the other, as if their outputs were
// those of one weight. REQUIRES: one weight of 2 or 3 dimensions, or several of
// 2 with equally many input channels.
absl::Status ComputeAwqFactors(
    const std::vector<AwqInput>& inputs, bool shared_over_batch,
    BufferPool* pool, size_t window_bytes,
    const std::function<absl::Status(uint64_t)>& advance,
    std::vector<float>* factors, std::vector<float>* inverses);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_AWQ_H_
