#include "server/auth/token_file.h"

#include <openssl/crypto.h>
#include <openssl/rand.h>

#include <algorithm>
#include <set>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "server/auth/base64url.h"
#include "server/auth/json_fields.h"

namespace ovpress {
namespace {

using nlohmann::json;

constexpr size_t kHexDigits = 64;

std::array<uint8_t, 32> HashOfHex(absl::string_view hex) {
  const std::string bytes = absl::HexStringToBytes(hex);
  std::array<uint8_t, 32> hash{};
  std::copy(bytes.begin(), bytes.end(), hash.begin());
  return hash;
}

absl::StatusOr<Scopes> ReadScopes(JsonFields& fields) {
  OVPRESS_ASSIGN_OR_RETURN(const std::vector<std::string> names,
                           fields.Strings("scopes"));
  const absl::StatusOr<Scopes> scopes = ParseScopes(names);
  if (!scopes.ok() || scopes->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        fields.where(), ": ",
        scopes.ok() ? "scopes must not be empty" : scopes.status().message()));
  }
  return scopes;
}

absl::StatusOr<std::string> ReadIdentity(JsonFields& fields) {
  OVPRESS_ASSIGN_OR_RETURN(const std::string identity,
                           fields.String("identity"));
  if (const absl::Status status = ValidateIdentity(identity); !status.ok()) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.where(), ": ", status.message()));
  }
  return identity;
}

absl::StatusOr<TokenEntry> ReadToken(const json& value, std::string where) {
  OVPRESS_ASSIGN_OR_RETURN(JsonFields fields,
                           JsonFields::Create(value, std::move(where)));
  TokenEntry entry;
  OVPRESS_ASSIGN_OR_RETURN(entry.identity, ReadIdentity(fields));
  OVPRESS_ASSIGN_OR_RETURN(entry.sha256, fields.String("sha256"));
  if (entry.sha256.size() != kHexDigits ||
      !std::all_of(entry.sha256.begin(), entry.sha256.end(), [](char c) {
        return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
      })) {
    return absl::InvalidArgumentError(
        absl::StrCat(fields.where(),
                     ": sha256 must be the token's SHA-256, 64 lower-case "
                     "hexadecimal digits, never the token itself"));
  }
  OVPRESS_ASSIGN_OR_RETURN(entry.scopes, ReadScopes(fields));
  OVPRESS_ASSIGN_OR_RETURN(const std::optional<std::string> expires,
                           fields.OptionalString("expires"));
  std::string error;
  if (expires.has_value() &&
      !absl::ParseTime(absl::RFC3339_full, *expires, &entry.expires, &error)) {
    return absl::InvalidArgumentError(absl::StrCat(
        fields.where(), ": expires must be like 2027-01-31T00:00:00Z"));
  }
  OVPRESS_ASSIGN_OR_RETURN(const std::optional<std::string> comment,
                           fields.OptionalString("comment"));
  entry.comment = comment.value_or("");
  OVPRESS_RETURN_IF_ERROR(fields.Done());
  return entry;
}

}  // namespace

