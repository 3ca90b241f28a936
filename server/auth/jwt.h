// JSON Web Tokens (RFC 7519, 8725): signature, times, issuer, audience; then
// the caller in them.
#ifndef OVPRESS_SERVER_AUTH_JWT_H_
#define OVPRESS_SERVER_AUTH_JWT_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/auth/caller.h"
#include "server/auth/jwk_set.h"

namespace ovpress {

struct JwtOptions {
  std::string issuer;    // REQUIRED: "iss" must be this
  std::string audience;  // REQUIRED: "aud" must be this, or hold it
  // Clocks differ by so much at most.
  absl::Duration leeway = absl::Seconds(30);
  // A text with spaces between, or a list. Each scope is this prefix and
  // submit, read or admin; others are not ours and ignored.
  std::string scope_claim = "scope";
  std::string scope_prefix;
};

// Whether `token` has the form of a JWT (three parts), right or not.
bool LooksLikeJwt(absl::string_view token);

// The caller: identity "jwt:" + sub. kUnauthenticated BAD_TOKEN or
// TOKEN_EXPIRED; the message says which check failed and quotes nothing of an
// unsigned token.
absl::StatusOr<Caller> VerifyJwt(absl::string_view token, const JwkSet& keys,
                                 const JwtOptions& options, absl::Time now);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_JWT_H_
