#include "server/jobs/fair_executor.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <list>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/check.h"
#include "core/base/memory.h"
#include "core/base/mutex.h"
#include "core/base/sanitizers.h"
#include "oneapi/tbb/global_control.h"
#include "oneapi/tbb/info.h"
#include "oneapi/tbb/task_arena.h"

namespace ovpress {
namespace {

class FairPool;

// The pool whose body this thread runs, to recognize nested loops.
thread_local const FairPool* current_pool = nullptr;

// One ParallelFor. All members are guarded by the pool's mutex; C++ lets no
// annotation name it from here.
struct Loop {
  size_t count = 0;
  size_t next = 0;
  size_t active = 0;
  bool failed = false;
  size_t failed_index = 0;
  absl::Status status;
  const absl::FunctionRef<absl::Status(size_t)>* body = nullptr;

  bool has_work() const { return !failed && next < count; }
  bool done() const { return !has_work() && active == 0; }
};

struct View {
  double weight = 1;
  double clock = 0;       // weighted nanoseconds used
  double mean_cost = 1;   // of a body, for the charge in advance
  size_t active = 0;
  std::list<Loop*> loops;  // newest first: inner loops finish before outer ones

  Loop* NextLoop() {
    for (Loop* loop : loops) {
      if (loop->has_work()) return loop;
    }
    return nullptr;
  }
};

class FairPool final : public FairExecutor {
 public:
  explicit FairPool(FairExecutorOptions options)
      : threads_(options.threads > 0
                     ? options.threads
                     : oneapi::tbb::info::default_concurrency()),
        now_ns_(std::move(options.now_ns)) {
    if (options.backend == FairExecutorOptions::Backend::kTbb &&
        !kThreadSanitizer) {
      // By itself oneTBB makes one worker less than there are cores, since it
      // counts on the caller to take part. Ours waits.
      parallelism_ = std::make_unique<oneapi::tbb::global_control>(
          oneapi::tbb::global_control::max_allowed_parallelism, threads_ + 1);
      // No slot is kept for outside threads: callers wait, they do not join.
      arena_ = std::make_unique<oneapi::tbb::task_arena>(threads_, 0);
    } else {
      for (int i = 0; i < threads_; ++i) {
        plain_threads_.emplace_back([this] { PlainThread(); });
      }
    }
  }

  ~FairPool() override {
    {
      MutexLock lock(&mutex_);
      OVPRESS_CHECK(views_.empty());
      stopping_ = true;
      work_.SignalAll();
      // TBB tasks that were enqueued and found nothing to do must have left
      // before the members go.
      while (slots_ > 0) idle_.Wait(&mutex_);
    }
    for (std::thread& thread : plain_threads_) thread.join();
  }

  int threads() const override { return threads_; }
  std::unique_ptr<Executor> MakeView(double weight) override;

  void Add(View* view) {
    MutexLock lock(&mutex_);
    view->clock = LowestClock();
    views_.push_back(view);
  }

  void Remove(View* view) {
    MutexLock lock(&mutex_);
    OVPRESS_CHECK(view->loops.empty());
    views_.remove(view);
  }

  absl::Status Run(View* view, size_t count,
                   absl::FunctionRef<absl::Status(size_t)> body) {
    if (count == 0) return absl::OkStatus();
    Loop loop;
    loop.count = count;
    loop.body = &body;
    MutexLock lock(&mutex_);
    // A view that comes back from idleness has not saved up any claim.
    if (view->active == 0 && view->NextLoop() == nullptr) {
      view->clock = std::max(view->clock, LowestClock());
    }
    view->loops.push_front(&loop);
    WakeWorkers(count);
    if (current_pool == this) {
      // A nested loop: this thread's outer body waits for it, so it helps.
      while (loop.has_work()) RunOne(view, &loop);
    }
    while (!loop.done()) loop_done_.Wait(&mutex_);
    view->loops.remove(&loop);
    return std::move(loop.status);
  }

 private:
  int64_t Now() const {
    if (now_ns_) return now_ns_();
    return std::chrono::duration_cast<std::chrono::nanoseconds>(
               std::chrono::steady_clock::now().time_since_epoch())
        .count();
  }

