#include "server/auth/access_control.h"

#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "server/auth/json_fields.h"

namespace ovpress {
namespace {

constexpr absl::string_view kBearer = "bearer ";

// The file's text, and what `parse` makes of it; errors name the file.
template <typename Parse>
auto ReadConfig(const std::string& path, Parse parse)
    -> decltype(parse(absl::string_view())) {
  OVPRESS_ASSIGN_OR_RETURN(const std::string text,
                           ReadSmallFile(path, kConfigBytesMax));
  auto parsed = parse(absl::string_view(text));
  if (!parsed.ok()) {
    return absl::Status(parsed.status().code(),
                        absl::StrCat(path, ": ", parsed.status().message()));
  }
  return parsed;
}

}  // namespace

absl::StatusOr<std::string> IdentityOfCertificate(const Credentials& from) {
  std::string name = from.certificate_common_name;
  if (!from.certificate_dns.empty()) name = from.certificate_dns.front();
  if (from.certificate_uris.size() == 1) name = from.certificate_uris.front();
  std::string identity = absl::StrCat("cert:", name);
  if (name.empty() || !ValidateIdentity(identity).ok()) {
    return UnauthenticatedError(
        "BAD_CERTIFICATE",
        "the client certificate has no name that can be an identity: one URI, "
        "a DNS name or a common name of printable ASCII without spaces");
  }
  return identity;
}

absl::StatusOr<std::unique_ptr<AccessControl>> AccessControl::Create(
    AccessOptions options, Clock* clock) {
  if (!options.jwks_file.empty() &&
      (options.jwt.issuer.empty() || options.jwt.audience.empty())) {
    return absl::InvalidArgumentError(
        "a JWKS file needs the issuer and the audience to expect: without "
        "them every token that the issuer signs, for whatever service, would "
        "be taken");
  }
  std::unique_ptr<AccessControl> control(
      new AccessControl(std::move(options), clock));
  OVPRESS_RETURN_IF_ERROR(control->Reload());
  return control;
}

bool AccessControl::required() const {
  return !options_.token_file.empty() || !options_.jwks_file.empty() ||
         options_.certificates;
}

absl::StatusOr<std::shared_ptr<const AccessControl::Tables>>
AccessControl::Load() const {
  auto tables = std::make_shared<Tables>();
  if (!options_.token_file.empty()) {
    OVPRESS_ASSIGN_OR_RETURN(
        tables->tokens, ReadConfig(options_.token_file, TokenTable::Parse));
  }
  if (!options_.jwks_file.empty()) {
    OVPRESS_ASSIGN_OR_RETURN(tables->keys,
                             ReadConfig(options_.jwks_file, JwkSet::Parse));
  }
  if (!options_.quota_file.empty()) {
    OVPRESS_ASSIGN_OR_RETURN(tables->quotas,
                             ReadConfig(options_.quota_file, ParseQuotaFile));
  }
  return tables;
}

absl::Status AccessControl::Reload() {
  OVPRESS_ASSIGN_OR_RETURN(std::shared_ptr<const Tables> loaded, Load());
  MutexLock lock(&mutex_);
  tables_.swap(loaded);
  return absl::OkStatus();
}

std::shared_ptr<const AccessControl::Tables> AccessControl::tables() const {
  MutexLock lock(&mutex_);
  return tables_;
}

std::string AccessControl::Summary() const {
  const std::shared_ptr<const Tables> now = tables();
  return absl::StrCat(now->tokens.token_count(), " tokens, ",
                      now->tokens.identity_count(), " identities, ",
                      now->keys.size(), " JWT keys (", now->keys.ignored(),
                      " of other kinds), ", now->quotas.size(), " quotas");
}

absl::StatusOr<Caller> AccessControl::CallerOfToken(
    const std::string& header, const Tables& tables) const {
  if (header.size() > kBearer.size() + kTokenBytesMax) {
    return UnauthenticatedError(
        "BAD_TOKEN",
        absl::StrCat("the token is longer than ", kTokenBytesMax, " bytes"));
  }
  if (!absl::StartsWithIgnoreCase(header, kBearer)) {
    return UnauthenticatedError(
        "BAD_TOKEN", "the authorization header must be 'Bearer TOKEN'");
  }
  const absl::string_view token = absl::StripAsciiWhitespace(
      absl::string_view(header).substr(kBearer.size()));
  const absl::Time now = clock_->Now();
  if (!options_.jwks_file.empty() && LooksLikeJwt(token)) {
    OVPRESS_ASSIGN_OR_RETURN(Caller caller,
                             VerifyJwt(token, tables.keys, options_.jwt, now));
    caller.scopes =
        tables.tokens.ScopesOf(caller.identity).value_or(caller.scopes);
    return caller;
  }
  return tables.tokens.Find(token, now);
}

absl::StatusOr<Caller> AccessControl::Authenticate(
    const Credentials& credentials, const Tables& tables) const {
  // A token says more than the certificate of the connection, which may be a
  // proxy's. A wrong one never falls back to the certificate.
  const bool takes_tokens =
      !options_.token_file.empty() || !options_.jwks_file.empty();
  if (credentials.authorization.size() > 1) {
    return UnauthenticatedError("BAD_TOKEN",
                                "more than one authorization header");
  }
  if (takes_tokens && credentials.authorization.size() == 1) {
    return CallerOfToken(credentials.authorization.front(), tables);
  }
  if (options_.certificates && credentials.has_certificate) {
    Caller caller;
    OVPRESS_ASSIGN_OR_RETURN(caller.identity,
                             IdentityOfCertificate(credentials));
    caller.scopes = tables.tokens.ScopesOf(caller.identity)
                        .value_or(options_.certificate_scopes);
    return caller;
  }
  return UnauthenticatedError(
      "NO_CREDENTIALS",
      absl::StrCat("this server wants to know who calls: send ",
                   takes_tokens ? "authorization metadata 'Bearer TOKEN'" : "",
                   takes_tokens && options_.certificates ? " or " : "",
                   options_.certificates ? "a client certificate" : ""));
}

absl::StatusOr<Caller> AccessControl::Admit(const Credentials& credentials,
                                            std::optional<Scope> needed) {
  if (!required()) return AnonymousCaller();
  const std::shared_ptr<const Tables> now = tables();
  OVPRESS_ASSIGN_OR_RETURN(Caller caller, Authenticate(credentials, *now));
  const auto quota = now->quotas.find(caller.identity);
  double per_second = options_.max_requests_per_second;
  bool limited = per_second > 0;
  if (quota != now->quotas.end() && quota->second.max_requests.has_value()) {
    per_second = *quota->second.max_requests;
    limited = true;
  }
  // Before the scope: a caller without it must not be free to try all day.
  if (limited) {
    OVPRESS_RETURN_IF_ERROR(
        rates_.Admit(caller.identity, per_second, clock_->Now()));
  }
  if (needed.has_value() && !caller.scopes.Allow(*needed)) {
    return ScopeError(caller, *needed);
  }
  return caller;
}

OwnerQuota AccessControl::QuotaOf(absl::string_view owner) const {
  const std::shared_ptr<const Tables> now = tables();
  const auto it = now->quotas.find(owner);
  return it == now->quotas.end() ? OwnerQuota{} : it->second;
}

}  // namespace ovpress
