#include "server/jobs/job.h"

namespace ovpress {
namespace {

struct NamedState {
  JobState state;
  absl::string_view name;
};
constexpr NamedState kStates[] = {
    {JobState::kQueued, "QUEUED"},       {JobState::kRunning, "RUNNING"},
    {JobState::kSucceeded, "SUCCEEDED"}, {JobState::kFailed, "FAILED"},
    {JobState::kCancelled, "CANCELLED"},
};

}  // namespace

absl::string_view JobStateName(JobState state) {
  for (const NamedState& named : kStates) {
    if (named.state == state) return named.name;
  }
  return "UNKNOWN";
}

std::optional<JobState> ParseJobState(absl::string_view name) {
  for (const NamedState& named : kStates) {
    if (named.name == name) return named.state;
  }
  return std::nullopt;
}

}  // namespace ovpress