  double LowestClock() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    double lowest = -1;
    for (View* view : views_) {
      if (view->active == 0 && view->NextLoop() == nullptr) continue;
      if (lowest < 0 || view->clock < lowest) lowest = view->clock;
    }
    return lowest < 0 ? last_clock_ : lowest;
  }

  View* PickView() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    View* best = nullptr;
    for (View* view : views_) {
      if (view->NextLoop() == nullptr) continue;
      if (best == nullptr || view->clock < best->clock) best = view;
    }
    return best;
  }

  // Runs one index of `loop`; the lock is let go meanwhile.
  void RunOne(View* view, Loop* loop) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const size_t index = loop->next++;
    ++loop->active;
    ++view->active;
    // Charged in advance with what bodies of this view usually cost, else all
    // threads would go to the same view before the first body returns.
    const double charged = view->mean_cost / view->weight;
    view->clock += charged;
    last_clock_ = std::max(last_clock_, view->clock);
    mutex_.Unlock();
    const FairPool* const outer = std::exchange(current_pool, this);
    const int64_t start = Now();
    absl::Status status =
        CatchOutOfMemory([&] { return (*loop->body)(index); });
    const double cost =
        std::max<double>(1, static_cast<double>(Now() - start));
    current_pool = outer;
    mutex_.Lock();
    view->clock += cost / view->weight - charged;
    view->mean_cost = 0.75 * view->mean_cost + 0.25 * cost;
    --view->active;
    --loop->active;
    if (!status.ok() && (!loop->failed || index < loop->failed_index)) {
      loop->failed = true;
      loop->failed_index = index;
      loop->status = std::move(status);
    }
    // The loop lives on its caller's stack: not touched after this.
    if (loop->done()) loop_done_.SignalAll();
  }

  void Work() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (View* view = PickView()) RunOne(view, view->NextLoop());
  }

  void WakeWorkers(size_t count) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if (arena_ == nullptr) {
      work_.SignalAll();
      return;
    }
    const size_t wanted =
        std::min<size_t>(count, static_cast<size_t>(threads_ - slots_));
    for (size_t i = 0; i < wanted; ++i) {
      ++slots_;
      arena_->enqueue([this] {
        MutexLock lock(&mutex_);
        Work();
        --slots_;
        idle_.SignalAll();
      });
    }
  }

  void PlainThread() {
    MutexLock lock(&mutex_);
    while (!stopping_) {
      Work();
      if (!stopping_ && PickView() == nullptr) work_.Wait(&mutex_);
    }
  }

  const int threads_;
  const std::function<int64_t()> now_ns_;
  std::unique_ptr<oneapi::tbb::global_control> parallelism_;
  std::unique_ptr<oneapi::tbb::task_arena> arena_;
  std::vector<std::thread> plain_threads_;

  mutable Mutex mutex_;
  CondVar work_;       // plain threads: there may be an index to take
  CondVar loop_done_;  // callers of ParallelFor
  CondVar idle_;       // the destructor
  std::list<View*> views_ ABSL_GUARDED_BY(mutex_);
  double last_clock_ ABSL_GUARDED_BY(mutex_) = 0;
  int slots_ ABSL_GUARDED_BY(mutex_) = 0;  // TBB tasks under way
  bool stopping_ ABSL_GUARDED_BY(mutex_) = false;
};

class FairView final : public Executor {
 public:
  FairView(FairPool* pool, double weight) : pool_(pool) {
    view_.weight = weight;
    pool_->Add(&view_);
  }
  ~FairView() override { pool_->Remove(&view_); }

  int parallelism() const override { return pool_->threads(); }
  absl::Status ParallelFor(
      size_t count, absl::FunctionRef<absl::Status(size_t)> body) override {
    return pool_->Run(&view_, count, body);
  }

 private:
  FairPool* const pool_;
  View view_;
};

std::unique_ptr<Executor> FairPool::MakeView(double weight) {
  OVPRESS_CHECK(weight > 0);
  return std::make_unique<FairView>(this, weight);
}

}  // namespace

std::unique_ptr<FairExecutor> FairExecutor::Create(
    FairExecutorOptions options) {
  return std::make_unique<FairPool>(std::move(options));
}

double WeightOfPriority(int priority) {
  return std::clamp(std::exp2(priority / 25.0), 1.0 / 16, 16.0);
}

}  // namespace ovpress
