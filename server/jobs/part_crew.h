// Work on parts of jobs, in both roles: for a job that this server holds (Run)
// and as help for those of others (Help). Knows PartStore's protocol; what a
// part means is the runner's.
#ifndef OVPRESS_SERVER_JOBS_PART_CREW_H_
#define OVPRESS_SERVER_JOBS_PART_CREW_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/fair_executor.h"
#include "server/jobs/job.h"
#include "server/jobs/job_runner.h"
#include "server/jobs/observer.h"
#include "server/jobs/part_store.h"

namespace ovpress {

struct PartCrewOptions {
  // All REQUIRED but `observer`; all outlive the crew.
  PartStore* parts = nullptr;
  BlobStore* blobs = nullptr;
  JobRunner* runner = nullptr;
  FairExecutor* executor = nullptr;
  Observer* observer = nullptr;
  std::string server_id;
  absl::Duration lease = absl::Seconds(30);
  uint64_t default_job_memory_bytes = 0;
  uint64_t part_bytes = 0;  // of a part's input, at least
  // A server whose help failed leaves the parts to others for so long: one that
  // always fails must not use up the attempts of all of them.
  absl::Duration rest = absl::Minutes(1);
  // Help that got no further for so long is no longer prolonged, so that
  // somebody else can do the part. Far above what the last pieces of a part
  // need to reach the store.
  absl::Duration standstill = absl::Minutes(10);
};

// Thread-safe, but for Help(), which one thread at a time may call. One thread
// of its own prolongs the leases of all parts that this server works on, each
// second.
class PartCrew {
 public:
  static std::unique_ptr<PartCrew> Create(PartCrewOptions options);
  // Stops help that is under way and gives it back. REQUIRES: no Run().
  virtual ~PartCrew() = default;

  // For the run of `job`, with its context: what RunContext::board is to be.
  // Both outlive it. Destroying it drops the job's parts.
  virtual std::unique_ptr<PartBoard> MakeBoard(const JobRecord& job,
                                               const RunContext& context) = 0;

  // Takes one part of a job that another server holds and that needs at most
  // `max_memory_bytes`, and works on it on a thread of its own. `reserve` is
  // called with the memory that it takes before it begins, and with the same,
  // negative, at its end, on that thread. False: no part was to be had, one is
  // being worked on already, or the last one failed a moment ago.
  //
  // What goes wrong here need not go wrong elsewhere (a full disk, say), so
  // help never fails a job: the part is given back, and after
  // kMaxHelpers attempts left to the job's holder, whose error counts.
  virtual absl::StatusOr<bool> Help(
      uint64_t max_memory_bytes,
      std::function<void(int64_t bytes)> reserve) = 0;
  static constexpr int kMaxHelpers = 3;
  // Stops the help under way and gives it back within a second; no more begins.
  virtual void StopHelping() = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_PART_CREW_H_
