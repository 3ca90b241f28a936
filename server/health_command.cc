#include "server/health_command.h"

#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <memory>

#include "absl/status/statusor.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "server/cluster/http_client.h"
#include "server/whole_file.h"

namespace ovpress {
namespace {

constexpr char kFileName[] = "http-address";
constexpr uint64_t kAddressBytesMax = 512;
constexpr absl::Duration kPatience = absl::Seconds(2);

// Who listens everywhere is asked at home.
std::string ReachableHost(const std::string& metrics) {
  const std::string host = metrics.substr(0, metrics.rfind(':'));
  if (host.empty() || host == "0.0.0.0") return "127.0.0.1";
  return host == "[::]" || host == "::" ? "[::1]" : host;
}

absl::StatusOr<std::string> Ask(const std::string& data_dir) {
  const std::filesystem::path file =
      std::filesystem::path(data_dir) / kFileName;
  const absl::StatusOr<std::string> address =
      ReadSmallFile(file.string(), kAddressBytesMax);
  if (!address.ok()) {
    return absl::UnavailableError(
        absl::StrCat("no server has been ready on ", data_dir,
                     " (--data-dir): ", address.status().message()));
  }
  const std::string url =
      absl::StrCat("http://", absl::StripAsciiWhitespace(*address), "/readyz");
  const HttpResponse answer =
      HttpClient::Create({.connect_timeout = kPatience})
          ->Send({.url = url, .silence_limit = kPatience});
  if (answer.status == 200) return answer.text;
  return absl::UnavailableError(
      answer.status == 0
          ? absl::StrCat(url, ": ", answer.transport.message())
          : absl::StrCat(url, " says ", answer.status, ": ",
                         absl::StripAsciiWhitespace(answer.text)));
}

}  // namespace

absl::Status LeaveHealthAddress(const std::string& data_dir,
                                const std::string& metrics, int port) {
  return WriteWhole((std::filesystem::path(data_dir) / kFileName).string(),
                    absl::StrCat(ReachableHost(metrics), ":", port, "\n"));
}

CLI::App* RegisterHealthCommand(CLI::App* app) {
  CLI::App* health = app->add_subcommand(
      "health",
      "Ask the server that runs with these flags (--data-dir or --config) "
      "whether it takes work: exit status 0 if it does");
  health->configurable(false);
  health->fallthrough();
  return health;
}

int RunHealthCommand(const std::string& data_dir) {
  // What a proxy says is not what the server says.
  ::setenv("no_proxy", "*", 1);
  const absl::StatusOr<std::string> answer = Ask(data_dir);
  if (answer.ok()) {
    std::cout << *answer;
    return 0;
  }
  std::cerr << "ovpress-server: " << answer.status().message() << "\n";
  return 1;
}

}  // namespace ovpress
