// The server's log: one line for each event on standard error, as text or as
// JSON. A line about a job carries its id.
#ifndef OVPRESS_SERVER_RPC_LOG_H_
#define OVPRESS_SERVER_RPC_LOG_H_

#include <memory>

#include "absl/strings/string_view.h"
#include "spdlog/common.h"
#include "spdlog/formatter.h"

namespace ovpress {

// {"time":...,"level":...,"job":...,"message":...} on one line, whatever the
// message holds: quotes and control characters are escaped, bytes that are no
// UTF-8 become U+FFFD. "job" only for LogJob().
std::unique_ptr<spdlog::formatter> MakeJsonLogFormatter();

// From now on spdlog::info() and the like write to standard error; `json` or
// text.
void SetUpLog(bool json);

// gRPC's own messages (failed TLS handshakes, above all) become lines of this
// log, a few a second at most: anybody on the network can cause them. Before
// gRPC is used.
void RouteGrpcLog();

// A line about a job: text starts with "job=ID ". `job_id` empty: "job=-".
void LogJob(spdlog::level::level_enum level, absl::string_view job_id,
            absl::string_view message);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_LOG_H_
