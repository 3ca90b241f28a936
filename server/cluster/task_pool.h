// Threads that wait on the network so that others need not. Tasks run in the
// order in which they came, several at a time.
#ifndef OVPRESS_SERVER_CLUSTER_TASK_POOL_H_
#define OVPRESS_SERVER_CLUSTER_TASK_POOL_H_

#include <deque>
#include <functional>
#include <thread>
#include <utility>
#include <vector>

#include "core/base/mutex.h"

namespace ovpress {

// Thread-safe.
class TaskPool {
 public:
  explicit TaskPool(int threads) {
    for (int i = 0; i < threads; ++i) {
      threads_.emplace_back([this] { Work(); });
    }
  }
  // Runs what is queued, then ends.
  ~TaskPool() {
    {
      MutexLock lock(&mutex_);
      ending_ = true;
    }
    changed_.SignalAll();
    for (std::thread& thread : threads_) thread.join();
  }
  void Add(std::function<void()> task) {
    {
      MutexLock lock(&mutex_);
      queue_.push_back(std::move(task));
    }
    changed_.Signal();
  }

 private:
  void Work() {
    for (;;) {
      std::function<void()> task;
      {
        MutexLock lock(&mutex_);
        while (queue_.empty() && !ending_) changed_.Wait(&mutex_);
        if (queue_.empty()) return;
        task = std::move(queue_.front());
        queue_.pop_front();
      }
      task();
    }
  }

  Mutex mutex_;
  CondVar changed_;
  std::deque<std::function<void()>> queue_ ABSL_GUARDED_BY(mutex_);
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::vector<std::thread> threads_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_TASK_POOL_H_
