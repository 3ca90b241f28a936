// Public keys from a local JWKS file (RFC 7517), for RS256 and ES256.
#ifndef OVPRESS_SERVER_AUTH_JWK_SET_H_
#define OVPRESS_SERVER_AUTH_JWK_SET_H_

#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ovpress {

enum class JwtAlgorithm { kRs256, kEs256 };

// A public key that verifies one algorithm. Immutable, thread-safe.
class VerificationKey {
 public:
  virtual ~VerificationKey() = default;
  virtual JwtAlgorithm algorithm() const = 0;
  virtual const std::string& id() const = 0;  // "kid"; may be empty
  // `signature` as in a JWS: for ES256 R and S of 32 bytes each, no DER.
  virtual bool Verify(absl::string_view message,
                      absl::string_view signature) const = 0;
};

// Immutable.
class JwkSet {
 public:
  // Keys that cannot verify RS256 or ES256 (other kty, curve, alg or use) are
  // left out and counted; a key of these kinds that is broken, weak (RSA below
  // 2048 bits) or private is kInvalidArgument, as is a set without any usable
  // key or with one kid twice.
  static absl::StatusOr<JwkSet> Parse(absl::string_view json);

  // The key with this id, or for an empty id the only key; else nullptr.
  const VerificationKey* Find(absl::string_view kid) const;
  size_t size() const { return keys_.size(); }
  size_t ignored() const { return ignored_; }

 private:
  std::vector<std::shared_ptr<const VerificationKey>> keys_;
  size_t ignored_ = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_JWK_SET_H_
