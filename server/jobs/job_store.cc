#include "server/jobs/job_store.h"

namespace ovpress {

std::vector<BlobRef> BlobsHeldBy(const JobRecord& job) {
  if (!IsFinal(job.state)) return {job.spec.xml, job.spec.bin};
  if (job.state != JobState::kSucceeded) return {};
  return {job.result.xml, job.result.bin, job.result.report};
}

}  // namespace ovpress
