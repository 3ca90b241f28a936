#include "client/cli/progress.h"

#include <unistd.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"

namespace ovpress {
namespace {

constexpr std::chrono::milliseconds kRedraw{100};
constexpr int kBarWidth = 24;

}  // namespace

std::string HumanBytes(uint64_t bytes) {
  constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  double value = static_cast<double>(bytes);
  size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return unit == 0 ? absl::StrCat(bytes, " B")
                   : absl::StrFormat("%.1f %s", value, kUnits[unit]);
}

ProgressBar::ProgressBar(bool enabled, FILE* out)
    : enabled_(enabled && ::isatty(::fileno(out)) == 1), out_(out) {}

ProgressBar::~ProgressBar() { Finish(); }

void ProgressBar::Update(absl::string_view phase, uint64_t done, uint64_t total,
                         absl::string_view note) {
  if (!enabled_) return;
  MutexLock lock(&mutex_);
  const auto now = std::chrono::steady_clock::now();
  if (phase != phase_) {
    phase_ = std::string(phase);
    phase_start_ = now;
    phase_start_bytes_ = done;
  } else if (now - last_draw_ < kRedraw && done < total) {
    return;
  }
  last_draw_ = now;
  std::string line = absl::StrFormat("\r\033[K%-12s", phase_);
  if (total > 0) {
    const double share =
        std::min(1.0, static_cast<double>(done) / static_cast<double>(total));
    const int filled = static_cast<int>(share * kBarWidth);
    absl::StrAppend(&line, "[", std::string(static_cast<size_t>(filled), '='),
                    std::string(static_cast<size_t>(kBarWidth - filled), ' '),
                    absl::StrFormat("] %3.0f%%  ", share * 100),
                    HumanBytes(done), " of ", HumanBytes(total));
    const double seconds =
        std::chrono::duration<double>(now - phase_start_).count();
    const double rate =
        seconds > 0.2
            ? static_cast<double>(done - std::min(done, phase_start_bytes_)) /
                  seconds
            : 0;
    if (rate > 0) {
      absl::StrAppend(
          &line, "  ", HumanBytes(static_cast<uint64_t>(rate)), "/s  ",
          absl::StrFormat(
              "%.0f s left",
              static_cast<double>(total - std::min(total, done)) / rate));
    }
  }
  if (!note.empty()) absl::StrAppend(&line, "  ", note);
  std::fputs(line.c_str(), out_);
  std::fflush(out_);
  drawn_ = true;
}

void ProgressBar::Finish() {
  if (!enabled_) return;
  MutexLock lock(&mutex_);
  if (drawn_) {
    std::fputs("\r\033[K", out_);
    std::fflush(out_);
  }
  drawn_ = false;
  phase_.clear();
}

}  // namespace ovpress
