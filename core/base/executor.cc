#include "core/base/executor.h"

#include <algorithm>
#include <atomic>
#include <thread>
#include <vector>

#include "core/base/memory.h"
#include "core/base/mutex.h"
#include "core/base/sanitizers.h"
#include "oneapi/tbb/global_control.h"
#include "oneapi/tbb/info.h"
#include "oneapi/tbb/task_arena.h"
#include "oneapi/tbb/task_group.h"

namespace ovpress {
namespace {

// The shared state of one ParallelFor: whoever has time takes the next index.
class Loop {
 public:
  Loop(size_t count, absl::FunctionRef<absl::Status(size_t)> body)
      : count_(count), body_(body) {}

  void Drain() {
    while (!failed_.load(std::memory_order_relaxed)) {
      const size_t index = next_.fetch_add(1, std::memory_order_relaxed);
      if (index >= count_) return;
      absl::Status status = CatchOutOfMemory([&] { return body_(index); });
      if (!status.ok()) Fail(index, std::move(status));
    }
  }

  absl::Status TakeStatus() {
    MutexLock lock(&mutex_);
    return std::move(status_);
  }

 private:
  void Fail(size_t index, absl::Status status) {
    MutexLock lock(&mutex_);
    if (status_.ok() || index < failed_index_) {
      status_ = std::move(status);
      failed_index_ = index;
    }
    failed_.store(true, std::memory_order_relaxed);
  }

  const size_t count_;
  const absl::FunctionRef<absl::Status(size_t)> body_;
  std::atomic<size_t> next_{0};
  std::atomic<bool> failed_{false};
  Mutex mutex_;
  absl::Status status_ ABSL_GUARDED_BY(mutex_);
  size_t failed_index_ ABSL_GUARDED_BY(mutex_) = 0;
};

class SerialExecutor final : public Executor {
 public:
  int parallelism() const override { return 1; }
  absl::Status ParallelFor(
      size_t count, absl::FunctionRef<absl::Status(size_t)> body) override {
    for (size_t i = 0; i < count; ++i) {
      absl::Status status = CatchOutOfMemory([&] { return body(i); });
      if (!status.ok()) return status;
    }
    return absl::OkStatus();
  }
};

class ThreadsExecutor final : public Executor {
 public:
  explicit ThreadsExecutor(int threads) : threads_(std::max(1, threads)) {}
  int parallelism() const override { return threads_; }
  absl::Status ParallelFor(
      size_t count, absl::FunctionRef<absl::Status(size_t)> body) override {
    Loop loop(count, body);
    std::vector<std::thread> helpers;
    const size_t wanted = std::min<size_t>(count, threads_);
    for (size_t i = 1; i < wanted; ++i) {
      helpers.emplace_back([&loop] { loop.Drain(); });
    }
    loop.Drain();
    for (std::thread& helper : helpers) helper.join();
    return loop.TakeStatus();
  }

 private:
  const int threads_;
};

class TbbExecutor final : public Executor {
 public:
  explicit TbbExecutor(int threads)
      : threads_(threads > 0 ? threads
                             : oneapi::tbb::info::default_concurrency()),
        arena_(threads_) {
    // oneTBB makes no more workers than processors unless it is told to.
    if (threads_ > oneapi::tbb::info::default_concurrency()) {
      more_workers_ = std::make_unique<oneapi::tbb::global_control>(
          oneapi::tbb::global_control::max_allowed_parallelism,
          static_cast<size_t>(threads_));
    }
  }
  int parallelism() const override { return threads_; }
  absl::Status ParallelFor(
      size_t count, absl::FunctionRef<absl::Status(size_t)> body) override {
    Loop loop(count, body);
    const size_t wanted = std::min<size_t>(count, threads_);
    arena_.execute([&] {
      oneapi::tbb::task_group group;
      for (size_t i = 1; i < wanted; ++i) {
        group.run([&loop] { loop.Drain(); });
      }
      loop.Drain();
      group.wait();
    });
    return loop.TakeStatus();
  }

 private:
  const int threads_;
  std::unique_ptr<oneapi::tbb::global_control> more_workers_;
  oneapi::tbb::task_arena arena_;
};

}  // namespace

std::unique_ptr<Executor> MakeSerialExecutor() {
  return std::make_unique<SerialExecutor>();
}
std::unique_ptr<Executor> MakeThreadsExecutor(int threads) {
  return std::make_unique<ThreadsExecutor>(threads);
}
std::unique_ptr<Executor> MakeTbbExecutor(int threads) {
  if (kThreadSanitizer) {
    return MakeThreadsExecutor(
        threads > 0 ? threads : oneapi::tbb::info::default_concurrency());
  }
  return std::make_unique<TbbExecutor>(threads);
}

}  // namespace ovpress
