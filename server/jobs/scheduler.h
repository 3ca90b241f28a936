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
  int attempt = 0;  // starts so far
};

struct OwnerUse {
  int running = 0;
  // Memory x time used lately is not kept: the last start alone makes owners
  // with equal running jobs take turns.
  int64_t last_start = 0;  // larger is later; 0 or less: never
  // This owner's own limit; 0: none. Not set: max_running_per_owner.
  std::optional<int> max_running;
};

struct SchedulerState {
  int running = 0;  // on this server, as the memory
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

// The jobs of which one may start now, at most `limit`, best first: none if all
// places are taken. Owners at their limit and jobs that lack memory are passed
// over, but nobody passes a job that has waited overtaking_limit for memory.
// Other servers on the same queue may take those at the front meanwhile;
// therefore several.
std::vector<size_t> PickNext(const std::vector<WaitingJob>& waiting,
                             const SchedulerState& state, absl::Time now,
                             const JobLimits& limits, size_t limit);

// Does a job wait that may start here once all memory is free? While one does,
// memory is for it and not for help with the jobs of other servers.
bool JobsWait(const std::vector<WaitingJob>& waiting, SchedulerState state,
              absl::Time now, const JobLimits& limits);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_SCHEDULER_H_
