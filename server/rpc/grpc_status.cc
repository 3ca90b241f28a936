#include "server/rpc/grpc_status.h"

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "google/rpc/error_details.pb.h"
#include "server/jobs/errors.h"

namespace ovpress {
namespace {

constexpr size_t kMessageBytesMax = 2048;
constexpr size_t kViolationsMax = 16;

// Names from hostile models may hold anything; a proto string must be UTF-8.
std::string CleanText(absl::string_view text) {
  std::string clean(text.substr(0, kMessageBytesMax));
  for (char& c : clean) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte >= 0x80 || (byte < 0x20 && c != '\n')) c = '?';
  }
  return clean;
}

template <typename Detail>
void Add(const Detail& detail, google::rpc::Status* status) {
  status->add_details()->PackFrom(detail);
}

}  // namespace

google::rpc::Status ToRpcStatus(const absl::Status& status) {
  google::rpc::Status rpc;
  rpc.set_code(static_cast<int>(status.code()));
  if (status.ok()) return rpc;
  rpc.set_message(CleanText(status.message()));
  google::rpc::ErrorInfo info;
  info.set_reason(GetReason(status));
  info.set_domain("ovpress");
  const auto limit = GetLimitDetails(status);
  if (limit.has_value()) {
    (*info.mutable_metadata())["limit"] = limit->limit;
    (*info.mutable_metadata())["limit_value"] =
        absl::StrCat(limit->limit_value);
  }
  Add(info, &rpc);
  if (limit.has_value()) {
    google::rpc::QuotaFailure quota;
    auto* violation = quota.add_violations();
    violation->set_subject(CleanText(limit->subject));
    violation->set_description(CleanText(status.message()));
    Add(quota, &rpc);
  }
  const std::vector<BlobRef> missing = GetMissingBlobs(status);
  if (!missing.empty()) {
    google::rpc::PreconditionFailure failure;
    for (size_t i = 0; i < std::min(missing.size(), kViolationsMax); ++i) {
      auto* violation = failure.add_violations();
      violation->set_type("MISSING");
      violation->set_subject(BlobName(missing[i]));
    }
    Add(failure, &rpc);
  }
  if (const auto retry = GetRetryAfter(status)) {
    google::rpc::RetryInfo info_retry;
    const int64_t ms = absl::ToInt64Milliseconds(*retry);
    info_retry.mutable_retry_delay()->set_seconds(ms / 1000);
    info_retry.mutable_retry_delay()->set_nanos(
        static_cast<int32_t>(ms % 1000) * 1'000'000);
    Add(info_retry, &rpc);
  }
  return rpc;
}

grpc::Status ToGrpcStatus(const absl::Status& status) {
  if (status.ok()) return grpc::Status::OK;
  const google::rpc::Status rpc = ToRpcStatus(status);
  return grpc::Status(static_cast<grpc::StatusCode>(status.code()),
                      rpc.message(), rpc.SerializeAsString());
}

}  // namespace ovpress
