// Which waiting job starts next. Pure functions of values, so that policy can
// be tested without threads.
#ifndef OVPRESS_SERVER_JOBS_SCHEDULER_H_
#define OVPRESS_SERVER_JOBS_SCHEDULER_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/time/time.h"
#include "server/jobs/limits.h"

namespace ovpress {

struct WaitingJob {
  std::string id;
  std::string owner;
  int priority = 0;
  uint64_t memory_bytes = 0;
  absl::Time created;
};

struct OwnerUse {
  int running = 0;
  // Memory x time used lately is not kept: the last start alone makes owners
  // with equal running jobs take turns.
  int64_t last_start = 0;  // a counter: larger is later; 0: never
  // This owner's own limit; 0: none. Not set: max_running_per_owner.
  std::optional<int> max_running;
};

struct SchedulerState {
  int running = 0;
  uint64_t free_memory_bytes = 0;
  std::map<std::string, OwnerUse> owners;
};

// Priority plus one for each full aging_step of waiting.
int64_t EffectivePriority(const WaitingJob& job, absl::Time now,
                          const JobLimits& limits);

// The whole line, next first: effective priority, then owners with fewer
// running jobs, then those whose last start is longest ago, then the oldest.
// Within it, jobs of one owner count as if those before them ran already, so
// that two owners alternate. Indices into `waiting`.
std::vector<size_t> QueueOrder(const std::vector<WaitingJob>& waiting,
                               const SchedulerState& state, absl::Time now,
                               const JobLimits& limits);

// The job to start now, or nullopt: all places taken, owners at their limit, or
// memory lacking. The first in line that only lacks memory lets others pass
// until it has waited overtaking_limit.
std::optional<size_t> PickNext(const std::vector<WaitingJob>& waiting,
                               const SchedulerState& state, absl::Time now,
                               const JobLimits& limits);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_SCHEDULER_H_
