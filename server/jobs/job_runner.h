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
#include "core/base/executor.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/job.h"

namespace ovpress {

struct JobEstimate {
  uint64_t memory_bytes = 0;  // working memory under the job's budget
  uint64_t output_bytes = 0;  // at most: .bin, .xml and report
  std::vector<std::string> warnings;
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
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_JOB_RUNNER_H_
