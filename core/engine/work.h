// Turns a layout into work items and runs them: read a window, compute, write
// to the final offset.
#ifndef OVPRESS_CORE_ENGINE_WORK_H_
#define OVPRESS_CORE_ENGINE_WORK_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "core/base/executor.h"
#include "core/base/io.h"
#include "core/engine/layout.h"
#include "core/engine/plan.h"
#include "core/engine/weight_reader.h"
#include "core/quant/kernels.h"

namespace ovpress {

struct WorkContext {
  const Model* model = nullptr;
  const Plan* plan = nullptr;
  const Layout* layout = nullptr;
  // Fixed by the first run: how large the pieces are. Never changes the bytes.
  int parallelism = 1;
  uint64_t memory_budget_bytes = 0;
  bool measure_error = false;
  // The units to write, positions in layout->units; nothing else is written.
  size_t unit_begin = 0;
  size_t unit_end = 0;
};

// All the work of one compression, or of some of its units. RunAvailable from
// one thread at a time.
class WorkList {
 public:
  explicit WorkList(const WorkContext& context);
  ~WorkList();

  // Runs every item whose input lies below `available_bytes` and was not run.
  // `advance` is called after each window with its input bytes, from compute
  // threads; an error (kCancelled) ends the run.
  absl::Status RunAvailable(
      ByteSource& bin, uint64_t available_bytes, ByteSink& out,
      Executor& executor,
      const std::function<absl::Status(uint64_t bytes)>& advance);

  // Output below this offset is final. Thread-safe.
  uint64_t output_prefix_bytes() const;
  // Input below this offset is read no more. Between runs only.
  uint64_t input_needed_from() const;
  uint64_t weights_done() const;  // thread-safe
  // By unit, summed over items in their order; empty if not measured.
  std::vector<SquaredSums> ErrorsByUnit() const;
  bool finished() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// Size of one window for this budget and parallelism.
uint64_t WindowBytes(uint64_t memory_budget_bytes, int parallelism);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_WORK_H_
