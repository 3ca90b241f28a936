// CompressionOptions as JSON: how jobs keep them over a restart. Not a format
// for users; a stored job must stay readable by later versions.
#ifndef OVPRESS_SERVER_JOBS_OPTIONS_JSON_H_
#define OVPRESS_SERVER_JOBS_OPTIONS_JSON_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/engine/options.h"
#include "server/jobs/job.h"

namespace ovpress {

// Keys in a fixed order; unset optionals are left out.
std::string OptionsToJson(const CompressionOptions& options);
// kInvalidArgument for text that OptionsToJson cannot have made, unknown keys
// included (a newer version's options must not be dropped silently).
absl::StatusOr<CompressionOptions> OptionsFromJson(absl::string_view json);

// Validates `options` and fills spec's options_json, canonical_options, mode.
absl::Status SetOptions(const CompressionOptions& options, JobSpec* spec);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_OPTIONS_JSON_H_
