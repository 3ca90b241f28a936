// Where jobs live: SQLite in the embedded default, a shared database when
// several servers work on one queue. Each method is one atomic, durable step:
// what it answered survives a crash.
#ifndef OVPRESS_SERVER_JOBS_JOB_STORE_H_
#define OVPRESS_SERVER_JOBS_JOB_STORE_H_

#include <cstdint>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/job.h"
#include "server/jobs/part_store.h"
#include "server/jobs/scheduler.h"

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

// How a job ended.
struct JobOutcome {
  JobState state = JobState::kFailed;  // final
  absl::Status error;                  // unless kSucceeded
  JobResult result;                    // if kSucceeded
  absl::Duration ttl;                  // kept so long from now
};

// Thread-safe. kUnavailable if the database cannot be reached or is busy for
// too long, kDataLoss if it is damaged, kResourceExhausted on a full disk.
//
// Time is the store's: servers whose clocks differ by minutes agree on leases
// and ends. Callers give spans; created, started, finished, expires and
// lease.expires of a JobRecord are set by the store.
class JobStore {
 public:
  virtual ~JobStore() = default;

  // Whether other servers may work on it at the same time. Such a store keeps
  // by itself, in the database, which blobs its jobs hold; a store of one
  // process leaves that to the process (ListHolders and pins).
  virtual bool shared() const = 0;
  // Calls `callback` (any thread, quick) soon after another server may have
  // changed a job; not reliably, so look now and then as well. Empty: no more
  // calls once this returns.
  virtual void OnChange(std::function<void()> callback) = 0;

  // Where servers share out parts of one job; null in a store of one server.
  // Lives as long as this.
  virtual PartStore* parts() { return nullptr; }

  // Inserts `job`: id set, state kQueued or, from the result cache, kSucceeded
  // and kept for `ttl`. If its owner used its request_id before, nothing is
  // inserted and the stored job comes back with `existed`; the caller compares
  // the arguments. Else, if it is kQueued and as many wait as may, nothing is
  // inserted either and `full` says where: however many servers insert at the
  // same moment, the last one finds a place. (Jobs that are handed back wait,
  // too, and may be more.)
  struct QueueLimits {
    int all = std::numeric_limits<int>::max();
    int owner = std::numeric_limits<int>::max();  // of the job's owner
  };
  enum class Full { kNo, kAll, kOwner };
  struct Inserted {
    JobRecord job;
    bool existed = false;
    Full full = Full::kNo;
  };
  virtual absl::StatusOr<Inserted> Insert(const JobRecord& job,
                                          absl::Duration ttl,
                                          const QueueLimits& limits) = 0;
  absl::StatusOr<Inserted> Insert(const JobRecord& job, absl::Duration ttl) {
    return Insert(job, ttl, {});
  }

  // Whether a job of `owner` would find a place now.
  virtual absl::StatusOr<Full> FindPlace(const std::string& owner,
                                         const QueueLimits& limits) = 0;

  // kNotFound.
  virtual absl::StatusOr<JobRecord> Get(absl::string_view id) = 0;
  // Those of `ids` that exist, in any order.
  virtual absl::StatusOr<std::vector<JobRecord>> GetAll(
      const std::vector<std::string>& ids) = 0;
  virtual absl::StatusOr<std::optional<JobRecord>> FindByRequestId(
      absl::string_view owner, absl::string_view request_id) = 0;

  // `page_token` is "" or of the page before with the same filter, else
  // kInvalidArgument.
  virtual absl::StatusOr<JobPage> List(const JobFilter& filter, int page_size,
                                       absl::string_view page_token) = 0;

  // A job that succeeded for `owner` with this key and has not expired; the
  // latest.
  virtual absl::StatusOr<std::optional<JobRecord>> FindResult(
      absl::string_view owner, absl::string_view cache_key) = 0;

