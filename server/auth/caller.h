// Who calls, and what the caller may do.
#ifndef OVPRESS_SERVER_AUTH_CALLER_H_
#define OVPRESS_SERVER_AUTH_CALLER_H_

#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ovpress {

// The numbers are bits.
enum class Scope : uint8_t {
  kSubmit = 1,  // upload, start, cancel and delete jobs
  kRead = 2,    // look at jobs, download results
  kAdmin = 4,   // both, for the jobs and blobs of everybody
};
absl::string_view ScopeName(Scope scope);  // "submit"

// A set of scopes.
class Scopes {
 public:
  constexpr Scopes() = default;
  static constexpr Scopes All() {
    return Scopes().With(Scope::kSubmit).With(Scope::kRead).With(Scope::kAdmin);
  }
  constexpr Scopes With(Scope scope) const {
    Scopes result = *this;
    result.bits_ = static_cast<uint8_t>(bits_ | static_cast<uint8_t>(scope));
    return result;
  }
  // kAdmin stands for the others, too.
  constexpr bool Allow(Scope scope) const {
    return (bits_ & (static_cast<uint8_t>(scope) |
                     static_cast<uint8_t>(Scope::kAdmin))) != 0;
  }
  constexpr bool empty() const { return bits_ == 0; }
  friend bool operator==(const Scopes&, const Scopes&) = default;

 private:
  uint8_t bits_ = 0;
};

// kInvalidArgument for a name that is none of the three.
absl::StatusOr<Scope> ParseScope(absl::string_view name);
absl::StatusOr<Scopes> ParseScopes(const std::vector<std::string>& names);
std::vector<std::string> ScopeNames(Scopes scopes);

struct Caller {
  // The owner of what the caller makes; "" is the anonymous one.
  std::string identity;
  Scopes scopes;

  bool is_admin() const { return scopes.Allow(Scope::kAdmin); }
  friend bool operator==(const Caller&, const Caller&) = default;
};

// Everybody, where callers need not say who they are: may do all that is not
// admin's.
inline Caller AnonymousCaller() {
  return {.scopes = Scopes().With(Scope::kSubmit).With(Scope::kRead)};
}

// 1 to 256 printable ASCII characters without space, quote or backslash: safe
// in logs, JSON and error messages. kInvalidArgument.
absl::Status ValidateIdentity(absl::string_view identity);

// kUnauthenticated with a reason for programs ("NO_CREDENTIALS", "BAD_TOKEN",
// "TOKEN_EXPIRED"...), and kPermissionDenied ("SCOPE_MISSING").
absl::Status UnauthenticatedError(absl::string_view reason,
                                  absl::string_view message);
absl::Status ScopeError(const Caller& caller, Scope needed);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_CALLER_H_
