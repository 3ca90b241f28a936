#include "server/auth/caller.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"
#include "server/jobs/errors.h"

namespace ovpress {
namespace {

constexpr Scope kScopes[] = {Scope::kSubmit, Scope::kRead, Scope::kAdmin};
constexpr size_t kIdentityBytesMax = 256;

}  // namespace

absl::string_view ScopeName(Scope scope) {
  switch (scope) {
    case Scope::kSubmit:
      return "submit";
    case Scope::kRead:
      return "read";
    case Scope::kAdmin:
      return "admin";
  }
  return "";
}

absl::StatusOr<Scope> ParseScope(absl::string_view name) {
  for (const Scope scope : kScopes) {
    if (ScopeName(scope) == name) return scope;
  }
  return absl::InvalidArgumentError(
      absl::StrCat("scope '", absl::CHexEscape(name.substr(0, 80)),
                   "' must be submit, read or admin"));
}

absl::StatusOr<Scopes> ParseScopes(const std::vector<std::string>& names) {
  Scopes scopes;
  for (const std::string& name : names) {
    OVPRESS_ASSIGN_OR_RETURN(const Scope scope, ParseScope(name));
    scopes = scopes.With(scope);
  }
  return scopes;
}

std::vector<std::string> ScopeNames(Scopes scopes) {
  if (scopes.Allow(Scope::kAdmin)) return {"submit", "read", "admin"};
  std::vector<std::string> names;
  for (const Scope scope : kScopes) {
    if (scopes.Allow(scope)) names.emplace_back(ScopeName(scope));
  }
  return names;
}

absl::Status ValidateIdentity(absl::string_view identity) {
  const bool fine =
      !identity.empty() && identity.size() <= kIdentityBytesMax &&
      std::all_of(identity.begin(), identity.end(), [](char c) {
        return c > ' ' && c < 0x7f && c != '"' && c != '\'' && c != '\\';
      });
  if (fine) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "identity '", absl::CHexEscape(identity.substr(0, 80)), "' must be 1 to ",
      kIdentityBytesMax,
      " printable ASCII characters without space, quote or backslash"));
}

absl::Status UnauthenticatedError(absl::string_view reason,
                                  absl::string_view message) {
  return WithReason(absl::UnauthenticatedError(message), reason);
}

absl::Status ScopeError(const Caller& caller, Scope needed) {
  return WithReason(absl::PermissionDeniedError(absl::StrCat(
                        "this call needs the scope ", ScopeName(needed), "; ",
                        caller.identity, " has ",
                        caller.scopes.empty()
                            ? "none"
                            : absl::StrJoin(ScopeNames(caller.scopes), ", "))),
                    "SCOPE_MISSING");
}

}  // namespace ovpress
