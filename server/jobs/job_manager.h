// The heart of the service: takes jobs, queues them, runs several at a time,
// tells how they do, keeps their ends. Knows no network.
//
// Threads: one service thread (ticks, starts, watchers) and one thread for each
// running job, which blocks in the runner; compute happens on the shared
// FairExecutor. Callers' threads do store I/O in Submit/Get/List/Cancel, so
// never call these from a gRPC reaction.
#ifndef OVPRESS_SERVER_JOBS_JOB_MANAGER_H_
#define OVPRESS_SERVER_JOBS_JOB_MANAGER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/clock.h"
#include "server/jobs/fair_executor.h"
#include "server/jobs/job.h"
#include "server/jobs/job_runner.h"
#include "server/jobs/job_store.h"
#include "server/jobs/limits.h"
#include "server/jobs/observer.h"
#include "server/jobs/quotas.h"

namespace ovpress {

struct JobManagerOptions {
  JobLimits limits;
  // All REQUIRED but `observer` and `quotas`; all outlive the manager.
  JobStore* jobs = nullptr;
  BlobStore* blobs = nullptr;
  JobRunner* runner = nullptr;
  FairExecutor* executor = nullptr;
  Clock* clock = nullptr;
  Observer* observer = nullptr;
  const QuotaSource* quotas = nullptr;  // owners whose limits differ
  // Names this server in leases; no other server on the same queue may have
  // it. The same after a restart, so that it takes its own jobs back at once
  // instead of waiting for the lease to end.
  std::string server_id = "local";
};

struct JobManagerStats {
  int queued = 0;
  int running = 0;
  int helping = 0;  // at a part of another server's job
  int streams = 0;
  int watchers = 0;
  uint64_t reserved_memory_bytes = 0;
  uint64_t total_memory_bytes = 0;
  bool draining = false;
};

// Ends the subscription when destroyed; the callback does not run after that
// (destroying waits for a call in progress, unless it is this very call).
class Watch {
 public:
  virtual ~Watch() = default;
};

// A place among the running work for a CompressStream call: memory set aside,
// an executor, a stop flag that drain and shutdown set. Freed when destroyed.
class StreamSlot {
 public:
  virtual ~StreamSlot() = default;
  virtual Executor* executor() = 0;
  virtual const std::atomic<bool>* stop() const = 0;
  virtual uint64_t memory_budget_bytes() const = 0;
};

struct StreamRequest {
  std::string owner;
  int priority = 0;
  uint64_t memory_budget_bytes = 0;  // 0: default
};

struct DrainReport {
  int finished = 0;  // jobs that ended within the limit
  int requeued = 0;  // handed back; the next start runs them again
  int queued = 0;    // still waiting in the store
};

// Thread-safe. Every `owner` argument is the caller's identity; nullopt is an
// admin, who sees all. Jobs of others are kNotFound.
class JobManager {
 public:
  using Owner = std::optional<std::string>;

  // Takes back the jobs that ran when the last process stopped, pins the blobs
  // of all stored jobs, starts the service thread.
  static absl::StatusOr<std::unique_ptr<JobManager>> Create(
      JobManagerOptions options);
  // Stops running jobs and hands them back (as Drain with no time).
  virtual ~JobManager() = default;

  // Checks everything before anything starts; in order: draining
  // (kUnavailable), the spec's own limits (kInvalidArgument), a used request_id
  // (the first job comes back, or kAlreadyExists if the arguments differ),
  // blobs (kFailedPrecondition, GetMissingBlobs), result cache, the estimate
  // (the runner's codes), memory, queue length, disk (kResourceExhausted,
  // GetLimitDetails). With `validate_only` nothing is stored and the returned
  // view has no id.
  virtual absl::StatusOr<JobView> Submit(const JobSpec& spec,
                                         bool validate_only) = 0;
  absl::StatusOr<JobView> Submit(const JobSpec& spec) {
    return Submit(spec, false);
  }

  virtual absl::StatusOr<JobView> Get(const Owner& owner,
                                      absl::string_view id) = 0;
  struct Page {
    std::vector<JobView> jobs;
    std::string next_page_token;
  };
  // filter.owner is replaced by `owner`. page_size 0 means the default.
  virtual absl::StatusOr<Page> List(const Owner& owner, JobFilter filter,
                                    int page_size,
                                    absl::string_view page_token) = 0;
  // Queued: ends at once. Running: stops within a second. Finished: OK.
  virtual absl::Status Cancel(const Owner& owner, absl::string_view id) = 0;
  // kFailedPrecondition unless finished. Releases the result.
  virtual absl::Status Delete(const Owner& owner, absl::string_view id) = 0;

  // Calls `callback` on the service thread: soon with the state now, then at
  // changes (progress coalesced to one each watch_interval), last with a final
  // state. It must not block; watchers never hold up compute. If the job is
  // deleted, or this process gives up watching, it is called with an error.
  using WatchCallback = std::function<void(const absl::StatusOr<JobView>&)>;
  virtual absl::StatusOr<std::unique_ptr<Watch>> Subscribe(
      const Owner& owner, absl::string_view id, WatchCallback callback) = 0;
  // Blocks until the job is final or `timeout` of real time is over; returns
  // the state then.
  virtual absl::StatusOr<JobView> Wait(const Owner& owner, absl::string_view id,
                                       absl::Duration timeout) = 0;

  // Admission for work outside the queue. kResourceExhausted, kUnavailable.
  virtual absl::StatusOr<std::unique_ptr<StreamSlot>> OpenStream(
      const StreamRequest& request) = 0;

  // Submit() and OpenStream() answer kUnavailable from here on; no queued job
  // starts any more.
  virtual void StopAdmitting() = 0;
  // StopAdmitting, then waits up to `limit` of real time for running jobs and
  // streams, then stops the rest and hands jobs back to the store.
  virtual DrainReport Drain(absl::Duration limit) = 0;

  // One round of upkeep: deadlines, leases, expiry, watchers, starts. The
  // service thread does it each tick_interval; tests call it.
  virtual void Tick() = 0;
  virtual JobManagerStats Stats() = 0;
};

// SHA-256 over input digests, canonical options and the engine's version.
std::string ResultCacheKey(const JobSpec& spec,
                           absl::string_view engine_version);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_JOB_MANAGER_H_
