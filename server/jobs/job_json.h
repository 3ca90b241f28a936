// Parts of a JobRecord as JSON: what job stores keep of it besides the columns
// that they search.
#ifndef OVPRESS_SERVER_JOBS_JOB_JSON_H_
#define OVPRESS_SERVER_JOBS_JOB_JSON_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/job.h"

namespace ovpress {

// Times as stored: microseconds since 1970; the two infinities are the ends of
// the range.
int64_t ToStoredMicros(absl::Time time);
absl::Time FromStoredMicros(int64_t micros);

// The readers are for what the writers made, also those of earlier versions;
// anything else is kDataLoss and leaves the job half-filled.

// Never changes: spec without owner, request_id and priority.
std::string SpecToJson(const JobSpec& spec);
absl::Status SpecFromJson(absl::string_view text, JobSpec* spec);
// error and result; the result only if the job succeeded.
std::string EndToJson(const JobRecord& job);
absl::Status EndFromJson(absl::string_view text, JobRecord* job);
std::string ProgressToJson(const JobProgress& progress);
absl::Status ProgressFromJson(absl::string_view text, JobProgress* progress);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_JOB_JSON_H_