absl::StatusOr<TokenTable> TokenTable::Parse(absl::string_view text) {
  OVPRESS_ASSIGN_OR_RETURN(const json root, ParseJsonObject(text, "tokens"));
  OVPRESS_ASSIGN_OR_RETURN(JsonFields fields,
                           JsonFields::Create(root, "tokens"));
  TokenTable table;
  std::set<std::string> hashes;
  OVPRESS_ASSIGN_OR_RETURN(const json* const tokens,
                           fields.OptionalArray("tokens"));
  OVPRESS_ASSIGN_OR_RETURN(const json* const identities,
                           fields.OptionalArray("identities"));
  OVPRESS_RETURN_IF_ERROR(fields.Done());
  for (const json* list : {tokens, identities}) {
    if (list != nullptr && list->size() > kTokenEntriesMax) {
      return absl::InvalidArgumentError(absl::StrCat(
          "tokens: ", list->size(), " entries, at most ", kTokenEntriesMax));
    }
  }
  for (size_t i = 0; tokens != nullptr && i < tokens->size(); ++i) {
    const std::string where = absl::StrCat("tokens[", i, "]");
    OVPRESS_ASSIGN_OR_RETURN(TokenEntry entry, ReadToken((*tokens)[i], where));
    if (!hashes.insert(entry.sha256).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": the same sha256 is there twice"));
    }
    table.tokens_.push_back({.hash = HashOfHex(entry.sha256),
                             .caller = {.identity = std::move(entry.identity),
                                        .scopes = entry.scopes},
                             .expires = entry.expires});
  }
  for (size_t i = 0; identities != nullptr && i < identities->size(); ++i) {
    OVPRESS_ASSIGN_OR_RETURN(
        JsonFields entry,
        JsonFields::Create((*identities)[i],
                           absl::StrCat("identities[", i, "]")));
    OVPRESS_ASSIGN_OR_RETURN(std::string identity, ReadIdentity(entry));
    OVPRESS_ASSIGN_OR_RETURN(const Scopes scopes, ReadScopes(entry));
    OVPRESS_RETURN_IF_ERROR(entry.OptionalString("comment").status());
    OVPRESS_RETURN_IF_ERROR(entry.Done());
    if (!table.identities_.emplace(std::move(identity), scopes).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(entry.where(), ": the same identity is there twice"));
    }
  }
  return table;
}

absl::StatusOr<Caller> TokenTable::Find(absl::string_view token,
                                        absl::Time now) const {
  const std::array<uint8_t, 32> hash = HashOfHex(Sha256Hex(token));
  const Stored* found = nullptr;
  for (const Stored& entry : tokens_) {
    if (CRYPTO_memcmp(entry.hash.data(), hash.data(), hash.size()) == 0) {
      found = &entry;
    }
  }
  if (found == nullptr) {
    return UnauthenticatedError("BAD_TOKEN", "the bearer token is not known");
  }
  if (now >= found->expires) {
    return UnauthenticatedError(
        "TOKEN_EXPIRED",
        absl::StrCat("the token of ", found->caller.identity, " expired at ",
                     absl::FormatTime(absl::RFC3339_sec, found->expires,
                                      absl::UTCTimeZone())));
  }
  return found->caller;
}

std::optional<Scopes> TokenTable::ScopesOf(absl::string_view identity) const {
  const auto it = identities_.find(identity);
  if (it == identities_.end()) return std::nullopt;
  return it->second;
}

std::string NewToken() {
  unsigned char random[32];
  OVPRESS_CHECK(RAND_bytes(random, sizeof(random)) == 1);
  return absl::StrCat(
      "ovp_", EncodeBase64Url(absl::string_view(
                  reinterpret_cast<const char*>(random), sizeof(random))));
}

namespace {

json EntryToJson(const TokenEntry& entry) {
  json value = {{"identity", entry.identity},
                {"sha256", entry.sha256},
                {"scopes", ScopeNames(entry.scopes)}};
  if (entry.expires != absl::InfiniteFuture()) {
    value["expires"] = absl::FormatTime("%Y-%m-%d%ET%H:%M:%SZ", entry.expires,
                                        absl::UTCTimeZone());
  }
  if (!entry.comment.empty()) value["comment"] = entry.comment;
  return value;
}

// Never throws for text that is no UTF-8.
std::string Dump(const json& value, int indent) {
  return value.dump(indent, ' ', false, json::error_handler_t::replace);
}

}  // namespace

std::string FormatTokenEntry(const TokenEntry& entry) {
  return Dump(EntryToJson(entry), -1);
}

absl::StatusOr<std::string> AddTokenEntry(absl::string_view text,
                                          const TokenEntry& entry) {
  json root = json::object();
  if (!text.empty()) {
    OVPRESS_RETURN_IF_ERROR(TokenTable::Parse(text).status());
    OVPRESS_ASSIGN_OR_RETURN(root, ParseJsonObject(text, "tokens"));
  }
  root["tokens"].push_back(EntryToJson(entry));
  const std::string result = Dump(root, 2) + "\n";
  OVPRESS_RETURN_IF_ERROR(TokenTable::Parse(result).status());
  return result;
}

}  // namespace ovpress
