// Synthetic transformer-like IRs of any size, readable by OpenVINO: for
// benchmarks, memory checks and tests that need more than a shipped model.
#ifndef OVPRESS_BENCH_SYNTHETIC_IR_H_
#define OVPRESS_BENCH_SYNTHETIC_IR_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"

namespace ovpress {

struct SyntheticModel {
  uint64_t hidden = 2048;
  uint64_t intermediate = 5632;
  uint64_t vocabulary = 32000;
  uint64_t layers = 22;
  uint64_t seed = 1;
  // True: the weights file is a hole of the right size (all zeros), which takes
  // no disk space; for shape- and size-related checks.
  bool sparse = false;
};

// The .xml of the model: an embedding, then per layer q, k, v, o, gate, up and
// down projections (f16 constants behind a Convert, transpose_b), a head.
std::string SyntheticXml(const SyntheticModel& model);
uint64_t SyntheticBinBytes(const SyntheticModel& model);

// Writes PREFIX.xml and PREFIX.bin. Weights are f16, roughly normal with a
// standard deviation of 0.02; equal seeds give equal files.
absl::Status WriteSynthetic(const SyntheticModel& model,
                            const std::string& prefix);

}  // namespace ovpress

#endif  // OVPRESS_BENCH_SYNTHETIC_IR_H_
