// Where jobs live: SQLite in the embedded default, a shared database when
// several servers work on one queue. Each method is one atomic, durable step:
// what it answered survives a crash.
#ifndef OVPRESS_SERVER_JOBS_JOB_STORE_H_
#define OVPRESS_SERVER_JOBS_JOB_STORE_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/job.h"

namespace ovpress {

struct JobFilter {
  std::optional<std::string> owner;           // nullopt: all (admin)
  std::vector<JobState> states;               // empty: any
  std::map<std::string, std::string> labels;  // all must match
};

struct JobPage {
  std::vector<JobRecord> jobs;  // newest first
  std::string next_page_token;  // empty on the last page
};

// How an attempt ended.
struct JobOutcome {
  JobState state = JobState::kFailed;  // final
  absl::Status error;                  // unless kSucceeded
  JobResult result;                    // if kSucceeded
  absl::Time finished;
  absl::Time expires;
};

// Thread-safe. kUnavailable if the database cannot be reached or is busy for
// too long, kDataLoss if it is damaged, kResourceExhausted on a full disk.
class JobStore {
 public:
  virtual ~JobStore() = default;

  // Inserts `job` (id set, state kQueued or, from the result cache,
  // kSucceeded). If its owner used its request_id before, nothing is inserted
  // and the stored job comes back with `existed`; the caller compares the
  // arguments.
  struct Inserted {
    JobRecord job;
    bool existed = false;
  };
  virtual absl::StatusOr<Inserted> Insert(const JobRecord& job) = 0;

  // kNotFound.
  virtual absl::StatusOr<JobRecord> Get(absl::string_view id) = 0;
  virtual absl::StatusOr<std::optional<JobRecord>> FindByRequestId(
      absl::string_view owner, absl::string_view request_id) = 0;

  // `page_token` is "" or of the page before with the same filter, else
  // kInvalidArgument.
  virtual absl::StatusOr<JobPage> List(const JobFilter& filter, int page_size,
                                       absl::string_view page_token) = 0;

  // A job that succeeded for `owner` with this key and has not expired.
  virtual absl::StatusOr<std::optional<JobRecord>> FindResult(
      absl::string_view owner, absl::string_view cache_key, absl::Time now) = 0;

  // Jobs that someone may claim: queued ones, and running ones whose lease is
  // over. Highest priority first, then oldest. `limit` bounds the answer.
  virtual absl::StatusOr<std::vector<JobRecord>> ListClaimable(absl::Time now,
                                                               int limit) = 0;
  // Takes a job: RUNNING, attempt + 1, a new fencing token, lease until
  // `lease_expires`. kAborted if it is not claimable (any more), kNotFound.
  virtual absl::StatusOr<JobRecord> Claim(absl::string_view id,
                                          absl::string_view server_id,
                                          absl::Time now,
                                          absl::Time lease_expires) = 0;
  // Prolongs the lease; the answer says whether someone asked to cancel.
  // kAborted if the token is not the job's any more.
  struct Renewed {
    bool cancel_requested = false;
  };
  virtual absl::StatusOr<Renewed> Renew(absl::string_view id,
                                        int64_t fencing_token,
                                        absl::Time lease_expires) = 0;
  // Ends a running job. kAborted if the token is not the job's any more: the
  // caller must drop what it made.
  virtual absl::Status Finish(absl::string_view id, int64_t fencing_token,
                              const JobOutcome& outcome) = 0;
  // RUNNING -> QUEUED: hands the job back. kAborted as for Finish.
  virtual absl::Status Requeue(absl::string_view id, int64_t fencing_token) = 0;
  // At start-up: all jobs that `server_id` ran when it stopped are queued
  // again; returns them.
  virtual absl::StatusOr<std::vector<JobRecord>> RequeueOf(
      absl::string_view server_id) = 0;
  // A queued job ends as kCancelled with the given times; a running one is
  // marked (its server sees it at the next Renew); a finished one is left.
  // Returns the job after that. kNotFound.
  virtual absl::StatusOr<JobRecord> RequestCancel(absl::string_view id,
                                                  absl::Time now,
                                                  absl::Time expires) = 0;
  // Ends a queued job without a run (its inputs are gone, too many attempts).
  // kAborted if it is not queued.
  virtual absl::Status FailQueued(absl::string_view id,
                                  const JobOutcome& outcome) = 0;
  // kFailedPrecondition unless final; kNotFound.
  virtual absl::Status Delete(absl::string_view id) = 0;
  // Deletes finished jobs with expires <= now, at most `limit`; returns them.
  virtual absl::StatusOr<std::vector<JobRecord>> DeleteExpired(absl::Time now,
                                                               int limit) = 0;
  // All jobs that hold blobs, to pin them at start-up: unfinished ones and
  // those that succeeded.
  virtual absl::StatusOr<std::vector<JobRecord>> ListHolders() = 0;

  struct Counts {
    int queued = 0;
    int running = 0;
  };
  virtual absl::StatusOr<Counts> Count(std::optional<std::string> owner) = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_JOB_STORE_H_
