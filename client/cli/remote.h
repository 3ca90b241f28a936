// Remote work: `compress --server` and the commands on jobs.
#ifndef OVPRESS_CLIENT_CLI_REMOTE_H_
#define OVPRESS_CLIENT_CLI_REMOTE_H_

#include <string>

#include "CLI/CLI.hpp"
#include "client/cli/options.h"

namespace ovpress {

struct RemoteFlags {
  std::string server;
  bool detach = false;
  bool stream = false;
  double retry_seconds = 120;
  bool tls = false;
  std::string tls_ca;
  std::string tls_cert;
  std::string tls_key;
  std::string tls_server_name;
  std::string token_file;
  bool allow_insecure_token = false;
  void Register(CLI::App* app);
};

struct RemoteCompressArgs {
  RemoteFlags remote;
  std::string in_xml;
  std::string in_bin;
  std::string out_xml;
  const CompressionFlags* compression = nullptr;
  std::string memory_budget;
  std::string report_file;
  bool measure_error = false;
  bool quiet = false;
};

// Uploads, submits, watches, downloads, or with --stream does it in one call;
// returns the exit code. An interrupt
// cancels the job unless --detach was given.
int CompressRemote(const RemoteCompressArgs& args);

// submit, status, watch, download, list, cancel, health.
void RegisterRemoteCommands(CLI::App* app, int* exit_code);

}  // namespace ovpress

#endif  // OVPRESS_CLIENT_CLI_REMOTE_H_
