// Time as an argument, so that tests decide what time it is.
#ifndef OVPRESS_SERVER_JOBS_CLOCK_H_
#define OVPRESS_SERVER_JOBS_CLOCK_H_

#include <atomic>
#include <cstdint>

#include "absl/time/clock.h"
#include "absl/time/time.h"

namespace ovpress {

// Thread-safe.
class Clock {
 public:
  virtual ~Clock() = default;
  virtual absl::Time Now() = 0;
};

class SystemClock final : public Clock {
 public:
  absl::Time Now() override { return absl::Now(); }
};

// Stands still until advanced.
class FakeClock final : public Clock {
 public:
  absl::Time Now() override { return absl::FromUnixMicros(micros_.load()); }
  void Advance(absl::Duration by) { micros_ += absl::ToInt64Microseconds(by); }

 private:
  std::atomic<int64_t> micros_{1'700'000'000'000'000};
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_CLOCK_H_
