// TLS whose certificate can be exchanged while the server runs: connections
// that are open go on, new ones see the new certificate.
#ifndef OVPRESS_SERVER_RPC_TLS_H_
#define OVPRESS_SERVER_RPC_TLS_H_

#include <memory>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/security/server_credentials.h"
#include "server/auth/certificate_files.h"
#include "server/jobs/clock.h"

namespace ovpress {

struct ServerTlsOptions {
  CertificateFiles files;
  // With files.client_ca: whether a client without a certificate is let in
  // (and must then send a token). One with a wrong certificate never is.
  bool require_client_certificate = true;
  Clock* clock = nullptr;  // REQUIRED; outlives the object
};

// Thread-safe.
class ServerTls {
 public:
  // Reads the files; errors as LoadCertificates().
  static absl::StatusOr<std::unique_ptr<ServerTls>> Create(
      ServerTlsOptions options);
  virtual ~ServerTls() = default;

  // For one listening port. Must outlive the server.
  virtual std::shared_ptr<grpc::ServerCredentials> credentials() = 0;
  // Reads the files again. If they are not fine, the old ones stay in use.
  virtual absl::Status Reload() = 0;
  // End of the certificate in use.
  virtual absl::Time not_after() const = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_TLS_H_
