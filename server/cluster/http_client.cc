#include "server/cluster/http_client.h"

#include <curl/curl.h>

#include <algorithm>
#include <cstring>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/base/check.h"
#include "core/base/mutex.h"
#include "core/base/patience.h"

namespace ovpress {
namespace {

constexpr size_t kMaxHeaders = 100;
constexpr size_t kMaxHeaderBytes = 64 << 10;

// One exchange in progress: what the callbacks share.
struct Exchange {
  CURL* handle = nullptr;
  const HttpRequest* request = nullptr;
  HttpResponse* response = nullptr;
  uint64_t max_text_bytes = 0;
  uint64_t sent = 0;
  size_t header_bytes = 0;
  absl::Status failed;  // reason of a callback that ended the exchange
};

size_t OnRead(char* buffer, size_t size, size_t count, void* user) {
  auto* const exchange = static_cast<Exchange*>(user);
  const HttpBody& body = exchange->request->body;
  const uint64_t left = body.size_bytes() - exchange->sent;
  const auto n = static_cast<size_t>(std::min<uint64_t>(size * count, left));
  if (n == 0) return 0;
  if (body.source == nullptr) {
    std::memcpy(buffer, body.bytes.data() + exchange->sent, n);
  } else {
    exchange->failed =
        body.source->ReadAt(body.offset + exchange->sent,
                            std::as_writable_bytes(std::span<char>(buffer, n)));
    if (!exchange->failed.ok()) return CURL_READFUNC_ABORT;
  }
  exchange->sent += n;
  return n;
}

int OnSeek(void* user, curl_off_t offset, int origin) {
  auto* const exchange = static_cast<Exchange*>(user);
  if (origin != SEEK_SET || offset < 0 ||
      static_cast<uint64_t>(offset) > exchange->request->body.size_bytes()) {
    return CURL_SEEKFUNC_FAIL;
  }
  exchange->sent = static_cast<uint64_t>(offset);
  return CURL_SEEKFUNC_OK;
}

size_t OnHeader(char* data, size_t size, size_t count, void* user) {
  auto* const exchange = static_cast<Exchange*>(user);
  const size_t n = size * count;
  const absl::string_view line(data, n);
  HttpResponse& response = *exchange->response;
  if (absl::StartsWith(line, "HTTP/")) {  // also after a 100
    response.headers.clear();
    exchange->header_bytes = 0;
    return n;
  }
  exchange->header_bytes += n;
  if (exchange->header_bytes > kMaxHeaderBytes ||
      response.headers.size() >= kMaxHeaders) {
    exchange->failed =
        absl::OutOfRangeError("the answer's headers are too long");
    return 0;
  }
  const size_t colon = line.find(':');
  if (colon != absl::string_view::npos) {
    response.headers[absl::AsciiStrToLower(line.substr(0, colon))] =
        std::string(absl::StripAsciiWhitespace(line.substr(colon + 1)));
  }
  return n;
}

size_t OnWrite(char* data, size_t size, size_t count, void* user) {
  auto* const exchange = static_cast<Exchange*>(user);
  const size_t n = size * count;
  HttpResponse& response = *exchange->response;
  if (response.status == 0) {
    long status = 0;
    curl_easy_getinfo(exchange->handle, CURLINFO_RESPONSE_CODE, &status);
    response.status = static_cast<int>(status);
  }
  const bool success = response.status >= 200 && response.status < 300;
  if (exchange->request->to_out && success) {
    const std::span<std::byte> out = exchange->request->out;
    if (n > out.size() - response.out_bytes) {
      exchange->failed = absl::OutOfRangeError(absl::StrCat(
          "the answer has more than the ", out.size(), " bytes asked for"));
      return 0;
    }
    std::memcpy(out.data() + response.out_bytes, data, n);
    response.out_bytes += n;
    return n;
  }
  if (n > exchange->max_text_bytes - response.text.size()) {
    exchange->failed =
        absl::OutOfRangeError(absl::StrCat("the answer's text has more than ",
                                           exchange->max_text_bytes, " bytes"));
    return 0;
  }
  response.text.append(data, n);
  return n;
}

// Called at least once a second, also while nothing moves.
int OnProgress(void*, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
  return Patience::Over() ? 1 : 0;
}

bool CannotHelp(CURLcode code) {
  switch (code) {
    case CURLE_UNSUPPORTED_PROTOCOL:
    case CURLE_URL_MALFORMAT:
    case CURLE_PEER_FAILED_VERIFICATION:
    case CURLE_SSL_CACERT_BADFILE:
    case CURLE_SSL_CERTPROBLEM:
    case CURLE_SSL_CIPHER:
    case CURLE_SSL_ISSUER_ERROR:
    case CURLE_NOT_BUILT_IN:
    case CURLE_BAD_FUNCTION_ARGUMENT:
      return true;
    default:
      return false;
  }
}

class CurlClient final : public HttpClient {
 public:
  explicit CurlClient(HttpClientOptions options)
      : options_(std::move(options)) {}
  ~CurlClient() override {
    for (CURL* const handle : idle_) curl_easy_cleanup(handle);
  }

