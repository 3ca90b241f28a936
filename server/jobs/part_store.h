// Parts of running jobs that several servers work on: what lies in the shared
// database beside the queue. A part is text for the runner; nothing here knows
// what it means.
//
// The server that holds a job puts its parts up in rounds, takes some itself,
// and waits for the results. Each part has a lease and a fencing token of its
// own, as a job has: a server that dies is replaced, one that was frozen comes
// too late. Parts whose job is held with another token, or no longer runs, are
// as good as gone.
#ifndef OVPRESS_SERVER_JOBS_PART_STORE_H_
#define OVPRESS_SERVER_JOBS_PART_STORE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/job.h"

namespace ovpress {

struct PartTask {
  std::string order;        // for JobRunner::RunPart()
  uint64_t cost_bytes = 0;  // of the input; for progress
};

struct PartRound {
  // What the order of each part leaves out because all have it.
  std::string common;
  std::vector<PartTask> tasks;
};

// The job as its holder has it.
struct JobHold {
  std::string id;
  int64_t fencing_token = 0;
};

struct TakenPart {
  std::string job_id;
  int number = 0;     // of the round's tasks
  int64_t token = 0;  // fences this part
  int attempt = 0;    // with this one
  uint64_t cost_bytes = 0;
  std::string common;
  std::string order;
  // Of the job: what it was asked to do, and the memory that it reserves.
  JobSpec spec;
  uint64_t memory_bytes = 0;
};

// Thread-safe; the errors of JobStore. Each method is one atomic step.
class PartStore {
 public:
  virtual ~PartStore() = default;

  // The parts of the job are these from now on; earlier ones are gone. Only
  // servers with this `engine` (JobRunner::engine_version()) get them. kAborted
  // if the job is not held so any more.
  virtual absl::Status Put(const JobHold& job, const std::string& engine,
                           const PartRound& round) = 0;

  // A part that nobody works on, of the most urgent job, the lowest number
  // first; nullopt if there is none.
  struct TakeRequest {
    std::string server_id;
    std::string engine;
    absl::Duration lease;
    // Of this job alone; empty: of any that another server holds.
    std::string job_id;
    uint64_t max_memory_bytes = 0;  // of the job; 0: any
    int max_attempts = 0;  // those begun so often are left alone; 0: none
  };
  virtual absl::StatusOr<std::optional<TakenPart>> Take(
      const TakeRequest& request) = 0;

  // Prolongs leases; one answer for each: false if it is lost.
  struct Held {
    std::string job_id;
    int number = 0;
    int64_t token = 0;
    uint64_t done_bytes = 0;  // of cost_bytes
  };
  virtual absl::StatusOr<std::vector<bool>> Renew(const std::vector<Held>& held,
                                                  absl::Duration lease) = 0;
  // The part is done. kAborted if it is lost; OK if it was done with this token
  // before.
  virtual absl::Status Finish(const Held& part, absl::string_view result) = 0;
  // Somebody else may try. `counts`: the attempt stays counted.
  virtual absl::Status GiveBack(const Held& part, bool counts) = 0;
  struct Look {
    int parts = 0;
    int done = 0;
    int taken = 0;            // with a lease, not done
    uint64_t done_bytes = 0;  // of all, as far as told
  };
  // No parts at all: the job is not held so any more.
  virtual absl::StatusOr<Look> LookAt(const JobHold& job) = 0;
  // By number. kFailedPrecondition unless all are done.
  virtual absl::StatusOr<std::vector<std::string>> Results(
      const JobHold& job) = 0;
  // The job needs its parts no more.
  virtual absl::Status Drop(const JobHold& job) = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_PART_STORE_H_
