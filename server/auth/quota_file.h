// Limits of single identities from a file (docs/security.md):
//   {"identities": {"team-a": {"max_bytes": "200GiB", "max_queued": 50,
//                              "max_requests_per_second": 20}}}
// What is absent is as the server's flags say.
#ifndef OVPRESS_SERVER_AUTH_QUOTA_FILE_H_
#define OVPRESS_SERVER_AUTH_QUOTA_FILE_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/jobs/quotas.h"

namespace ovpress {

using QuotaTable = std::map<std::string, OwnerQuota, std::less<>>;

// kInvalidArgument, with the place; unknown keys are errors.
absl::StatusOr<QuotaTable> ParseQuotaFile(absl::string_view json);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_QUOTA_FILE_H_