  HttpResponse Send(const HttpRequest& request) override {
    CURL* const handle = Take();
    HttpResponse response;
    Exchange exchange{.handle = handle,
                      .request = &request,
                      .response = &response,
                      .max_text_bytes = options_.max_text_bytes};
    char reason[CURL_ERROR_SIZE] = "";
    curl_slist* const headers = Prepare(handle, request, &exchange, reason);
    const CURLcode code = curl_easy_perform(handle);
    long status = 0;
    curl_easy_getinfo(handle, CURLINFO_RESPONSE_CODE, &status);
    response.status = static_cast<int>(status);
    curl_slist_free_all(headers);
    if (code != CURLE_OK) {
      const char* const text =
          reason[0] != '\0' ? reason : curl_easy_strerror(code);
      if (!exchange.failed.ok()) {
        response.transport = exchange.failed;
      } else if (code == CURLE_ABORTED_BY_CALLBACK) {
        response.transport =
            absl::CancelledError("given up: it is not wanted any more");
      } else if (CannotHelp(code)) {
        response.transport = absl::FailedPreconditionError(text);
      } else {
        response.transport = absl::UnavailableError(text);
      }
    }
    GiveBack(handle, code == CURLE_OK);
    return response;
  }

 private:
  CURL* Take() {
    {
      MutexLock lock(&mutex_);
      if (!idle_.empty()) {
        CURL* const handle = idle_.back();
        idle_.pop_back();
        return handle;
      }
    }
    CURL* const handle = curl_easy_init();
    OVPRESS_CHECK(handle != nullptr);
    return handle;
  }

  void GiveBack(CURL* handle, bool good) {
    if (good) {
      curl_easy_reset(handle);  // keeps the connection
      MutexLock lock(&mutex_);
      if (idle_.size() < static_cast<size_t>(options_.max_idle)) {
        idle_.push_back(handle);
        return;
      }
    }
    curl_easy_cleanup(handle);
  }

  curl_slist* Prepare(CURL* handle, const HttpRequest& request,
                      Exchange* exchange, char* reason) const {
    const auto set = [handle](CURLoption option, auto value) {
      curl_easy_setopt(handle, option, value);
    };
    set(CURLOPT_ERRORBUFFER, reason);
    set(CURLOPT_URL, request.url.c_str());
    set(CURLOPT_PROTOCOLS_STR, "http,https");
    set(CURLOPT_HTTP_VERSION, static_cast<long>(CURL_HTTP_VERSION_1_1));
    // A path is sent as it was signed.
    set(CURLOPT_PATH_AS_IS, 1L);
    set(CURLOPT_FOLLOWLOCATION, 0L);
    set(CURLOPT_NOSIGNAL, 1L);
    set(CURLOPT_TCP_NODELAY, 1L);
    set(CURLOPT_TCP_KEEPALIVE, 1L);
    set(CURLOPT_BUFFERSIZE, 256L << 10);
    set(CURLOPT_UPLOAD_BUFFERSIZE, 256L << 10);
    set(CURLOPT_CONNECTTIMEOUT_MS,
        static_cast<long>(absl::ToInt64Milliseconds(options_.connect_timeout)));
    set(CURLOPT_LOW_SPEED_LIMIT, 1L);
    set(CURLOPT_LOW_SPEED_TIME,
        std::max(1L, static_cast<long>(
                         absl::ToInt64Seconds(request.silence_limit))));
    if (!options_.ca_file.empty()) {
      set(CURLOPT_CAINFO, options_.ca_file.c_str());
    }
    set(CURLOPT_WRITEFUNCTION, &OnWrite);
    set(CURLOPT_WRITEDATA, exchange);
    set(CURLOPT_HEADERFUNCTION, &OnHeader);
    set(CURLOPT_HEADERDATA, exchange);
    set(CURLOPT_XFERINFOFUNCTION, &OnProgress);
    set(CURLOPT_NOPROGRESS, 0L);
    set(CURLOPT_READFUNCTION, &OnRead);
    set(CURLOPT_READDATA, exchange);
    set(CURLOPT_SEEKFUNCTION, &OnSeek);
    set(CURLOPT_SEEKDATA, exchange);
    const auto size = static_cast<curl_off_t>(request.body.size_bytes());
    if (request.method == "HEAD") {
      set(CURLOPT_NOBODY, 1L);
    } else if (request.method == "PUT") {
      set(CURLOPT_UPLOAD, 1L);
      set(CURLOPT_INFILESIZE_LARGE, size);
    } else if (request.method == "POST") {
      set(CURLOPT_POST, 1L);
      set(CURLOPT_POSTFIELDSIZE_LARGE, size);
    } else {
      set(CURLOPT_HTTPGET, 1L);
      set(CURLOPT_CUSTOMREQUEST, request.method.c_str());
    }
    // Without these libcurl waits a second for a "100 Continue" that some
    // stores never send, and names a type that was not signed.
    curl_slist* headers = curl_slist_append(nullptr, "Expect:");
    if (request.method == "POST") {
      headers = curl_slist_append(headers, "Content-Type:");
    }
    for (const auto& [name, value] : request.headers) {
      // "name;" is libcurl's way to send a header without a value.
      const std::string line = value.empty() ? absl::StrCat(name, ";")
                                             : absl::StrCat(name, ": ", value);
      headers = curl_slist_append(headers, line.c_str());
    }
    set(CURLOPT_HTTPHEADER, headers);
    return headers;
  }

  const HttpClientOptions options_;
  Mutex mutex_;
  std::vector<CURL*> idle_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

std::string HttpResponse::Header(absl::string_view name) const {
  const auto it = headers.find(std::string(name));
  return it == headers.end() ? "" : it->second;
}

std::unique_ptr<HttpClient> HttpClient::Create(HttpClientOptions options) {
  // Not thread-safe by itself in this version; static initialization is.
  static const CURLcode initialized = curl_global_init(CURL_GLOBAL_DEFAULT);
  OVPRESS_CHECK(initialized == CURLE_OK);
  return std::make_unique<CurlClient>(std::move(options));
}

}  // namespace ovpress
