// `ovpress-server health`: asks the server that runs on a data folder whether
// it takes work, by the plain HTTP page /readyz. It needs no certificate and no
// token, so that one probe fits whatever the server's access flags say.
#ifndef OVPRESS_SERVER_HEALTH_COMMAND_H_
#define OVPRESS_SERVER_HEALTH_COMMAND_H_

#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"

namespace ovpress {

// Leaves in `data_dir` where the pages of this server are: the host of
// `metrics`, its --metrics, and the port that it got. A server that dies leaves
// it behind, and nobody answers there.
absl::Status LeaveHealthAddress(const std::string& data_dir,
                                const std::string& metrics, int port);

// Adds the command. It takes the flags of the server, of which it needs
// --data-dir only: those of the server's own command line or --config will do.
CLI::App* RegisterHealthCommand(CLI::App* app);

// Prints what /readyz says; returns the exit code, 0: it takes work. One try,
// of at most four seconds.
int RunHealthCommand(const std::string& data_dir);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_HEALTH_COMMAND_H_
