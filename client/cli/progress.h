// A progress bar for terminals: phase, bytes, rate, time left. Silent when
// standard error is no terminal.
#ifndef OVPRESS_CLIENT_CLI_PROGRESS_H_
#define OVPRESS_CLIENT_CLI_PROGRESS_H_

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <string>

#include "absl/strings/string_view.h"
#include "core/base/mutex.h"

namespace ovpress {

// "1.5 GiB", "312 KiB", "17 B".
std::string HumanBytes(uint64_t bytes);

// Thread-safe. Draws at most ten times a second on one line.
class ProgressBar {
 public:
  // Draws nothing unless `enabled` and `out` is a terminal.
  ProgressBar(bool enabled, FILE* out);
  ~ProgressBar();
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `total` 0: unknown. `note` is shown behind (queue position ...).
  void Update(absl::string_view phase, uint64_t done, uint64_t total,
              absl::string_view note);
  // Clears the line; later updates start a new one.
  void Finish();

 private:
  const bool enabled_;
  FILE* const out_;
  Mutex mutex_;
  std::string phase_ ABSL_GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point phase_start_ ABSL_GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point last_draw_ ABSL_GUARDED_BY(mutex_);
  uint64_t phase_start_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool drawn_ ABSL_GUARDED_BY(mutex_) = false;
};

}  // namespace ovpress

#endif  // OVPRESS_CLIENT_CLI_PROGRESS_H_
