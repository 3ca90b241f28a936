// An HTTP/1.1 server on loopback that does what a test's script says: answers,
// stops in the middle, resets, sleeps, answers wrongly. One thread for each
// connection; connections are kept.
#ifndef OVPRESS_TESTS_CLUSTER_FAKE_HTTP_SERVER_H_
#define OVPRESS_TESTS_CLUSTER_FAKE_HTTP_SERVER_H_

#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <functional>
#include <map>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ovpress::testing {

struct FakeRequest {
  std::string method;
  std::string target;                          // path?query
  std::map<std::string, std::string> headers;  // names in lower case
  std::string body;
  int number = 0;  // from 1, over all requests of the server
};

struct FakeAnswer {
  int status = 200;
  std::vector<std::pair<std::string, std::string>> headers;
  std::string body;
  // Send so many bytes of the body, then cut the connection.
  size_t cut_after = std::string::npos;
  bool reset = false;      // cut by RST, not by FIN
  bool no_answer = false;  // cut before a byte
  std::chrono::milliseconds wait_before{0};
  // After cut_after bytes keep silent instead of cutting.
  bool stall = false;
};

class FakeHttpServer {
 public:
  using Script = std::function<FakeAnswer(const FakeRequest&)>;
  explicit FakeHttpServer(Script script) : script_(std::move(script)) {
    listener_ = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    ::bind(listener_, reinterpret_cast<sockaddr*>(&address), sizeof(address));
    ::listen(listener_, 64);
    socklen_t length = sizeof(address);
    ::getsockname(listener_, reinterpret_cast<sockaddr*>(&address), &length);
    port_ = ntohs(address.sin_port);
    acceptor_ = std::thread([this] { Accept(); });
  }
  ~FakeHttpServer() {
    stop_ = true;
    acceptor_.join();
    for (std::thread& thread : threads_) thread.join();
    ::close(listener_);
  }
  std::string endpoint() const {
    return absl::StrCat("http://127.0.0.1:", port_);
  }
  int port() const { return port_; }
  std::vector<FakeRequest> requests() {
    std::lock_guard<std::mutex> lock(mutex_);
    return requests_;
  }

 private:
  void Accept() {
    while (!stop_) {
      pollfd poll_fd{.fd = listener_, .events = POLLIN, .revents = 0};
      if (::poll(&poll_fd, 1, 20) <= 0) continue;
      const int fd = ::accept4(listener_, nullptr, nullptr, SOCK_CLOEXEC);
      if (fd >= 0) threads_.emplace_back([this, fd] { Serve(fd); });
    }
  }
  // Appends what comes; false at the end of the connection or of the server.
  bool Receive(int fd, std::string* buffer) {
    while (!stop_) {
      pollfd poll_fd{.fd = fd, .events = POLLIN, .revents = 0};
      if (::poll(&poll_fd, 1, 20) <= 0) continue;
      char block[65536];
      const ssize_t n = ::recv(fd, block, sizeof(block), 0);
      if (n <= 0) return false;
      buffer->append(block, static_cast<size_t>(n));
      return true;
    }
    return false;
  }
  static void SendAll(int fd, const std::string& bytes) {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n =
          ::send(fd, bytes.data() + done, bytes.size() - done, MSG_NOSIGNAL);
      if (n <= 0) return;
      done += static_cast<size_t>(n);
    }
  }
  void Serve(int fd) {
    std::string buffer;
    while (ServeOne(fd, &buffer)) {
    }
    ::close(fd);
  }
  bool ServeOne(int fd, std::string* buffer) {
    size_t end;
    while ((end = buffer->find("\r\n\r\n")) == std::string::npos) {
      if (!Receive(fd, buffer)) return false;
    }
    FakeRequest request;
    const std::vector<std::string> lines =
        absl::StrSplit(buffer->substr(0, end), "\r\n");
    const std::vector<std::string> first = absl::StrSplit(lines[0], ' ');
    request.method = first[0];
    request.target = first.size() > 1 ? first[1] : "";
    for (size_t i = 1; i < lines.size(); ++i) {
      const std::pair<std::string, std::string> header =
          absl::StrSplit(lines[i], absl::MaxSplits(':', 1));
      request.headers[absl::AsciiStrToLower(header.first)] =
          std::string(absl::StripAsciiWhitespace(header.second));
    }
    size_t length = 0;
    (void)absl::SimpleAtoi(request.headers["content-length"], &length);
    while (buffer->size() < end + 4 + length) {
      if (!Receive(fd, buffer)) return false;
    }
    request.body = buffer->substr(end + 4, length);
    buffer->erase(0, end + 4 + length);
    {
      std::lock_guard<std::mutex> lock(mutex_);
      request.number = static_cast<int>(requests_.size()) + 1;
      requests_.push_back(request);
    }
    const FakeAnswer answer = script_(request);
    std::this_thread::sleep_for(answer.wait_before);
    const auto cut = [&] {
      if (answer.reset) {
        const linger abort{.l_onoff = 1, .l_linger = 0};
        ::setsockopt(fd, SOL_SOCKET, SO_LINGER, &abort, sizeof(abort));
      }
      return false;
    };
    if (answer.no_answer) return cut();
    std::string head =
        absl::StrCat("HTTP/1.1 ", answer.status, " Scripted\r\n");
    for (const auto& [name, value] : answer.headers) {
      absl::StrAppend(&head, name, ": ", value, "\r\n");
    }
    absl::StrAppend(&head, "Content-Length: ", answer.body.size(), "\r\n\r\n");
    SendAll(fd, head);
    if (request.method == "HEAD") return true;
    if (answer.cut_after < answer.body.size()) {
      SendAll(fd, answer.body.substr(0, answer.cut_after));
      if (answer.stall) {
        std::string ignored;
        while (Receive(fd, &ignored)) {
        }
      } else {
        // Let the bytes arrive before the reset overtakes them.
        std::this_thread::sleep_for(std::chrono::milliseconds(30));
      }
      return cut();
    }
    SendAll(fd, answer.body);
    return true;
  }

  const Script script_;
  int listener_ = -1;
  int port_ = 0;
  std::atomic<bool> stop_{false};
  std::thread acceptor_;
  std::vector<std::thread> threads_;  // of the acceptor, until it ended
  std::mutex mutex_;
  std::vector<FakeRequest> requests_;
};

}  // namespace ovpress::testing

#endif  // OVPRESS_TESTS_CLUSTER_FAKE_HTTP_SERVER_H_
