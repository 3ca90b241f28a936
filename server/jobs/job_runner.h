// The work of a job, behind an interface: JobManager decides when, a JobRunner
// does it. Tests have a fake one.
#ifndef OVPRESS_SERVER_JOBS_JOB_RUNNER_H_
#define OVPRESS_SERVER_JOBS_JOB_RUNNER_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/base/executor.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/job.h"
#include "server/jobs/part_store.h"

namespace ovpress {

struct JobEstimate {
  uint64_t memory_bytes = 0;  // working memory under the job's budget
  uint64_t output_bytes = 0;  // at most: .bin, .xml and report
  std::vector<std::string> warnings;
};

// The other servers' help for one running job.
class PartBoard {
 public:
  virtual ~PartBoard() = default;
  // Input of one part that is worth being sent to another server.
  virtual uint64_t part_bytes() const = 0;
  // Hands the parts to whichever servers have room, and works on them itself on
  // this thread. Blocks until all are done; their results, in order. `progress`
  // hears the input bytes done by all, from any thread, quickly. kCancelled if
  // the job is to stop; the error of a part that cannot be done; kAborted if
  // the job was lost.
  virtual absl::StatusOr<std::vector<std::string>> Run(
      const PartRound& round,
      const std::function<void(uint64_t done_bytes)>& progress) = 0;
};

struct RunContext {
  Executor* executor = nullptr;
  BlobStore* blobs = nullptr;
  SpaceReservation* space = nullptr;  // of at least output_bytes, may be null
  uint64_t memory_budget_bytes = 0;
  // Set on cancellation, deadline, loss of the lease, shutdown: Run() returns
  // kCancelled well within a second.
  const std::atomic<bool>* stop = nullptr;
  std::function<void(const JobProgress&)> progress;  // from any thread; quick
  PartBoard* board = nullptr;  // null: the job is this server's alone
};

struct RunOutput {
  JobResult result;
  // Of the outputs: kept until the job's end is stored.
  std::vector<std::unique_ptr<BlobPin>> pins;
};

// Thread-safe.
class JobRunner {
 public:
  virtual ~JobRunner() = default;
  // Equal versions give equal bytes; part of the result cache's key.
  virtual std::string engine_version() const = 0;
  // Validates spec against the model's .xml (which the owner must have) and
  // says what the run will take. kInvalidArgument, kDataLoss, kUnimplemented:
  // the job would fail; kFailedPrecondition: blobs missing.
  virtual absl::StatusOr<JobEstimate> Estimate(BlobStore* blobs,
                                               const JobSpec& spec) = 0;
  virtual absl::StatusOr<RunOutput> Run(const JobSpec& spec,
                                        const RunContext& context) = 0;
  // One part of such a run, on any server: what Run() gave to the board. The
  // result, for the holder's Run(). `context.progress` hears bytes_done of the
  // part. kUnavailable, kCancelled: another server may try.
  virtual absl::StatusOr<std::string> RunPart(const JobSpec& /*spec*/,
                                              absl::string_view /*common*/,
                                              absl::string_view /*order*/,
                                              const RunContext& /*context*/) {
    return absl::UnimplementedError("this runner shares no jobs out");
  }
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_JOB_RUNNER_H_
