#include "server/rpc/log.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "grpc/support/log.h"
#include "nlohmann/json.hpp"
#include "server/auth/rate_limiter.h"
#include "spdlog/sinks/stdout_sinks.h"
#include "spdlog/spdlog.h"

namespace ovpress {
namespace {

constexpr absl::string_view kJobPrefix = "job=";
// Foreign text in a message does not grow a line beyond this.
constexpr size_t kMessageBytesMax = 2048;

class JsonFormatter final : public spdlog::formatter {
 public:
  void format(const spdlog::details::log_msg& line,
              spdlog::memory_buf_t& out) override {
    absl::string_view message(line.payload.data(), line.payload.size());
    nlohmann::ordered_json json;
    json["time"] =
        absl::FormatTime("%Y-%m-%dT%H:%M:%E3S%Ez", absl::FromChrono(line.time),
                         absl::LocalTimeZone());
    const auto level = spdlog::level::to_string_view(line.level);
    json["level"] = std::string(level.data(), level.size());
    if (absl::ConsumePrefix(&message, kJobPrefix)) {
      const size_t end = std::min(message.find(' '), message.size());
      json["job"] = std::string(message.substr(0, end));
      message.remove_prefix(std::min(end + 1, message.size()));
    }
    json["message"] = std::string(message);
    const std::string text =
        json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
    out.append(text.data(), text.data() + text.size());
    out.push_back('\n');
  }
  std::unique_ptr<spdlog::formatter> clone() const override {
    return std::make_unique<JsonFormatter>();
  }
};

}  // namespace

std::unique_ptr<spdlog::formatter> MakeJsonLogFormatter() {
  return std::make_unique<JsonFormatter>();
}

void SetUpLog(bool json) {
  spdlog::set_default_logger(std::make_shared<spdlog::logger>(
      "ovpress", std::make_shared<spdlog::sinks::stderr_sink_mt>()));
  if (json) {
    spdlog::set_formatter(MakeJsonLogFormatter());
  } else {
    spdlog::set_pattern("%Y-%m-%dT%H:%M:%S.%e%z %l %v");
  }
  spdlog::flush_on(spdlog::level::info);
}

void RouteGrpcLog() {
  gpr_set_log_function([](gpr_log_func_args* line) {
    constexpr double kLinesPerSecond = 5;
    static RateLimiter* const lines = new RateLimiter();
    if (!lines->Admit("", kLinesPerSecond, absl::Now()).ok()) return;
    std::string message = absl::StrCat(
        "gRPC: ",
        std::string(line->message, strnlen(line->message, kMessageBytesMax)));
    for (char& c : message) {
      if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
    }
    // A client that fails is nothing that this server did wrong.
    const auto level = line->severity == GPR_LOG_SEVERITY_ERROR
                           ? spdlog::level::warn
                           : spdlog::level::info;
    spdlog::log(level, "{}", message);
  });
}

void LogJob(spdlog::level::level_enum level, absl::string_view job_id,
            absl::string_view message) {
  std::string line = absl::StrCat(kJobPrefix, job_id.empty() ? "-" : job_id,
                                  " ", message.substr(0, kMessageBytesMax));
  // A message that quotes a model must not end the line.
  for (char& c : line) {
    if (absl::ascii_iscntrl(static_cast<unsigned char>(c))) c = ' ';
  }
  spdlog::log(level, "{}", line);
}

}  // namespace ovpress
