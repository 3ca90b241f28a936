// How long a thread's calls may wait for somebody else: an object store that
// asks to slow down, a database that is being restarted. Whoever asked for the
// work says when it is not wanted any more; what waits, deep below, looks.
#ifndef OVPRESS_CORE_BASE_PATIENCE_H_
#define OVPRESS_CORE_BASE_PATIENCE_H_

#include <algorithm>
#include <atomic>
#include <chrono>
#include <thread>

namespace ovpress {

// While it lives, calls below on this thread end soon (kCancelled, or as if
// time were over) once `stop` is set and `grace` has passed since that was
// first seen. The innermost one counts. `stop` may be null: for ever.
class Patience {
 public:
  using Clock = std::chrono::steady_clock;

  explicit Patience(const std::atomic<bool>* stop,
                    Clock::duration grace = Clock::duration::zero())
      : stop_(stop), grace_(grace), outer_(current_) {
    current_ = this;
  }
  ~Patience() { current_ = outer_; }
  Patience(const Patience&) = delete;
  Patience& operator=(const Patience&) = delete;

  // This thread's flag, to hand it to a thread that works for it; or null.
  static const std::atomic<bool>* Stop() {
    return current_ == nullptr ? nullptr : current_->stop_;
  }
  static bool Over() {
    if (current_ == nullptr || current_->stop_ == nullptr ||
        !current_->stop_->load(std::memory_order_relaxed)) {
      return false;
    }
    if (current_->grace_ == Clock::duration::zero()) return true;
    const Clock::time_point now = Clock::now();
    if (current_->end_ == Clock::time_point::max()) {
      current_->end_ = now + current_->grace_;
    }
    return now >= current_->end_;
  }
  // Waits with a look at Over() at least this often.
  static constexpr std::chrono::milliseconds kLook{50};
  // Sleeps, less if it is over.
  static void Sleep(Clock::duration span) {
    const Clock::time_point until = Clock::now() + span;
    for (Clock::time_point now = Clock::now(); now < until && !Over();
         now = Clock::now()) {
      std::this_thread::sleep_for(
          std::min<Clock::duration>(until - now, kLook));
    }
  }
  // When to look again, no later than `until`.
  static Clock::time_point Next(Clock::time_point until) {
    return std::min(until, Clock::now() + kLook);
  }

 private:
  static inline thread_local Patience* current_ = nullptr;

  const std::atomic<bool>* const stop_;
  const Clock::duration grace_;
  Patience* const outer_;
  Clock::time_point end_ = Clock::time_point::max();
};

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_PATIENCE_H_
