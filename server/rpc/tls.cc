#include "server/rpc/tls.h"

#include <cstdint>
#include <string>
#include <utility>

#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "grpc/grpc.h"
#include "grpc/grpc_security.h"

namespace ovpress {
namespace {

// What the next handshake is to use; shared by us and gRPC.
class Source {
 public:
  void Set(CertificatePems pems) {
    MutexLock lock(&mutex_);
    pems_ = std::move(pems);
    ++version_;
  }
  absl::Time not_after() const {
    MutexLock lock(&mutex_);
    return pems_.not_after;
  }

  // gRPC asks before each handshake; only it calls this, one call at a time.
  grpc_ssl_certificate_config_reload_status Fetch(
      grpc_ssl_server_certificate_config** config) {
    MutexLock lock(&mutex_);
    if (version_ == fetched_) {
      return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_UNCHANGED;
    }
    const grpc_ssl_pem_key_cert_pair pair = {pems_.key.c_str(),
                                             pems_.certificate.c_str()};
    // Where no client is asked for a certificate nobody looks at the CA, but
    // gRPC insists on one.
    const std::string& client_ca =
        pems_.client_ca.empty() ? pems_.certificate : pems_.client_ca;
    *config =
        grpc_ssl_server_certificate_config_create(client_ca.c_str(), &pair, 1);
    fetched_ = version_;
    return GRPC_SSL_CERTIFICATE_CONFIG_RELOAD_NEW;
  }

 private:
  mutable Mutex mutex_;
  CertificatePems pems_ ABSL_GUARDED_BY(mutex_);
  uint64_t version_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t fetched_ ABSL_GUARDED_BY(mutex_) = 0;
};

grpc_ssl_certificate_config_reload_status FetchConfig(
    void* source, grpc_ssl_server_certificate_config** config) {
  return static_cast<Source*>(source)->Fetch(config);
}

// gRPC's C API lets certificates be fetched for each handshake, its C++ classes
// do not pass that on. (The file watcher of the experimental TLS classes takes
// whatever it finds, a key of another certificate as well, and polls.)
class ReloadableCredentials final : public grpc::ServerCredentials {
 public:
  ReloadableCredentials(std::shared_ptr<Source> source,
                        grpc_ssl_client_certificate_request_type request)
      : source_(std::move(source)),
        credentials_(grpc_ssl_server_credentials_create_with_options(
            grpc_ssl_server_credentials_create_options_using_config_fetcher(
                request, FetchConfig, source_.get()))) {}
  ~ReloadableCredentials() override {
    grpc_server_credentials_release(credentials_);
  }
  // Callers are identified by server/rpc/identity.h.
  void SetAuthMetadataProcessor(
      const std::shared_ptr<grpc::AuthMetadataProcessor>&) override {}

 private:
  int AddPortToServer(const std::string& address,
                      grpc_server* server) override {
    return grpc_server_add_http2_port(server, address.c_str(), credentials_);
  }

  const std::shared_ptr<Source> source_;
  grpc_server_credentials* const credentials_;
};

class ServerTlsImpl final : public ServerTls {
 public:
  explicit ServerTlsImpl(ServerTlsOptions options)
      : options_(std::move(options)) {}

  std::shared_ptr<grpc::ServerCredentials> credentials() override {
    grpc_ssl_client_certificate_request_type request =
        GRPC_SSL_DONT_REQUEST_CLIENT_CERTIFICATE;
    if (!options_.files.client_ca.empty()) {
      request = options_.require_client_certificate
                    ? GRPC_SSL_REQUEST_AND_REQUIRE_CLIENT_CERTIFICATE_AND_VERIFY
                    : GRPC_SSL_REQUEST_CLIENT_CERTIFICATE_AND_VERIFY;
    }
    return std::make_shared<ReloadableCredentials>(source_, request);
  }
  absl::Status Reload() override {
    OVPRESS_ASSIGN_OR_RETURN(
        CertificatePems pems,
        LoadCertificates(options_.files, options_.clock->Now()));
    source_->Set(std::move(pems));
    return absl::OkStatus();
  }
  absl::Time not_after() const override { return source_->not_after(); }

 private:
  const ServerTlsOptions options_;
  const std::shared_ptr<Source> source_ = std::make_shared<Source>();
};

}  // namespace

absl::StatusOr<std::unique_ptr<ServerTls>> ServerTls::Create(
    ServerTlsOptions options) {
  auto tls = std::make_unique<ServerTlsImpl>(std::move(options));
  OVPRESS_RETURN_IF_ERROR(tls->Reload());
  return tls;
}

}  // namespace ovpress
