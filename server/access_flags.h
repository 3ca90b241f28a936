// The server's flags for TLS, tokens and quotas, and what they make.
#ifndef OVPRESS_SERVER_ACCESS_FLAGS_H_
#define OVPRESS_SERVER_ACCESS_FLAGS_H_

#include <memory>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "grpcpp/security/server_credentials.h"
#include "server/auth/access_control.h"
#include "server/rpc/metrics.h"
#include "server/rpc/tls.h"

namespace ovpress {

struct AccessFlags {
  std::string tls_cert;
  std::string tls_key;
  std::string tls_client_ca;
  std::string tls_client_auth = "require";
  std::vector<std::string> client_cert_scopes = {"submit", "read"};
  bool insecure_listen = false;
  std::string reflection = "auto";
  double reload_seconds = 10;
  double jwt_leeway_seconds = 30;
  AccessOptions access;

  void Register(CLI::App* app);
};

// TLS and access control as the flags say; reads the files again when they
// change. For the main thread; what it hands out is thread-safe.
class ServerAccess {
 public:
  // kInvalidArgument for flags that do not fit together, or `listen` beyond
  // loopback without TLS or without authentication, unless the flag says so.
  static absl::StatusOr<std::unique_ptr<ServerAccess>> Open(
      const AccessFlags& flags, const std::string& listen, Clock* clock,
      Metrics* metrics);

  AccessControl* control() { return control_.get(); }
  std::shared_ptr<grpc::ServerCredentials> credentials();
  bool reflection() const;
  // For the log: "TLS with client certificates; 3 tokens, ...".
  std::string Summary() const;

  // Reads all files again; what is not fine is left as it was, and logged.
  void Reload();
  // Reload() if a file is not what it was, or could not be read last time.
  void ReloadIfChanged();

 private:
  explicit ServerAccess(const AccessFlags& flags, Metrics* metrics)
      : flags_(flags), metrics_(metrics) {}
  // Changes whenever one of the files does.
  std::string Look() const;
  absl::Status ReloadAll();

  const AccessFlags flags_;
  Metrics* const metrics_;
  std::unique_ptr<ServerTls> tls_;  // null: plain text
  std::unique_ptr<AccessControl> control_;
  std::string seen_;
  std::string last_error_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_ACCESS_FLAGS_H_
