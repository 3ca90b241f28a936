// Who runs the work: oneTBB in production, plain threads or the calling thread
// in tests. Results never depend on the executor.
#ifndef OVPRESS_CORE_BASE_EXECUTOR_H_
#define OVPRESS_CORE_BASE_EXECUTOR_H_

#include <cstddef>
#include <functional>
#include <memory>

#include "absl/functional/function_ref.h"
#include "absl/status/status.h"

namespace ovpress {

// Thread-safe: ParallelFor may be called from several threads at once and from
// inside a running `body` (nested loops share the same threads).
class Executor {
 public:
  virtual ~Executor() = default;

  // Upper bound of bodies that run at the same moment; at least 1.
  virtual int parallelism() const = 0;

  // Calls body(i) for every i in [0, count), handing indices out in ascending
  // order. After a body failed no further index is handed out; returns the
  // error of the lowest failed index among those that ran. Blocks until every
  // started body has returned.
  virtual absl::Status ParallelFor(
      size_t count, absl::FunctionRef<absl::Status(size_t)> body) = 0;
};

// Runs everything on the calling thread.
std::unique_ptr<Executor> MakeSerialExecutor();

// `threads` plain std::threads for each loop, the caller being one of them.
// For tests: ThreadSanitizer understands it.
std::unique_ptr<Executor> MakeThreadsExecutor(int threads);

// oneTBB, at most `threads` at once; 0 takes what the process may use
// (affinity mask respected). Under ThreadSanitizer plain threads, see
// sanitizers.h.
std::unique_ptr<Executor> MakeTbbExecutor(int threads);

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_EXECUTOR_H_
