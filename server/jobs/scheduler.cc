#include "server/jobs/scheduler.h"

#include <algorithm>
#include <tuple>

namespace ovpress {

int64_t EffectivePriority(const WaitingJob& job, absl::Time now,
                          const JobLimits& limits) {
  if (now <= job.created || limits.aging_step <= absl::ZeroDuration()) {
    return job.priority;
  }
  absl::Duration rest;
  return job.priority +
         absl::IDivDuration(now - job.created, limits.aging_step, &rest);
}

std::vector<size_t> QueueOrder(const std::vector<WaitingJob>& waiting,
                               const SchedulerState& state, absl::Time now,
                               const JobLimits& limits) {
  // Each owner's jobs in their own order; then the owners' heads compete.
  std::map<std::string, std::vector<size_t>> by_owner;
  for (size_t i = 0; i < waiting.size(); ++i) {
    by_owner[waiting[i].owner].push_back(i);
  }
  std::vector<int64_t> priority(waiting.size());
  for (size_t i = 0; i < waiting.size(); ++i) {
    priority[i] = EffectivePriority(waiting[i], now, limits);
  }
  struct Head {
    const std::vector<size_t>* line = nullptr;
    size_t position = 0;
    int64_t running = 0;
    int64_t last_start = 0;
  };
  std::vector<Head> heads;
  int64_t start_counter = 0;
  for (auto& [owner, line] : by_owner) {
    std::sort(line.begin(), line.end(), [&](size_t a, size_t b) {
      return std::make_tuple(-priority[a], waiting[a].created, waiting[a].id) <
             std::make_tuple(-priority[b], waiting[b].created, waiting[b].id);
    });
    Head head{.line = &line};
    if (const auto it = state.owners.find(owner); it != state.owners.end()) {
      head.running = it->second.running;
      head.last_start = it->second.last_start;
      start_counter = std::max(start_counter, it->second.last_start);
    }
    heads.push_back(head);
  }
  std::vector<size_t> order;
  order.reserve(waiting.size());
  // Owners are few beside jobs; a scan for each job keeps this plain.
  while (order.size() < waiting.size()) {
    Head* best = nullptr;
    const auto key = [&](const Head& head) {
      const size_t job = (*head.line)[head.position];
      return std::make_tuple(-priority[job], head.running, head.last_start,
                             waiting[job].created, waiting[job].id);
    };
    for (Head& head : heads) {
      if (head.position == head.line->size()) continue;
      if (best == nullptr || key(head) < key(*best)) best = &head;
    }
    order.push_back((*best->line)[best->position++]);
    ++best->running;
    best->last_start = ++start_counter;
  }
  return order;
}

std::vector<size_t> PickNext(const std::vector<WaitingJob>& waiting,
                             const SchedulerState& state, absl::Time now,
                             const JobLimits& limits, size_t limit) {
  std::vector<size_t> picked;
  if (state.running >= limits.max_running) return picked;
  for (const size_t index : QueueOrder(waiting, state, now, limits)) {
    if (picked.size() == limit) break;
    const WaitingJob& job = waiting[index];
    // It can never run here; a server with more memory will take it.
    if (job.memory_bytes > limits.total_memory_bytes) continue;
    const auto owner = state.owners.find(job.owner);
    if (owner != state.owners.end()) {
      const int most =
          owner->second.max_running.value_or(limits.max_running_per_owner);
      if (most > 0 && owner->second.running >= most) continue;
    }
    if (job.memory_bytes <= state.free_memory_bytes) {
      picked.push_back(index);
      continue;
    }
    // Nobody passes a job that has waited long enough, or a stream of small
    // ones would keep the memory away from it for ever.
    if (now - job.created >= limits.overtaking_limit) break;
  }
  return picked;
}

bool JobsWait(const std::vector<WaitingJob>& waiting, SchedulerState state,
              absl::Time now, const JobLimits& limits) {
  state.free_memory_bytes = limits.total_memory_bytes;
  return !PickNext(waiting, state, now, limits, 1).empty();
}

}  // namespace ovpress
