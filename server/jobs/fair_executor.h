// One set of threads for all jobs. Each running job gets an Executor of its
// own (a view); every free thread asks which view is owed work most and takes
// one index of its loop. So a small job gets its share beside a huge one at
// once, and a job alone gets all threads.
#ifndef OVPRESS_SERVER_JOBS_FAIR_EXECUTOR_H_
#define OVPRESS_SERVER_JOBS_FAIR_EXECUTOR_H_

#include <cstdint>
#include <functional>
#include <memory>

#include "core/base/executor.h"

namespace ovpress {

struct FairExecutorOptions {
  // Bodies at a time over all views. 0: what the process may use.
  int threads = 0;
  // kTbb: tasks in one oneTBB arena. kThreads: plain threads, which
  // ThreadSanitizer understands; under it both are these.
  enum class Backend { kTbb, kThreads };
  Backend backend = Backend::kTbb;
  // Nanoseconds for measuring what a body cost; tests inject a counter. Null:
  // the steady clock.
  std::function<int64_t()> now_ns;
};

// Thread-safe. Views must be destroyed before the pool.
//
// Fairness is stride scheduling on measured time: a view's clock advances by
// the time that its bodies took divided by its weight, and the view with the
// lowest clock goes next. A view that was idle starts at the clock of the
// others: sleeping earns nothing. Granularity is one body (milliseconds in the
// engine).
class FairExecutor {
 public:
  static std::unique_ptr<FairExecutor> Create(FairExecutorOptions options);
  virtual ~FairExecutor() = default;

  // `weight` > 0: a view of weight 2 gets twice the time of one of weight 1
  // when both want all threads. The view's parallelism() is the pool's: an
  // upper bound, since other views come and go. ParallelFor() blocks its
  // caller, which does not take part unless it is a thread of this pool
  // (nested loops).
  virtual std::unique_ptr<Executor> MakeView(double weight) = 0;
  virtual int threads() const = 0;
};

// Weight of a job's view from its priority: doubles every 25 levels, 1 at 0,
// between 1/16 and 16.
double WeightOfPriority(int priority);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_FAIR_EXECUTOR_H_
