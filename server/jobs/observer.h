// Where jobs and blobs report what happened, so that server/rpc can count it
// without this module knowing of Prometheus.
#ifndef OVPRESS_SERVER_JOBS_OBSERVER_H_
#define OVPRESS_SERVER_JOBS_OBSERVER_H_

#include <cstdint>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/job.h"

namespace ovpress {

// Called from any thread, also under locks of the caller: must be quick, must
// not block and must not call back. All methods do nothing by default.
class Observer {
 public:
  virtual ~Observer() = default;

  // jobs
  virtual void OnJobSubmitted(const JobRecord&) {}
  // `reason` is the name of the limit, or "draining"; of a fixed, small set.
  virtual void OnAdmissionRejected(absl::string_view /*reason*/) {}
  virtual void OnJobStarted(const JobRecord&, absl::Duration /*queued*/) {}
  virtual void OnPhaseDone(const JobRecord&, absl::string_view /*phase*/,
                           absl::Duration /*took*/) {}
  // After the end was stored; state is one of the three final ones.
  virtual void OnJobFinished(const JobRecord&, absl::Duration /*running*/) {}
  virtual void OnJobExpired(const JobRecord&) {}
  // A job found RUNNING at start-up or handed back while draining.
  virtual void OnJobRequeued(const JobRecord&) {}
  // A part of a shared job ended on this server: "done", "released" (somebody
  // else may try) or "lost" (somebody else did).
  virtual void OnPart(absl::string_view /*outcome*/, absl::Duration /*took*/) {}
  virtual void OnResultCache(bool /*hit*/) {}

  // blobs
  virtual void OnUploadResumed() {}
  virtual void OnUploadExpired() {}
  virtual void OnBlobPublished(uint64_t /*size_bytes*/) {}
  virtual void OnBlobEvicted(uint64_t /*size_bytes*/) {}
  virtual void OnBlobCorrupt(const BlobRef&) {}

  // A line for the log; `job_id` may be empty.
  enum class Severity { kInfo, kWarning, kError };
  virtual void OnLog(Severity, absl::string_view /*job_id*/,
                     absl::string_view /*message*/) {}
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_OBSERVER_H_
