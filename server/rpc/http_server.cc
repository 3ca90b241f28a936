#include "server/rpc/http_server.h"

#include <netdb.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"

namespace ovpress {
namespace {

constexpr size_t kRequestBytesMax = 8192;
// A peer that is slower than this is dropped; it delays the next one so long.
constexpr timeval kPeerTimeout = {.tv_sec = 2, .tv_usec = 0};

class HttpServerImpl final : public HttpServer {
 public:
  HttpServerImpl(int listener, int port, std::map<std::string, Handler> pages)
      : listener_(listener),
        stop_(::eventfd(0, EFD_CLOEXEC)),
        port_(port),
        pages_(std::move(pages)),
        thread_([this] { Serve(); }) {}

  ~HttpServerImpl() override {
    const uint64_t one = 1;
    (void)!::write(stop_, &one, sizeof(one));
    thread_.join();
    ::close(stop_);
    ::close(listener_);
  }

  int port() const override { return port_; }

 private:
  void Serve() {
    while (true) {
      pollfd waits[2] = {{.fd = listener_, .events = POLLIN, .revents = 0},
                         {.fd = stop_, .events = POLLIN, .revents = 0}};
      if (::poll(waits, 2, -1) < 0 && errno != EINTR) return;
      if (waits[1].revents != 0) return;
      if (waits[0].revents == 0) continue;
      const int peer = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (peer < 0) continue;
      ::setsockopt(peer, SOL_SOCKET, SO_RCVTIMEO, &kPeerTimeout,
                   sizeof(kPeerTimeout));
      ::setsockopt(peer, SOL_SOCKET, SO_SNDTIMEO, &kPeerTimeout,
                   sizeof(kPeerTimeout));
      Answer(peer);
      ::close(peer);
    }
  }

  void Answer(int peer) {
    std::string request;
    char block[1024];
    while (request.find("\r\n\r\n") == std::string::npos) {
      const ssize_t n = ::recv(peer, block, sizeof(block), 0);
      if (n <= 0 || request.size() > kRequestBytesMax) return;
      request.append(block, static_cast<size_t>(n));
    }
    const std::string line = request.substr(0, request.find("\r\n"));
    HttpPage page{.code = 404, .text = "not found\n"};
    if (line.rfind("GET ", 0) != 0) {
      page = {.code = 405, .text = "only GET\n"};
    } else {
      std::string path = line.substr(4, line.find(' ', 4) - 4);
      path = path.substr(0, path.find('?'));
      const auto it = pages_.find(path);
      if (it != pages_.end()) page = it->second();
    }
    const std::string answer = absl::StrCat(
        "HTTP/1.1 ", page.code, page.code == 200 ? " OK" : " Error",
        "\r\nContent-Type: text/plain; version=0.0.4; charset=utf-8"
        "\r\nContent-Length: ",
        page.text.size(), "\r\nConnection: close\r\n\r\n", page.text);
    for (size_t sent = 0; sent < answer.size();) {
      const ssize_t n = ::send(peer, answer.data() + sent,
                               answer.size() - sent, MSG_NOSIGNAL);
      if (n <= 0) return;
      sent += static_cast<size_t>(n);
    }
  }

  const int listener_;
  const int stop_;
  const int port_;
  const std::map<std::string, Handler> pages_;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<HttpServer>> HttpServer::Start(
    const std::string& address, std::map<std::string, Handler> pages) {
  const size_t colon = address.rfind(':');
  if (colon == std::string::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", address, "' must be HOST:PORT"));
  }
  std::string host = address.substr(0, colon);
  if (host.size() > 2 && host.front() == '[') {
    host = host.substr(1, host.size() - 2);
  }
  addrinfo hints{};
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_PASSIVE;
  addrinfo* found = nullptr;
  const int code =
      ::getaddrinfo(host.empty() ? nullptr : host.c_str(),
                    address.substr(colon + 1).c_str(), &hints, &found);
  if (code != 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("cannot listen on ", address, ": ", ::gai_strerror(code)));
  }
  const std::unique_ptr<addrinfo, void (*)(addrinfo*)> info(found,
                                                            ::freeaddrinfo);
  const int fd = ::socket(info->ai_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
  const int on = 1;
  if (fd >= 0) ::setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (fd < 0 || ::bind(fd, info->ai_addr, info->ai_addrlen) != 0 ||
      ::listen(fd, 64) != 0) {
    const int error = errno;
    if (fd >= 0) ::close(fd);
    return absl::UnavailableError(absl::StrCat(
        "cannot listen on ", address, ": ", std::strerror(error)));
  }
  sockaddr_storage bound{};
  socklen_t length = sizeof(bound);
  ::getsockname(fd, reinterpret_cast<sockaddr*>(&bound), &length);
  char port[8] = "";
  ::getnameinfo(reinterpret_cast<sockaddr*>(&bound), length, nullptr, 0, port,
                sizeof(port), NI_NUMERICSERV);
  return std::make_unique<HttpServerImpl>(fd, std::atoi(port),
                                          std::move(pages));
}

}  // namespace ovpress
