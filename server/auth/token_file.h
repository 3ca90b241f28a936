// Bearer tokens from a file that holds their hashes only (docs/security.md):
//   {"tokens": [{"identity": "team-a", "sha256": "9f86...", "scopes":
//   ["submit",
//                "read"], "expires": "2027-01-31T00:00:00Z", "comment": "ci"}],
//    "identities": [{"identity": "cert:ops.example", "scopes": ["admin"]}]}
// "expires" and "comment" may be absent; "identities" gives scopes to callers
// who are known by something else, a certificate or a JWT. Several tokens may
// have one identity: that is how they are rotated.
#ifndef OVPRESS_SERVER_AUTH_TOKEN_FILE_H_
#define OVPRESS_SERVER_AUTH_TOKEN_FILE_H_

#include <array>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/auth/caller.h"

namespace ovpress {

// Longest token of any kind. gRPC itself stops at 8 KiB of metadata.
inline constexpr size_t kTokenBytesMax = 8192;
// Bounds the scan of all hashes that each call makes: 10,000 take 0.35 ms.
inline constexpr size_t kTokenEntriesMax = 10'000;

struct TokenEntry {
  std::string identity;
  std::string sha256;  // of the token, 64 lower-case hexadecimal digits
  Scopes scopes;
  absl::Time expires = absl::InfiniteFuture();
  std::string comment;
};

// Immutable.
class TokenTable {
 public:
  // kInvalidArgument, with the place, for anything that is not as above:
  // unknown keys, two entries with one hash, an entry without scopes.
  static absl::StatusOr<TokenTable> Parse(absl::string_view json);

  // kUnauthenticated: BAD_TOKEN or TOKEN_EXPIRED. Takes the same time whatever
  // the token is: it is hashed, and the hash compared with every entry.
  absl::StatusOr<Caller> Find(absl::string_view token, absl::Time now) const;
  // What "identities" says of a caller who did not come with one of the tokens.
  std::optional<Scopes> ScopesOf(absl::string_view identity) const;

  size_t token_count() const { return tokens_.size(); }
  size_t identity_count() const { return identities_.size(); }

 private:
  struct Stored {
    std::array<uint8_t, 32> hash;
    Caller caller;
    absl::Time expires;
  };
  std::vector<Stored> tokens_;
  std::map<std::string, Scopes, std::less<>> identities_;
};

// A token of 256 random bits, "ovp_" in front.
std::string NewToken();
// The entry as JSON on one line.
std::string FormatTokenEntry(const TokenEntry& entry);
// The text of a token file ("" : none yet) with one entry more.
// kInvalidArgument if the text or the entry is not as it must be.
absl::StatusOr<std::string> AddTokenEntry(absl::string_view json,
                                          const TokenEntry& entry);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_TOKEN_FILE_H_
