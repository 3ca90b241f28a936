// A few fixed pages over HTTP/1.1 for Prometheus and probes: GET only, one
// request per connection, small limits. Not a web server.
#ifndef OVPRESS_SERVER_RPC_HTTP_SERVER_H_
#define OVPRESS_SERVER_RPC_HTTP_SERVER_H_

#include <functional>
#include <map>
#include <memory>
#include <string>

#include "absl/status/statusor.h"

namespace ovpress {

struct HttpPage {
  int code = 200;
  std::string text;
};

class HttpServer {
 public:
  using Handler = std::function<HttpPage()>;
  // `address` is HOST:PORT, port 0 takes a free one. kUnavailable if it cannot
  // be bound. Handlers run on the server's one thread.
  static absl::StatusOr<std::unique_ptr<HttpServer>> Start(
      const std::string& address, std::map<std::string, Handler> pages);
  virtual ~HttpServer() = default;
  virtual int port() const = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_HTTP_SERVER_H_
