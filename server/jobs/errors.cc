#include "server/jobs/errors.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"

namespace ovpress {
namespace {

constexpr char kLimitUrl[] = "ovpress/limit";
constexpr char kMissingUrl[] = "ovpress/missing-blobs";
constexpr char kReasonUrl[] = "ovpress/reason";
constexpr char kRetryUrl[] = "ovpress/retry-after";

std::optional<std::string> Payload(const absl::Status& status,
                                   const char* url) {
  const absl::optional<absl::Cord> payload = status.GetPayload(url);
  if (!payload.has_value()) return std::nullopt;
  return std::string(*payload);
}

}  // namespace

absl::Status LimitError(absl::string_view what, const LimitDetails& details) {
  const bool hopeless = details.retry_after == absl::InfiniteDuration();
  std::string message =
      absl::StrCat(what, ": limit ", details.limit, " of ", details.limit_value,
                   " (", details.subject, ")");
  if (details.requested > 0) {
    absl::StrAppend(&message, ", this would make it ", details.requested);
  }
  if (!hopeless) {
    absl::StrAppend(&message, "; try again in ",
                    absl::FormatDuration(details.retry_after));
  }
  absl::Status status(hopeless ? absl::StatusCode::kInvalidArgument
                               : absl::StatusCode::kResourceExhausted,
                      message);
  // The subject comes last: it holds a client's name, which may hold anything.
  status.SetPayload(
      kLimitUrl,
      absl::Cord(absl::StrCat(
          details.limit, "\n", details.limit_value, "\n", details.requested,
          "\n",
          hopeless ? -1 : absl::ToInt64Milliseconds(details.retry_after), "\n",
          details.subject)));
  if (!hopeless) status = WithRetryAfter(std::move(status), details.retry_after);
  return WithReason(std::move(status),
                    absl::StrCat("LIMIT_", absl::AsciiStrToUpper(details.limit)));
}

std::optional<LimitDetails> GetLimitDetails(const absl::Status& status) {
  const std::optional<std::string> text = Payload(status, kLimitUrl);
  if (!text.has_value()) return std::nullopt;
  const std::vector<std::string> parts =
      absl::StrSplit(*text, absl::MaxSplits('\n', 4));
  LimitDetails details;
  int64_t retry_ms = -1;
  if (parts.size() != 5 ||
      !absl::SimpleAtoi(parts[1], &details.limit_value) ||
      !absl::SimpleAtoi(parts[2], &details.requested) ||
      !absl::SimpleAtoi(parts[3], &retry_ms)) {
    return std::nullopt;
  }
  details.limit = parts[0];
  details.subject = parts[4];
  if (retry_ms >= 0) details.retry_after = absl::Milliseconds(retry_ms);
  return details;
}

absl::Status MissingBlobsError(const std::vector<BlobRef>& missing) {
  std::vector<std::string> names;
  names.reserve(missing.size());
  for (const BlobRef& ref : missing) names.push_back(BlobName(ref));
  absl::Status status = absl::FailedPreconditionError(
      absl::StrCat("upload first: ", absl::StrJoin(names, ", ")));
  status.SetPayload(kMissingUrl, absl::Cord(absl::StrJoin(names, "\n")));
  return WithReason(std::move(status), "BLOBS_MISSING");
}

std::vector<BlobRef> GetMissingBlobs(const absl::Status& status) {
  std::vector<BlobRef> missing;
  const std::optional<std::string> text = Payload(status, kMissingUrl);
  if (!text.has_value()) return missing;
  for (absl::string_view name : absl::StrSplit(*text, '\n')) {
    absl::StatusOr<BlobRef> ref = ParseBlobName(name);
    if (ref.ok()) missing.push_back(*std::move(ref));
  }
  return missing;
}

absl::Status DrainingError(absl::Duration retry_after) {
  return WithRetryAfter(
      WithReason(absl::UnavailableError(
                     "the server is draining and takes no new work; try again "
                     "or ask another one"),
                 "DRAINING"),
      retry_after);
}

absl::Status WithReason(absl::Status status, absl::string_view reason) {
  if (!status.ok()) status.SetPayload(kReasonUrl, absl::Cord(reason));
  return status;
}

absl::Status WithRetryAfter(absl::Status status, absl::Duration retry_after) {
  if (!status.ok()) {
    status.SetPayload(kRetryUrl, absl::Cord(absl::StrCat(
                                     absl::ToInt64Milliseconds(retry_after))));
  }
  return status;
}

std::string GetReason(const absl::Status& status) {
  if (status.ok()) return "";
  if (std::optional<std::string> reason = Payload(status, kReasonUrl)) {
    return *std::move(reason);
  }
  return absl::StatusCodeToString(status.code());
}

std::optional<absl::Duration> GetRetryAfter(const absl::Status& status) {
  const std::optional<std::string> text = Payload(status, kRetryUrl);
  int64_t ms = 0;
  if (!text.has_value() || !absl::SimpleAtoi(*text, &ms)) return std::nullopt;
  return absl::Milliseconds(ms);
}

}  // namespace ovpress
