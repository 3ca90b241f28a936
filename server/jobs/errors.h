// Errors with a reason that programs can read. The details ride as payloads of
// absl::Status, so they survive OVPRESS_RETURN_IF_ERROR; server/rpc turns them
// into google.rpc messages (ErrorInfo, QuotaFailure, RetryInfo,
// PreconditionFailure).
#ifndef OVPRESS_SERVER_JOBS_ERRORS_H_
#define OVPRESS_SERVER_JOBS_ERRORS_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/digest.h"

namespace ovpress {

// A named limit was met.
struct LimitDetails {
  std::string limit;    // name of the field in limits.h: "max_queued"
  std::string subject;  // "server", or "client:NAME"
  uint64_t limit_value = 0;
  uint64_t requested = 0;  // what the request would have made it; 0: unknown
  // Least wait before a retry can succeed; infinite: retrying is of no use.
  absl::Duration retry_after = absl::InfiniteDuration();
};

// kResourceExhausted, or kInvalidArgument if details.retry_after is infinite
// (the request can never be taken). `what` starts the message.
absl::Status LimitError(absl::string_view what, const LimitDetails& details);
std::optional<LimitDetails> GetLimitDetails(const absl::Status& status);

// kFailedPrecondition: these blobs must be uploaded first.
absl::Status MissingBlobsError(const std::vector<BlobRef>& missing);
// Empty if `status` is another error.
std::vector<BlobRef> GetMissingBlobs(const absl::Status& status);

// kUnavailable: the server drains; another one, or this one later, will do.
absl::Status DrainingError(absl::Duration retry_after);

// Any error with a reason (UPPER_SNAKE_CASE, for ErrorInfo) and a retry hint.
absl::Status WithReason(absl::Status status, absl::string_view reason);
absl::Status WithRetryAfter(absl::Status status, absl::Duration retry_after);
// The reason given by WithReason or one of the above ("LIMIT_MAX_QUEUED",
// "BLOBS_MISSING", "DRAINING"); otherwise derived from the code
// ("INVALID_ARGUMENT"). Empty for OK.
std::string GetReason(const absl::Status& status);
std::optional<absl::Duration> GetRetryAfter(const absl::Status& status);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_ERRORS_H_
