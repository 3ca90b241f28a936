// Decides for each call who makes it and whether it may. Holds what was read
// from the files and exchanges all of it at once when they change.
#ifndef OVPRESS_SERVER_AUTH_ACCESS_CONTROL_H_
#define OVPRESS_SERVER_AUTH_ACCESS_CONTROL_H_

#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "core/base/mutex.h"
#include "server/auth/caller.h"
#include "server/auth/jwt.h"
#include "server/auth/quota_file.h"
#include "server/auth/rate_limiter.h"
#include "server/auth/token_file.h"
#include "server/jobs/clock.h"
#include "server/jobs/quotas.h"

namespace ovpress {

struct AccessOptions {
  std::string token_file;  // "": no such tokens
  std::string jwks_file;   // "": no JWTs
  std::string quota_file;  // "": the same limits for all
  JwtOptions jwt;
  // Whether a verified client certificate is an identity, and what it may do
  // unless the token file's "identities" say otherwise.
  bool certificates = false;
  Scopes certificate_scopes = Scopes().With(Scope::kSubmit).With(Scope::kRead);
  // Of one identity; 0: no limit. Not for the anonymous caller of a server
  // without authentication, who is everybody.
  double max_requests_per_second = 200;
};

// What came with a call.
struct Credentials {
  std::vector<std::string> authorization;  // all values of that header
  // The names in a client certificate that the transport has verified.
  bool has_certificate = false;
  std::vector<std::string> certificate_uris;
  std::vector<std::string> certificate_dns;
  std::string certificate_common_name;
};

// "cert:" + the URI if there is exactly one, else the first DNS name, else the
// common name. kUnauthenticated if there is none that an identity may have.
absl::StatusOr<std::string> IdentityOfCertificate(const Credentials& from);

// Thread-safe.
class AccessControl final : public QuotaSource {
 public:
  // Reads all files; kInvalidArgument, kNotFound... with the file's name.
  // `clock` outlives the object.
  static absl::StatusOr<std::unique_ptr<AccessControl>> Create(
      AccessOptions options, Clock* clock);

  // Whether callers must say who they are.
  bool required() const;

  // Reads all files again. If one is not fine, nothing changes and the error
  // says which.
  absl::Status Reload();
  // "3 tokens, 1 certificate, 2 keys, 0 quotas": for the log.
  std::string Summary() const;

  // kUnauthenticated; kPermissionDenied without `needed` (nullopt: whoever is
  // known may); kResourceExhausted
  // above the identity's requests per second. Without any authentication
  // everybody is the anonymous caller, who may do all that is not admin's.
  absl::StatusOr<Caller> Admit(const Credentials& credentials,
                               std::optional<Scope> needed);

  OwnerQuota QuotaOf(absl::string_view owner) const override;

 private:
  struct Tables {
    TokenTable tokens;
    JwkSet keys;
    QuotaTable quotas;
  };
  AccessControl(AccessOptions options, Clock* clock)
      : options_(std::move(options)), clock_(clock) {}
  absl::StatusOr<std::shared_ptr<const Tables>> Load() const;
  std::shared_ptr<const Tables> tables() const;
  absl::StatusOr<Caller> Authenticate(const Credentials& credentials,
                                      const Tables& tables) const;
  absl::StatusOr<Caller> CallerOfToken(const std::string& header,
                                       const Tables& tables) const;

  const AccessOptions options_;
  Clock* const clock_;
  RateLimiter rates_;
  mutable Mutex mutex_;
  std::shared_ptr<const Tables> tables_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_ACCESS_CONTROL_H_
