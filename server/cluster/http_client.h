// One HTTP exchange by libcurl: connections kept and reused, time-outs by
// silence instead of by length, the body straight into the caller's memory. No
// retries and no meaning: those are S3Client's.
#ifndef OVPRESS_SERVER_CLUSTER_HTTP_CLIENT_H_
#define OVPRESS_SERVER_CLUSTER_HTTP_CLIENT_H_

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "core/base/io.h"
#include "server/cluster/sigv4.h"

namespace ovpress {

// Bytes to send: memory, or a range of a source (which is read while sending,
// so that a part of 64 MiB does not need 64 MiB). Can be sent again.
struct HttpBody {
  std::span<const std::byte> bytes;
  ByteSource* source = nullptr;
  uint64_t offset = 0;
  uint64_t size = 0;  // of the range of `source`

  uint64_t size_bytes() const {
    return source != nullptr ? size : bytes.size();
  }
};

struct HttpRequest {
  std::string method = "GET";
  std::string url;
  NameValues headers;
  HttpBody body;
  // Where the body of a 2xx answer goes; without it all goes to
  // HttpResponse::text.
  std::span<std::byte> out;
  bool to_out = false;
  absl::Duration silence_limit = absl::Seconds(30);
};

struct HttpResponse {
  int status = 0;                              // 0: none came
  std::map<std::string, std::string> headers;  // names in lower case
  std::string text;
  uint64_t out_bytes = 0;  // of `out`, filled from its start
  // OK if the exchange ended as the protocol says. Otherwise kUnavailable
  // (trying again may help: no connection, reset, silence, too short a body),
  // kFailedPrecondition (it cannot: unusable URL, certificate refused),
  // kCancelled (Patience was over),
  // kOutOfRange (more body than asked for), or the error of the body's source.
  // What came until then is there.
  absl::Status transport;

  std::string Header(absl::string_view name) const;
};

struct HttpClientOptions {
  absl::Duration connect_timeout = absl::Seconds(10);
  // CA certificates in PEM; empty: the system's.
  std::string ca_file;
  // Idle connections kept; more are closed.
  int max_idle = 32;
  // Largest text: lists of 1000 entries stay below 1 MiB.
  uint64_t max_text_bytes = 8ull << 20;
};

// Thread-safe; a call blocks.
class HttpClient {
 public:
  static std::unique_ptr<HttpClient> Create(HttpClientOptions options);
  virtual ~HttpClient() = default;
  virtual HttpResponse Send(const HttpRequest& request) = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_HTTP_CLIENT_H_
