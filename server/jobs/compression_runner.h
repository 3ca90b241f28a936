// JobRunner over core/engine: reads the model's blobs, writes the compressed
// .bin, the new .xml and the JSON report as blobs.
#ifndef OVPRESS_SERVER_JOBS_COMPRESSION_RUNNER_H_
#define OVPRESS_SERVER_JOBS_COMPRESSION_RUNNER_H_

#include <memory>

#include "server/jobs/job_runner.h"
#include "server/jobs/limits.h"

namespace ovpress {

std::unique_ptr<JobRunner> MakeCompressionRunner(const JobLimits& limits);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_COMPRESSION_RUNNER_H_