  // What the scheduler needs to know of all servers' jobs.
  struct Line {
    absl::Time now;  // the store's clock
    // Jobs that someone may claim: queued ones, and running ones whose lease
    // is over. In no order.
    std::vector<WaitingJob> waiting;
    // Of owners with jobs in `waiting`: their running jobs (with a lease), and
    // when the last one started.
    std::map<std::string, OwnerUse> owners;
    // Whether a part of some job may wait for a server (PartStore::Take() knows
    // for sure).
    bool open_parts = false;
  };
  // `per_rank` > 0: of the queued jobs with equal owner and priority only so
  // many, the oldest. They alone can be next, so that a start costs the same
  // with ten jobs in line as with ten thousand.
  virtual absl::StatusOr<Line> GetLine(int per_rank) = 0;

  // Takes the first of `offers` that is claimable and that nobody else is
  // taking at this moment: RUNNING, attempt + 1, a new fencing token, a lease.
  // nullopt if there is none.
  struct Offer {
    std::string id;
    // Running jobs (with a lease) that its owner may have on all servers; 0:
    // no limit. Jobs of owners at their limit are passed over.
    int owner_limit = 0;
  };
  struct ClaimRequest {
    std::vector<Offer> offers;  // best first
    std::string server_id;
    absl::Duration lease;
  };
  virtual absl::StatusOr<std::optional<JobRecord>> Claim(
      const ClaimRequest& request) = 0;

  // Prolongs leases and tells how far the jobs are.
  struct Held {
    std::string id;
    int64_t fencing_token = 0;
    std::optional<JobProgress> progress;  // nullopt: as before
  };
  struct Renewed {
    bool lost = false;  // the token is not the job's any more, or no such job
    bool cancel_requested = false;
  };
  // One answer for each of `held`, in order.
  virtual absl::StatusOr<std::vector<Renewed>> Renew(
      const std::vector<Held>& held, absl::Duration lease) = 0;
  // Ends a running job. kAborted if the token is not the job's any more: the
  // caller must drop what it made. OK if it ended with this token before (the
  // answer was lost, say).
  virtual absl::Status Finish(absl::string_view id, int64_t fencing_token,
                              const JobOutcome& outcome) = 0;
  // RUNNING -> QUEUED: hands the job back; the attempt does not count. kAborted
  // as for Finish.
  virtual absl::Status Requeue(absl::string_view id, int64_t fencing_token) = 0;
  // At start-up: all jobs that `server_id` ran when it stopped are queued
  // again; returns them.
  virtual absl::StatusOr<std::vector<JobRecord>> RequeueOf(
      absl::string_view server_id) = 0;
  // A claimable job ends as kCancelled and is kept for `ttl`; a running one is
  // marked (its server sees it at the next Renew); a finished one is left.
  // Returns the job after that. kNotFound.
  virtual absl::StatusOr<JobRecord> RequestCancel(absl::string_view id,
                                                  absl::Duration ttl) = 0;
  // Ends a claimable job without a run (too many attempts). kAborted if it is
  // not claimable.
  virtual absl::Status FailWaiting(absl::string_view id,
                                   const JobOutcome& outcome) = 0;
  // kFailedPrecondition unless final; kNotFound.
  virtual absl::Status Delete(absl::string_view id) = 0;
  // Deletes finished jobs that expired, at most `limit`; returns them. Each
  // comes back to one caller only.
  virtual absl::StatusOr<std::vector<JobRecord>> DeleteExpired(int limit) = 0;
  // All jobs that hold blobs, to pin them at start-up: unfinished ones and
  // those that succeeded.
  virtual absl::StatusOr<std::vector<JobRecord>> ListHolders() = 0;

  struct Counts {
    int queued = 0;
    int running = 0;
  };
  virtual absl::StatusOr<Counts> Count(std::optional<std::string> owner) = 0;
};

// The blobs that a stored job holds: inputs until it ends, then its result.
std::vector<BlobRef> BlobsHeldBy(const JobRecord& job);

// For stores: a page token holds where the next page begins and for which
// filter it was made.
std::string MakePageToken(const JobFilter& filter, int64_t before);
// "" is the first page: the largest number. kInvalidArgument.
absl::StatusOr<int64_t> ReadPageToken(const JobFilter& filter,
                                      absl::string_view token);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_JOB_STORE_H_
