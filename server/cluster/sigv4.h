// AWS Signature Version 4: a pure function from a request to the headers that
// prove who sent it. Own code rather than libcurl's: that of 7.88 neither sorts
// nor encodes the query and cannot take a payload hash that it did not compute.
#ifndef OVPRESS_SERVER_CLUSTER_SIGV4_H_
#define OVPRESS_SERVER_CLUSTER_SIGV4_H_

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace ovpress {

using NameValues = std::vector<std::pair<std::string, std::string>>;

// What signs. An empty session token means long-lived keys.
struct S3Credentials {
  std::string access_key_id;
  std::string secret_access_key;
  std::string session_token;
  absl::Time expires = absl::InfiniteFuture();
};

// Percent-encoding by RFC 3986 in the form that the signature wants: upper-case
// digits, everything but A-Z a-z 0-9 - . _ ~ encoded; '/' stays in paths.
std::string UriEncode(absl::string_view text, bool keep_slash);

// "a=1&b=" : encoded and sorted, as it is signed and as it must be sent.
std::string CanonicalQuery(const NameValues& query);

struct SigV4Request {
  std::string method;
  std::string path;  // as sent, encoded: "/bucket/a%20b"
  NameValues query;  // plain
  // To be signed, "host" among them. Others may be added to the request later.
  NameValues headers;
  std::string payload_sha256;  // lower-case hexadecimal, or UNSIGNED-PAYLOAD
};
struct SigV4Scope {
  std::string region;
  std::string service = "s3";
  absl::Time time;
};

// The headers to add: x-amz-date, x-amz-content-sha256, x-amz-security-token
// if there is one, authorization.
NameValues SignV4(const SigV4Request& request, const SigV4Scope& scope,
                  const S3Credentials& credentials);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_SIGV4_H_
