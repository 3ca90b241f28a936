#include "server/cluster/sigv4.h"

#include <openssl/evp.h>
#include <openssl/hmac.h>

#include <algorithm>
#include <map>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/check.h"
#include "core/base/sha256.h"

namespace ovpress {
namespace {

std::string HmacSha256(absl::string_view key, absl::string_view text) {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  OVPRESS_CHECK(HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
                     reinterpret_cast<const unsigned char*>(text.data()),
                     text.size(), digest, &length) != nullptr);
  return std::string(reinterpret_cast<const char*>(digest), length);
}

// Header values are signed without outer blanks and with runs of inner ones
// made one.
std::string Trimmed(absl::string_view value) {
  std::string text(value);
  absl::RemoveExtraAsciiWhitespace(&text);
  return text;
}

}  // namespace

std::string UriEncode(absl::string_view text, bool keep_slash) {
  static constexpr char kDigits[] = "0123456789ABCDEF";
  std::string encoded;
  encoded.reserve(text.size());
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (absl::ascii_isalnum(byte) || c == '-' || c == '.' || c == '_' ||
        c == '~' || (c == '/' && keep_slash)) {
      encoded.push_back(c);
    } else {
      encoded.push_back('%');
      encoded.push_back(kDigits[byte >> 4]);
      encoded.push_back(kDigits[byte & 15]);
    }
  }
  return encoded;
}

std::string CanonicalQuery(const NameValues& query) {
  std::vector<std::pair<std::string, std::string>> encoded;
  encoded.reserve(query.size());
  for (const auto& [name, value] : query) {
    encoded.emplace_back(UriEncode(name, false), UriEncode(value, false));
  }
  std::sort(encoded.begin(), encoded.end());
  return absl::StrJoin(encoded, "&", absl::PairFormatter("="));
}

NameValues SignV4(const SigV4Request& request, const SigV4Scope& scope,
                  const S3Credentials& credentials) {
  const std::string stamp =
      absl::FormatTime("%Y%m%dT%H%M%SZ", scope.time, absl::UTCTimeZone());
  NameValues added = {{"x-amz-content-sha256", request.payload_sha256},
                      {"x-amz-date", stamp}};
  if (!credentials.session_token.empty()) {
    added.emplace_back("x-amz-security-token", credentials.session_token);
  }
  std::map<std::string, std::string> signed_headers;
  for (const NameValues* const list :
       std::initializer_list<const NameValues*>{&request.headers, &added}) {
    for (const auto& [name, value] : *list) {
      signed_headers[absl::AsciiStrToLower(name)] = Trimmed(value);
    }
  }
  std::string header_lines;
  std::vector<std::string> names;
  for (const auto& [name, value] : signed_headers) {
    absl::StrAppend(&header_lines, name, ":", value, "\n");
    names.push_back(name);
  }
  const std::string name_list = absl::StrJoin(names, ";");
  const std::string canonical = absl::StrCat(
      request.method, "\n", request.path, "\n", CanonicalQuery(request.query),
      "\n", header_lines, "\n", name_list, "\n", request.payload_sha256);
  const std::string date = stamp.substr(0, 8);
  const std::string scope_text = absl::StrCat(date, "/", scope.region, "/",
                                              scope.service, "/aws4_request");
  const std::string to_sign =
      absl::StrCat("AWS4-HMAC-SHA256\n", stamp, "\n", scope_text, "\n",
                   Sha256Hex(canonical));
  std::string key =
      HmacSha256(absl::StrCat("AWS4", credentials.secret_access_key), date);
  key = HmacSha256(key, scope.region);
  key = HmacSha256(key, scope.service);
  key = HmacSha256(key, "aws4_request");
  added.emplace_back(
      "authorization",
      absl::StrCat("AWS4-HMAC-SHA256 Credential=", credentials.access_key_id,
                   "/", scope_text, ",SignedHeaders=", name_list, ",Signature=",
                   absl::BytesToHexString(HmacSha256(key, to_sign))));
  return added;
}

}  // namespace ovpress
