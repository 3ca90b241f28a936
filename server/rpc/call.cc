#include "server/rpc/call.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "server/auth/rate_limiter.h"
#include "server/jobs/errors.h"
#include "spdlog/spdlog.h"

namespace ovpress {

void ReportRefusal(const RpcOptions& options, const Method& method,
                   const grpc::ServerContextBase& context,
                   const absl::Status& status) {
  if (const auto limit = GetLimitDetails(status); limit.has_value()) {
    options.metrics->OnAdmissionRejected(limit->limit);
    return;
  }
  // Whoever knocks all day must not fill the log.
  constexpr double kLinesPerSecond = 5;
  static RateLimiter* const lines = new RateLimiter();
  if (!lines->Admit("", kLinesPerSecond, absl::Now()).ok()) return;
  spdlog::warn("refused {} from {}: {} ({})", method.name, context.peer(),
               std::string(status.message()), GetReason(status));
}

absl::StatusOr<std::string> JobIdOf(const std::string& name) {
  absl::string_view id = name;
  if (!absl::ConsumePrefix(&id, "operations/") || id.size() != 32) {
    return absl::NotFoundError(absl::StrCat(
        "there is no operation '", absl::string_view(name).substr(0, 80),
        "'; names are operations/{32 hexadecimal digits}"));
  }
  return std::string(id);
}

}  // namespace ovpress
