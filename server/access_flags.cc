#include "server/access_flags.h"

#include <sys/stat.h>

#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/loopback.h"
#include "core/base/status_macros.h"
#include "spdlog/spdlog.h"

namespace ovpress {

void AccessFlags::Register(CLI::App* app) {
  const auto add = [app](const std::string& name, std::string* value,
                         const std::string& help) {
    return app->add_option(name, *value, help)->group("Access");
  };
  add("--tls-cert", &tls_cert,
      "The server's certificate and chain, PEM; without it nothing is "
      "encrypted")
      ->type_name("FILE");
  add("--tls-key", &tls_key, "Its key, PEM")->type_name("FILE");
  add("--tls-client-ca", &tls_client_ca,
      "CA certificates, PEM: clients show a certificate, which is their "
      "identity unless they send a token")
      ->type_name("FILE");
  add("--tls-client-auth", &tls_client_auth,
      "With --tls-client-ca: require a certificate, or request one and take "
      "a token instead")
      ->check(CLI::IsMember({"require", "request"}))
      ->capture_default_str();
  app->add_option("--client-cert-scopes", client_cert_scopes,
                  "What certificates allow that the token file does not name: "
                  "submit, read, admin, or none")
      ->delimiter(',')
      ->check(CLI::IsMember({"submit", "read", "admin", "none"}))
      ->capture_default_str()
      ->group("Access");
  add("--token-file", &access.token_file,
      "Hashes of bearer tokens, with identities and scopes; see 'token new'")
      ->type_name("FILE");
  add("--jwks-file", &access.jwks_file,
      "Public keys (JWKS) of JWTs to take, RS256 and ES256")
      ->type_name("FILE");
  add("--jwt-issuer", &access.jwt.issuer, "What 'iss' of a JWT must be");
  add("--jwt-audience", &access.jwt.audience, "What 'aud' of a JWT must hold");
  app->add_option("--jwt-leeway", jwt_leeway_seconds,
                  "By how much clocks may differ (seconds)")
      ->check(CLI::Range(0.0, 600.0))
      ->capture_default_str()
      ->group("Access");
  add("--jwt-scope-claim", &access.jwt.scope_claim,
      "The claim of a JWT that holds its scopes")
      ->capture_default_str();
  add("--jwt-scope-prefix", &access.jwt.scope_prefix,
      "What stands before submit, read and admin there: 'ovpress:', say");
  add("--quota-file", &access.quota_file,
      "Limits of single clients that differ from those below")
      ->type_name("FILE");
  app->add_option("--max-requests-per-second", access.max_requests_per_second,
                  "Calls of one known client, twice as many at once; 0: no "
                  "limit")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group("Access");
  app->add_option("--reload-seconds", reload_seconds,
                  "How often the files above are looked at for changes, which "
                  "SIGHUP does at once; 0: never")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group("Access");
  app->add_option("--reflection", reflection,
                  "Whether clients may ask for the API's description: on, off, "
                  "or auto: on unless clients must say who they are")
      ->check(CLI::IsMember({"auto", "on", "off"}))
      ->capture_default_str()
      ->group("Access");
  app->add_flag("--insecure-listen", insecure_listen,
                "Listen beyond loopback although there is no TLS, or nobody "
                "must say who they are")
      ->group("Access");
}

absl::StatusOr<std::unique_ptr<ServerAccess>> ServerAccess::Open(
    const AccessFlags& flags, const std::string& listen, Clock* clock,
    Metrics* metrics) {
  if (flags.tls_cert.empty() != flags.tls_key.empty()) {
    return absl::InvalidArgumentError(
        "--tls-cert and --tls-key belong together: give both or neither");
  }
  const bool tls = !flags.tls_cert.empty();
  if (!tls && !flags.tls_client_ca.empty()) {
    return absl::InvalidArgumentError(
        "--tls-client-ca needs TLS: give --tls-cert and --tls-key");
  }
  std::unique_ptr<ServerAccess> result(new ServerAccess(flags, metrics));
  AccessOptions access = flags.access;
  access.jwt.leeway = absl::Seconds(flags.jwt_leeway_seconds);
  access.certificates = !flags.tls_client_ca.empty();
  access.certificate_scopes = Scopes();
  for (const std::string& name : flags.client_cert_scopes) {
    if (name == "none") continue;
    OVPRESS_ASSIGN_OR_RETURN(const Scope scope, ParseScope(name));
    access.certificate_scopes = access.certificate_scopes.With(scope);
  }
  // Before the files are read: what changes in between is seen later.
  result->seen_ = result->Look();
  OVPRESS_ASSIGN_OR_RETURN(result->control_,
                           AccessControl::Create(std::move(access), clock));
  const bool known = result->control_->required();
  if (!IsLoopbackAddress(listen) && !(tls && known) && !flags.insecure_listen) {
    return absl::InvalidArgumentError(absl::StrCat(
        "--listen ", listen, " can be reached from other machines, and ",
        tls ? "everybody may use this server: give --token-file, --jwks-file "
              "or --tls-client-ca"
        : known ? "tokens and models would travel unencrypted: give "
                  "--tls-cert and --tls-key"
                : "there is neither TLS (--tls-cert, --tls-key) nor "
                  "authentication (--token-file, --jwks-file)",
        "; or say that this is meant with --insecure-listen"));
  }
  if (tls) {
    OVPRESS_ASSIGN_OR_RETURN(
        result->tls_,
        ServerTls::Create(
            {.files = {.certificate = flags.tls_cert,
                       .key = flags.tls_key,
                       .client_ca = flags.tls_client_ca},
             .require_client_certificate = flags.tls_client_auth == "require",
             .clock = clock}));
    metrics->SetCertificateEnd(result->tls_->not_after());
  }
  return result;
}

std::shared_ptr<grpc::ServerCredentials> ServerAccess::credentials() {
  return tls_ != nullptr ? tls_->credentials()
                         : grpc::InsecureServerCredentials();
}

bool ServerAccess::reflection() const {
  return flags_.reflection == "on" ||
         (flags_.reflection == "auto" && !control_->required());
}

std::string ServerAccess::Summary() const {
  std::string text = "plain text";
  if (tls_ != nullptr) {
    text = absl::StrCat("TLS",
                        flags_.tls_client_ca.empty()
                            ? ""
                            : absl::StrCat(" (client certificates: ",
                                           flags_.tls_client_auth, ")"),
                        ", certificate until ",
                        absl::FormatTime(absl::RFC3339_sec, tls_->not_after(),
                                         absl::UTCTimeZone()));
  }
  return absl::StrCat(text, "; ",
                      control_->required() ? "callers must say who they are: "
                                           : "everybody may call: ",
                      control_->Summary());
}

std::string ServerAccess::Look() const {
  std::string look;
  std::vector<std::string> paths = {flags_.tls_cert, flags_.tls_key,
                                    flags_.tls_client_ca};
  for (const std::string& path :
       {flags_.access.token_file, flags_.access.jwks_file,
        flags_.access.quota_file}) {
    paths.push_back(path);
  }
  for (const std::string& path : paths) {
    struct stat info {};
    if (!path.empty() && ::stat(path.c_str(), &info) == 0) {
      absl::StrAppend(&look, info.st_ino, ".", info.st_size, ".",
                      info.st_mtim.tv_sec, ".", info.st_mtim.tv_nsec);
    }
    look += "|";
  }
  return look;
}

absl::Status ServerAccess::ReloadAll() {
  // Both are tried: a bad token file must not keep an old certificate in use.
  absl::Status status = control_->Reload();
  if (tls_ != nullptr) {
    const absl::Status tls = tls_->Reload();
    metrics_->SetCertificateEnd(tls_->not_after());
    if (status.ok()) {
      status = tls;
    } else if (!tls.ok()) {
      status = absl::Status(
          status.code(), absl::StrCat(status.message(), "; ", tls.message()));
    }
  }
  return status;
}

void ServerAccess::Reload() {
  seen_ = Look();
  const absl::Status status = ReloadAll();
  metrics_->OnReload(status.ok());
  last_error_ = std::string(status.message());
  if (status.ok()) {
    spdlog::info("read certificates, tokens, keys and quotas again: {}",
                 Summary());
  } else {
    spdlog::error("what could not be read stays as it was: {}", last_error_);
  }
}

void ServerAccess::ReloadIfChanged() {
  if (last_error_.empty()) {
    if (Look() != seen_) Reload();
    return;
  }
  // Files are not exchanged at one moment: try until they fit together, but
  // say the same only once.
  const std::string look = Look();
  const absl::Status status = ReloadAll();
  if (status.ok() || status.message() != last_error_) Reload();
  seen_ = look;
}

}  // namespace ovpress
