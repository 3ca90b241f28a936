#include "server/auth/jwt.h"

#include <algorithm>
#include <cmath>
#include <optional>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/base/status_macros.h"
#include "server/auth/base64url.h"
#include "server/auth/json_fields.h"
#include "server/auth/token_file.h"

namespace ovpress {
namespace {

using nlohmann::json;

constexpr int kJsonDepthMax = 8;

absl::Status Bad(absl::string_view what) {
  return UnauthenticatedError("BAD_TOKEN", absl::StrCat("JWT: ", what));
}

absl::StatusOr<json> DecodeJson(absl::string_view part,
                                absl::string_view name) {
  const std::optional<std::string> text = DecodeBase64Url(part);
  if (!text.has_value()) {
    return Bad(absl::StrCat("the ", name, " is not base64url"));
  }
  absl::StatusOr<json> value = ParseJsonObject(*text, name, kJsonDepthMax);
  // The parser's message names no content, so it may be passed on.
  if (!value.ok()) return Bad(value.status().message());
  return value;
}

std::optional<std::string> StringMember(const json& object, const char* name) {
  const auto it = object.find(name);
  if (it == object.end() || !it->is_string()) return std::nullopt;
  return it->get<std::string>();
}

// Seconds since 1970, whole or not. nullopt if absent; an error if it is no
// number.
absl::StatusOr<std::optional<absl::Time>> TimeMember(const json& claims,
                                                     const char* name) {
  const auto it = claims.find(name);
  if (it == claims.end()) return std::nullopt;
  const double seconds = it->is_number() ? it->get<double>() : std::nan("");
  if (!std::isfinite(seconds)) {
    return Bad(absl::StrCat(name, " must be a number of seconds"));
  }
  // Durations saturate, so a huge number is the far future.
  return absl::UnixEpoch() + absl::Seconds(seconds);
}

absl::Status CheckHeader(const json& header, JwtAlgorithm* algorithm) {
  // An extension that we do not know must not be ignored (RFC 7515, 4.1.11).
  if (header.contains("crit")) return Bad("crit is not supported");
  const std::optional<std::string> alg = StringMember(header, "alg");
  if (alg == "RS256") {
    *algorithm = JwtAlgorithm::kRs256;
  } else if (alg == "ES256") {
    *algorithm = JwtAlgorithm::kEs256;
  } else {
    return Bad("alg must be RS256 or ES256");
  }
  return absl::OkStatus();
}

absl::Status CheckTimes(const json& claims, const JwtOptions& options,
                        absl::Time now) {
  OVPRESS_ASSIGN_OR_RETURN(const auto expires, TimeMember(claims, "exp"));
  OVPRESS_ASSIGN_OR_RETURN(const auto not_before, TimeMember(claims, "nbf"));
  OVPRESS_ASSIGN_OR_RETURN(const auto issued, TimeMember(claims, "iat"));
  if (!expires.has_value()) return Bad("exp is missing");
  if (now >= *expires + options.leeway) {
    return UnauthenticatedError("TOKEN_EXPIRED", "JWT: exp is over");
  }
  if (not_before.has_value() && now < *not_before - options.leeway) {
    return Bad("nbf is in the future");
  }
  if (issued.has_value() && now < *issued - options.leeway) {
    return Bad("iat is in the future");
  }
  return absl::OkStatus();
}

bool AudienceFits(const json& claims, const std::string& audience) {
  const auto it = claims.find("aud");
  if (it == claims.end()) return false;
  if (it->is_array()) {
    return std::find(it->begin(), it->end(), audience) != it->end();
  }
  return *it == audience;
}

absl::StatusOr<Scopes> ScopesOf(const json& claims, const JwtOptions& options) {
  std::vector<std::string> names;
  const auto it = claims.find(options.scope_claim);
  if (it != claims.end() && it->is_string()) {
    names = absl::StrSplit(it->get<std::string>(), ' ', absl::SkipEmpty());
  } else if (it != claims.end() && it->is_array()) {
    for (const json& name : *it) {
      if (!name.is_string()) return Bad("a scope that is no string");
      names.push_back(name.get<std::string>());
    }
  } else if (it != claims.end()) {
    return Bad("the scopes must be a string or a list");
  }
  Scopes scopes;
  for (absl::string_view name : names) {
    if (!absl::ConsumePrefix(&name, options.scope_prefix)) continue;
    const absl::StatusOr<Scope> scope = ParseScope(name);
    if (scope.ok()) scopes = scopes.With(*scope);
  }
  return scopes;
}

}  // namespace

bool LooksLikeJwt(absl::string_view token) {
  return std::count(token.begin(), token.end(), '.') == 2;
}

absl::StatusOr<Caller> VerifyJwt(absl::string_view token, const JwkSet& keys,
                                 const JwtOptions& options, absl::Time now) {
  if (token.size() > kTokenBytesMax) {
    return Bad(absl::StrCat("longer than ", kTokenBytesMax, " bytes"));
  }
  const std::vector<absl::string_view> parts = absl::StrSplit(token, '.');
  if (parts.size() != 3) return Bad("must have three parts");
  OVPRESS_ASSIGN_OR_RETURN(const json header, DecodeJson(parts[0], "header"));
  JwtAlgorithm algorithm = JwtAlgorithm::kRs256;
  OVPRESS_RETURN_IF_ERROR(CheckHeader(header, &algorithm));
  if (header.contains("kid") && !header["kid"].is_string()) {
    return Bad("kid must be a string");
  }
  const VerificationKey* key =
      keys.Find(StringMember(header, "kid").value_or(""));
  if (key == nullptr) {
    return Bad("kid names no key of the JWKS file (or is missing)");
  }
  // The key decides, never the token: an RSA key checks RS256 and nothing else.
  if (key->algorithm() != algorithm) return Bad("alg is not that of the key");
  const std::optional<std::string> signature = DecodeBase64Url(parts[2]);
  const absl::string_view signed_part =
      token.substr(0, parts[0].size() + 1 + parts[1].size());
  if (!signature.has_value() || !key->Verify(signed_part, *signature)) {
    return Bad("the signature is wrong");
  }
  OVPRESS_ASSIGN_OR_RETURN(const json claims, DecodeJson(parts[1], "claims"));
  OVPRESS_RETURN_IF_ERROR(CheckTimes(claims, options, now));
  if (StringMember(claims, "iss") != options.issuer) {
    return Bad("iss is not the issuer that this server trusts");
  }
  if (!AudienceFits(claims, options.audience)) {
    return Bad("aud does not name this server");
  }
  Caller caller;
  caller.identity =
      absl::StrCat("jwt:", StringMember(claims, "sub").value_or(""));
  if (caller.identity.size() <= 4 || !ValidateIdentity(caller.identity).ok()) {
    return Bad("sub must be there, printable ASCII without spaces or quotes");
  }
  OVPRESS_ASSIGN_OR_RETURN(caller.scopes, ScopesOf(claims, options));
  return caller;
}

}  // namespace ovpress
