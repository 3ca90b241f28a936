#include "server/cluster/s3_client.h"

#include <openssl/evp.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <optional>
#include <random>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/clock.h"
#include "core/base/patience.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "pugixml.hpp"

namespace ovpress {
namespace {

constexpr size_t kHashBlockBytes = 1 << 20;
// Of an error's text that goes into a message.
constexpr size_t kMaxQuotedBytes = 300;

absl::StatusOr<std::string> HashBody(const HttpBody& body) {
  Sha256Hasher hasher;
  if (body.source == nullptr) {
    hasher.Update(body.bytes);
    return hasher.FinishHex();
  }
  std::vector<std::byte> block(std::min<uint64_t>(body.size, kHashBlockBytes));
  for (uint64_t at = 0; at < body.size; at += block.size()) {
    const std::span<std::byte> part = std::span(block).first(
        std::min<uint64_t>(block.size(), body.size - at));
    OVPRESS_RETURN_IF_ERROR(body.source->ReadAt(body.offset + at, part));
    hasher.Update(part);
  }
  return hasher.FinishHex();
}

struct S3Error {
  std::string code;
  std::string message;
};

S3Error ParseError(const std::string& text) {
  S3Error error;
  pugi::xml_document document;
  if (document.load_buffer(text.data(), text.size())) {
    const pugi::xml_node node = document.child("Error");
    error.code = node.child("Code").text().as_string();
    error.message = node.child("Message").text().as_string();
  }
  return error;
}

bool IsOneOf(absl::string_view code,
             std::initializer_list<absl::string_view> list) {
  return std::find(list.begin(), list.end(), code) != list.end();
}

// Trying again may help.
bool IsTransient(int status, absl::string_view code) {
  if (IsOneOf(code, {"SlowDown", "RequestTimeout", "InternalError",
                     "ServiceUnavailable", "Throttling", "ThrottlingException",
                     "RequestLimitExceeded", "BandwidthLimitExceeded",
                     "OperationAborted", "BadDigest",
                     "XAmzContentSHA256Mismatch", "IncompleteBody"})) {
    return true;
  }
  return status == 429 || status == 408 ||
         (status >= 500 && status != 501 && status != 505 && status != 507);
}

bool IsRefused(int status, absl::string_view code) {
  return (status == 401 || status == 403 || status == 400) &&
         IsOneOf(code, {"ExpiredToken", "InvalidToken", "TokenRefreshRequired",
                        "InvalidAccessKeyId", "ExpiredTokenException"});
}

absl::StatusCode CodeOf(int status, absl::string_view code) {
  if (IsTransient(status, code)) return absl::StatusCode::kUnavailable;
  if (IsOneOf(code,
              {"NoSuchKey", "NoSuchBucket", "NoSuchUpload", "NoSuchVersion"})) {
    return absl::StatusCode::kNotFound;
  }
  if (IsOneOf(code,
              {"QuotaExceeded", "XMinioStorageFull", "InsufficientStorage"})) {
    return absl::StatusCode::kResourceExhausted;
  }
  switch (status) {
    case 401:
    case 403:
      return absl::StatusCode::kPermissionDenied;
    case 404:
      return absl::StatusCode::kNotFound;
    case 412:
      return absl::StatusCode::kFailedPrecondition;
    case 416:
      return absl::StatusCode::kOutOfRange;
    case 501:
      return absl::StatusCode::kUnimplemented;
    case 507:
      return absl::StatusCode::kResourceExhausted;
    default:
      break;
  }
  if (status >= 400 && status < 500) return absl::StatusCode::kInvalidArgument;
  return absl::StatusCode::kUnavailable;
}

// "bytes 0-9/100"
struct ContentRange {
  uint64_t first = 0;
  uint64_t last = 0;
};
std::optional<ContentRange> ParseContentRange(absl::string_view text) {
  ContentRange range;
  if (!absl::ConsumePrefix(&text, "bytes ")) return std::nullopt;
  const size_t dash = text.find('-');
  const size_t slash = text.find('/');
  if (dash == absl::string_view::npos || slash == absl::string_view::npos ||
      slash < dash || !absl::SimpleAtoi(text.substr(0, dash), &range.first) ||
      !absl::SimpleAtoi(text.substr(dash + 1, slash - dash - 1), &range.last)) {
    return std::nullopt;
  }
  return range;
}

absl::Time ParseXmlTime(const pugi::xml_node& node) {
  absl::Time time = absl::InfinitePast();
  std::string error;
  absl::ParseTime(absl::RFC3339_full, node.text().as_string(), &time, &error);
  return time;
}

// The ETag that a multipart upload of these parts has where ETags are MD5
// sums; empty where they are not (some encryptions).
std::string ExpectedEtag(const std::vector<S3Part>& parts) {
  std::string sums;
  for (const S3Part& part : parts) {
    absl::string_view etag = part.etag;
    absl::ConsumePrefix(&etag, "\"");
    absl::ConsumeSuffix(&etag, "\"");
    if (etag.size() != 32 ||
        !std::all_of(etag.begin(), etag.end(), absl::ascii_isxdigit)) {
      return "";
    }
    sums += absl::HexStringToBytes(etag);
  }
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  if (EVP_Digest(sums.data(), sums.size(), digest, &length, EVP_md5(),
                 nullptr) != 1) {
    return "";
  }
  return absl::StrCat("\"",
                      absl::BytesToHexString(absl::string_view(
                          reinterpret_cast<const char*>(digest), length)),
                      "-", parts.size(), "\"");
}

}  // namespace

struct S3Client::Target {
  std::string host;
  std::string path;  // encoded
};

struct S3Client::Call {
  const char* name = "";
  std::string method = "GET";
  std::string bucket;
  std::string key;
  NameValues query;
  NameValues headers;
  HttpBody body;
  std::span<std::byte> out;
  bool to_out = false;
  uint64_t range_offset = 0;  // with to_out
  bool works_long = false;
  // A 200 may carry an error in its body (complete, copy).
  bool check_body = false;
  bool is_list = false;
};

struct S3Client::Counters {
  std::atomic<uint64_t> gets{0}, puts{0}, deletes{0}, lists{0}, heads{0},
      retries{0}, failures{0}, bytes_sent{0}, bytes_received{0};
};

S3Client::S3Client(S3ClientOptions options)
    : options_(std::move(options)),
      http_(HttpClient::Create({.connect_timeout = options_.connect_timeout,
                                .ca_file = options_.ca_file})),
      counters_(std::make_unique<Counters>()) {}
S3Client::~S3Client() = default;

absl::StatusOr<std::unique_ptr<S3Client>> S3Client::Create(
    S3ClientOptions options) {
  if (options.endpoint.empty()) {
    options.endpoint =
        absl::StrCat("https://s3.", options.region, ".amazonaws.com");
  }
  absl::string_view rest = options.endpoint;
  std::string scheme = "https";
  if (absl::ConsumePrefix(&rest, "http://")) {
    scheme = "http";
  } else if (!absl::ConsumePrefix(&rest, "https://")) {
    return absl::InvalidArgumentError(
        absl::StrCat("the object store's endpoint \"", options.endpoint,
                     "\" must start with http:// or https://"));
  }
  absl::ConsumeSuffix(&rest, "/");
  // What the Host header leaves out must be left out of the signature.
  if (scheme == "http") absl::ConsumeSuffix(&rest, ":80");
  if (scheme == "https") absl::ConsumeSuffix(&rest, ":443");
  if (rest.empty() || rest.find_first_of("/?#@ ") != absl::string_view::npos) {
    return absl::InvalidArgumentError(
        absl::StrCat("the object store's endpoint \"", options.endpoint,
                     "\" must be scheme://host[:port] and no more"));
  }
  const std::string authority(rest);
  std::unique_ptr<S3Client> client(new S3Client(std::move(options)));
  client->scheme_ = scheme;
  client->authority_ = authority;
  return client;
}

S3Client::Target S3Client::TargetOf(absl::string_view bucket,
                                    absl::string_view key) const {
  // Names with dots do not fit the certificates of virtual hosts.
  if (options_.path_style || absl::StrContains(bucket, ".")) {
    std::string path = absl::StrCat("/", UriEncode(bucket, false));
    if (!key.empty()) absl::StrAppend(&path, "/", UriEncode(key, true));
    return {authority_, path};
  }
  return {absl::StrCat(bucket, ".", authority_),
          absl::StrCat("/", UriEncode(key, true))};
}

void S3Client::Backoff(int attempt, const HttpResponse& response) const {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  const double longest =
      std::min(absl::ToDoubleSeconds(options_.max_backoff),
               absl::ToDoubleSeconds(options_.first_backoff) *
                   std::ldexp(1.0, std::min(attempt, 30)));
  double seconds =
      std::uniform_real_distribution<double>(longest / 2, longest)(random);
  int asked = 0;
  if (absl::SimpleAtoi(response.Header("retry-after"), &asked) && asked > 0) {
    seconds = std::max(
        seconds,
        std::min<double>(asked, absl::ToDoubleSeconds(options_.max_backoff)));
  }
  Patience::Sleep(absl::ToChronoNanoseconds(absl::Seconds(seconds)));
}

HttpResponse S3Client::SendOnce(const Call& call,
                                const S3Credentials& credentials,
                                uint64_t out_done) {
  HttpResponse failed;
  const Target target = TargetOf(call.bucket, call.key);
  SigV4Request sign;
  sign.method = call.method;
  sign.path = target.path;
  sign.query = call.query;
  sign.headers = call.headers;
  sign.headers.emplace_back("host", target.host);
  if (call.to_out) {
    sign.headers.emplace_back(
        "range", absl::StrCat("bytes=", call.range_offset + out_done, "-",
                              call.range_offset + call.out.size() - 1));
  }
  absl::StatusOr<std::string> hash = HashBody(call.body);
  if (!hash.ok()) {
    failed.transport = hash.status();
    return failed;
  }
  sign.payload_sha256 = *std::move(hash);
  HttpRequest request;
  request.method = call.method;
  request.headers = sign.headers;
  for (auto& header :
       SignV4(sign,
              {.region = options_.region,
              .time = absl::Now() + absl::Seconds(skew_seconds_.load())},
              credentials)) {
    request.headers.push_back(std::move(header));
  }
  const std::string query = CanonicalQuery(call.query);
  request.url = absl::StrCat(scheme_, "://", target.host, target.path,
                             query.empty() ? "" : "?", query);
  request.body = call.body;
  request.to_out = call.to_out;
  request.out = call.out.subspan(out_done);
  request.silence_limit =
      call.works_long ? options_.work_silence_limit : options_.silence_limit;
  HttpResponse response = http_->Send(request);
  std::atomic<uint64_t>& counter = call.is_list            ? counters_->lists
                                   : call.method == "GET"  ? counters_->gets
                                   : call.method == "HEAD" ? counters_->heads
                                   : call.method == "DELETE"
                                       ? counters_->deletes
                                       : counters_->puts;
  ++counter;
  counters_->bytes_sent += call.body.size_bytes();
  counters_->bytes_received += response.out_bytes + response.text.size();
  return response;
}

absl::StatusOr<HttpResponse> S3Client::Send(const Call& call) {
  const std::string what = absl::StrCat(call.name, " s3://", call.bucket,
                                        call.key.empty() ? "" : "/", call.key);
  uint64_t out_done = 0;
  int refusals = 0;
  bool skewed = false;
  absl::Status last;
  for (int attempt = 0; attempt < options_.max_attempts; ++attempt) {
    if (Patience::Over()) {
      return absl::CancelledError(
          absl::StrCat(what, ": given up, it is not wanted any more",
                       last.ok() ? "" : "; last: ", last.message()));
    }
    absl::StatusOr<S3Credentials> credentials = options_.credentials->Get();
    if (!credentials.ok()) {
      if (!absl::IsUnavailable(credentials.status())) {
        return credentials.status();
      }
      last = credentials.status();
      Backoff(attempt, HttpResponse());
      continue;
    }
    if (attempt > 0) ++counters_->retries;
    HttpResponse response = SendOnce(call, *credentials, out_done);
    const bool success = response.status >= 200 && response.status < 300;
    if (success && call.to_out) {
      // Before a byte is believed: is it the range that was asked for?
      const uint64_t first = call.range_offset + out_done;
      const std::optional<ContentRange> range =
          ParseContentRange(response.Header("content-range"));
      if (response.status != 206 || !range.has_value() ||
          range->first != first ||
          range->last != call.range_offset + call.out.size() - 1) {
        ++counters_->failures;
        return absl::DataLossError(absl::StrCat(
            what, ": asked for bytes ", first, " to ",
            call.range_offset + call.out.size() - 1, ", the answer is ",
            response.status, " with range \"",
            absl::CHexEscape(response.Header("content-range")), "\""));
      }
      out_done += response.out_bytes;
      if (out_done == call.out.size()) return response;
      // Broken or short: go on behind what is there. Progress starts the
      // count of tries anew.
      last = absl::UnavailableError(absl::StrCat(
          what, ": ended after ", out_done, " of ", call.out.size(), " bytes: ",
          response.transport.ok() ? "short answer"
                                  : response.transport.message()));
      if (response.transport.code() == absl::StatusCode::kOutOfRange) {
        ++counters_->failures;
        return absl::DataLossError(
            absl::StrCat(what, ": ", response.transport.message()));
      }
      if (response.out_bytes > 0) attempt = std::min(attempt, 0);
      Backoff(attempt, response);
      continue;
    }
    if (!response.transport.ok()) {
      if (response.transport.code() != absl::StatusCode::kUnavailable) {
        if (!absl::IsCancelled(response.transport)) ++counters_->failures;
        return absl::Status(
            response.transport.code(),
            absl::StrCat(what, ": ", response.transport.message()));
      }
      last = absl::UnavailableError(
          absl::StrCat(what, ": ", response.transport.message()));
      Backoff(attempt, response);
      continue;
    }
    S3Error error;
    if (success) {
      if (!call.check_body) return response;
      error = ParseError(response.text);
      if (error.code.empty()) return response;
    } else {
      error = ParseError(response.text);
    }
    const int status = success ? 500 : response.status;
    last = absl::Status(
        CodeOf(status, error.code),
        absl::StrCat(
            what, ": ", response.status, " ", error.code,
            error.message.empty() ? "" : ": ",
            absl::CHexEscape(error.message.substr(0, kMaxQuotedBytes)),
            response.Header("x-amz-request-id").empty()
                ? ""
                : " (request " + response.Header("x-amz-request-id") + ")"));
    if (error.code == "RequestTimeTooSkewed" && !skewed) {
      // Our clock, or the store's, is off: sign with the store's time.
      absl::Time theirs;
      std::string ignored;
      if (absl::ParseTime("%a, %d %b %Y %H:%M:%S GMT", response.Header("date"),
                          &theirs, &ignored)) {
        skew_seconds_ = absl::ToInt64Seconds(theirs - absl::Now());
        skewed = true;
        continue;
      }
    }
    if (IsRefused(response.status, error.code) && refusals++ == 0) {
      options_.credentials->Refused();
      continue;
    }
    if (!IsTransient(status, error.code)) {
      if (!absl::IsNotFound(last)) ++counters_->failures;
      return last;
    }
    Backoff(attempt, response);
  }
  ++counters_->failures;
  return absl::Status(last.code(),
                      absl::StrCat(last.message(), "; given up after ",
                                   options_.max_attempts, " tries"));
}

// --- objects ---

absl::Status S3Client::GetRange(absl::string_view bucket, absl::string_view key,
                                uint64_t offset, std::span<std::byte> out,
                                const GetOptions& options) {
  if (out.empty()) return absl::OkStatus();
  Call call{.name = "GetObject",
            .bucket = std::string(bucket),
            .key = std::string(key),
            .out = out,
            .to_out = true,
            .range_offset = offset};
  if (!options.if_match.empty()) {
    call.headers.emplace_back("if-match", options.if_match);
  }
  if (!options.version_id.empty()) {
    call.query.emplace_back("versionId", options.version_id);
  }
  return Send(call).status();
}

absl::StatusOr<S3Object> S3Client::Head(absl::string_view bucket,
                                        absl::string_view key,
                                        const GetOptions& options) {
  Call call{.name = "HeadObject",
            .method = "HEAD",
            .bucket = std::string(bucket),
            .key = std::string(key)};
  if (!options.if_match.empty()) {
    call.headers.emplace_back("if-match", options.if_match);
  }
  if (!options.version_id.empty()) {
    call.query.emplace_back("versionId", options.version_id);
  }
  OVPRESS_ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
  S3Object object{.key = std::string(key),
                  .etag = response.Header("etag"),
                  .version_id = response.Header("x-amz-version-id")};
  if (object.version_id == "null") object.version_id.clear();
  if (!absl::SimpleAtoi(response.Header("content-length"),
                        &object.size_bytes)) {
    return absl::DataLossError(absl::StrCat("HeadObject s3://", bucket, "/",
                                            key, ": no content-length"));
  }
  std::string ignored;
  absl::ParseTime("%a, %d %b %Y %H:%M:%S GMT", response.Header("last-modified"),
                  &object.modified, &ignored);
  return object;
}

absl::StatusOr<std::string> S3Client::Put(absl::string_view bucket,
                                          absl::string_view key,
                                          const HttpBody& body) {
  const Call call{.name = "PutObject",
                  .method = "PUT",
                  .bucket = std::string(bucket),
                  .key = std::string(key),
                  .body = body};
  OVPRESS_ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
  return response.Header("etag");
}

absl::Status S3Client::Delete(absl::string_view bucket, absl::string_view key) {
  const Call call{.name = "DeleteObject",
                  .method = "DELETE",
                  .bucket = std::string(bucket),
                  .key = std::string(key)};
  const absl::Status status = Send(call).status();
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::StatusOr<std::string> S3Client::Copy(absl::string_view bucket,
                                           absl::string_view key,
                                           const Source& source) {
  Call call{.name = "CopyObject",
            .method = "PUT",
            .bucket = std::string(bucket),
            .key = std::string(key),
            .works_long = true,
            .check_body = true};
  call.headers.emplace_back("x-amz-copy-source",
                            absl::StrCat("/", UriEncode(source.bucket, false),
                                         "/", UriEncode(source.key, true)));
  if (!source.if_match.empty()) {
    call.headers.emplace_back("x-amz-copy-source-if-match", source.if_match);
  }
  OVPRESS_ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
  pugi::xml_document document;
  document.load_buffer(response.text.data(), response.text.size());
  return std::string(
      document.child("CopyObjectResult").child("ETag").text().as_string());
}

absl::Status S3Client::CreateBucket(absl::string_view bucket) {
  const Call call{
      .name = "CreateBucket", .method = "PUT", .bucket = std::string(bucket)};
  const absl::Status status = Send(call).status();
  if (absl::StrContains(status.message(), "BucketAlreadyOwnedByYou") ||
      absl::StrContains(status.message(), "BucketAlreadyExists")) {
    return absl::OkStatus();
  }
  return status;
}

absl::StatusOr<S3Page<S3Object>> S3Client::List(absl::string_view bucket,
                                                absl::string_view prefix,
                                                absl::string_view from) {
  Call call{.name = "ListObjectsV2",
            .bucket = std::string(bucket),
            .query = {{"list-type", "2"},
                      {"max-keys", "1000"},
                      {"prefix", std::string(prefix)}},
            .is_list = true};
  if (!from.empty()) {
    call.query.emplace_back("continuation-token", std::string(from));
  }
  OVPRESS_ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
  pugi::xml_document document;
  document.load_buffer(response.text.data(), response.text.size());
  const pugi::xml_node root = document.child("ListBucketResult");
  if (!root) {
    return absl::DataLossError(absl::StrCat("ListObjectsV2 s3://", bucket,
                                            ": the answer is not a list"));
  }
  S3Page<S3Object> page;
  for (const pugi::xml_node node : root.children("Contents")) {
    page.items.push_back(
        {.key = node.child("Key").text().as_string(),
         .size_bytes = node.child("Size").text().as_ullong(),
         .etag = node.child("ETag").text().as_string(),
         .modified = ParseXmlTime(node.child("LastModified"))});
  }
  if (root.child("IsTruncated").text().as_bool()) {
    page.next = root.child("NextContinuationToken").text().as_string();
  }
  return page;
}

// --- multipart ---

absl::StatusOr<std::string> S3Client::CreateMultipart(absl::string_view bucket,
                                                      absl::string_view key) {
  const Call call{.name = "CreateMultipartUpload",
                  .method = "POST",
                  .bucket = std::string(bucket),
                  .key = std::string(key),
                  .query = {{"uploads", ""}}};
  OVPRESS_ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
  pugi::xml_document document;
  document.load_buffer(response.text.data(), response.text.size());
  const std::string id = document.child("InitiateMultipartUploadResult")
                             .child("UploadId")
                             .text()
                             .as_string();
  if (id.empty()) {
    return absl::DataLossError(absl::StrCat("CreateMultipartUpload s3://",
                                            bucket, "/", key,
                                            ": the answer names no upload"));
  }
  return id;
}

absl::StatusOr<S3Part> S3Client::UploadPart(const PartOf& part,
                                            const HttpBody& body) {
  const Call call{.name = "UploadPart",
                  .method = "PUT",
                  .bucket = part.bucket,
                  .key = part.key,
                  .query = {{"partNumber", absl::StrCat(part.number)},
                            {"uploadId", part.upload_id}},
                  .body = body};
  OVPRESS_ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
  S3Part made{.number = part.number,
              .etag = response.Header("etag"),
              .size_bytes = body.size_bytes()};
  if (made.etag.empty()) {
    return absl::DataLossError(
        absl::StrCat("UploadPart s3://", part.bucket, "/", part.key, " part ",
                     part.number, ": the answer has no ETag"));
  }
  return made;
}

absl::StatusOr<S3Part> S3Client::CopyPart(const PartOf& part,
                                          const Source& source, uint64_t offset,
                                          uint64_t size_bytes) {
  Call call{.name = "UploadPartCopy",
            .method = "PUT",
            .bucket = part.bucket,
            .key = part.key,
            .query = {{"partNumber", absl::StrCat(part.number)},
                      {"uploadId", part.upload_id}},
            .works_long = true,
            .check_body = true};
  call.headers.emplace_back("x-amz-copy-source",
                            absl::StrCat("/", UriEncode(source.bucket, false),
                                         "/", UriEncode(source.key, true)));
  call.headers.emplace_back(
      "x-amz-copy-source-range",
      absl::StrCat("bytes=", offset, "-", offset + size_bytes - 1));
  if (!source.if_match.empty()) {
    call.headers.emplace_back("x-amz-copy-source-if-match", source.if_match);
  }
  OVPRESS_ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
  pugi::xml_document document;
  document.load_buffer(response.text.data(), response.text.size());
  S3Part made{
      .number = part.number,
      .etag = document.child("CopyPartResult").child("ETag").text().as_string(),
      .size_bytes = size_bytes};
  if (made.etag.empty()) {
    return absl::DataLossError(
        absl::StrCat("UploadPartCopy s3://", part.bucket, "/", part.key,
                     " part ", part.number, ": the answer has no ETag"));
  }
  return made;
}

absl::StatusOr<std::string> S3Client::CompleteMultipart(
    const PartOf& upload, const std::vector<S3Part>& parts) {
  pugi::xml_document document;
  pugi::xml_node root = document.append_child("CompleteMultipartUpload");
  root.append_attribute("xmlns") = "http://s3.amazonaws.com/doc/2006-03-01/";
  uint64_t size_bytes = 0;
  for (const S3Part& part : parts) {
    pugi::xml_node node = root.append_child("Part");
    node.append_child("PartNumber").text() = part.number;
    node.append_child("ETag").text() = part.etag.c_str();
    size_bytes += part.size_bytes;
  }
  struct Writer final : pugi::xml_writer {
    void write(const void* data, size_t size) override {
      text.append(static_cast<const char*>(data), size);
    }
    std::string text;
  } writer;
  document.save(writer, "", pugi::format_raw);
  Call call{.name = "CompleteMultipartUpload",
            .method = "POST",
            .bucket = upload.bucket,
            .key = upload.key,
            .query = {{"uploadId", upload.upload_id}},
            .works_long = true,
            .check_body = true};
  call.body.bytes = AsBytes(writer.text);
  absl::StatusOr<HttpResponse> response = Send(call);
  if (!response.ok()) {
    if (!absl::IsNotFound(response.status())) return response.status();
    // An earlier try may have done it: one of ours, or one of libcurl's, which
    // sends again by itself when a kept connection turns out dead. Whether the
    // object is ours is told by its ETag, or where ETags are no sums, by the
    // size.
    const absl::StatusOr<S3Object> head = Head(upload.bucket, upload.key, {});
    if (!head.ok()) {
      return absl::IsNotFound(head.status()) ? response.status()
                                             : head.status();
    }
    const S3Object& object = *head;
    const std::string expected = ExpectedEtag(parts);
    const bool comparable = absl::StrContains(object.etag, "-");
    if (object.size_bytes != size_bytes ||
        (comparable && !expected.empty() && object.etag != expected)) {
      return response.status();
    }
    return object.etag;
  }
  pugi::xml_document answer;
  answer.load_buffer(response->text.data(), response->text.size());
  const std::string etag = answer.child("CompleteMultipartUploadResult")
                               .child("ETag")
                               .text()
                               .as_string();
  if (etag.empty()) {
    return absl::DataLossError(absl::StrCat("CompleteMultipartUpload s3://",
                                            upload.bucket, "/", upload.key,
                                            ": the answer has no ETag"));
  }
  return etag;
}

absl::Status S3Client::AbortMultipart(const PartOf& upload) {
  const Call call{.name = "AbortMultipartUpload",
                  .method = "DELETE",
                  .bucket = upload.bucket,
                  .key = upload.key,
                  .query = {{"uploadId", upload.upload_id}}};
  const absl::Status status = Send(call).status();
  return absl::IsNotFound(status) ? absl::OkStatus() : status;
}

absl::StatusOr<S3Page<S3Part>> S3Client::ListParts(const PartOf& upload,
                                                   int after) {
  const Call call{.name = "ListParts",
                  .bucket = upload.bucket,
                  .key = upload.key,
                  .query = {{"uploadId", upload.upload_id},
                            {"max-parts", "1000"},
                            {"part-number-marker", absl::StrCat(after)}},
                  .is_list = true};
  OVPRESS_ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
  pugi::xml_document document;
  document.load_buffer(response.text.data(), response.text.size());
  const pugi::xml_node root = document.child("ListPartsResult");
  S3Page<S3Part> page;
  for (const pugi::xml_node node : root.children("Part")) {
    page.items.push_back({.number = node.child("PartNumber").text().as_int(),
                          .etag = node.child("ETag").text().as_string(),
                          .size_bytes = node.child("Size").text().as_ullong()});
  }
  if (root.child("IsTruncated").text().as_bool()) {
    page.next = root.child("NextPartNumberMarker").text().as_string();
  }
  return page;
}

absl::StatusOr<S3Page<S3Upload>> S3Client::ListMultiparts(
    absl::string_view bucket, absl::string_view prefix,
    absl::string_view from) {
  Call call{.name = "ListMultipartUploads",
            .bucket = std::string(bucket),
            .query = {{"uploads", ""},
                      {"max-uploads", "1000"},
                      {"prefix", std::string(prefix)}},
            .is_list = true};
  if (!from.empty()) {
    // "key\nid" as this function made it.
    const size_t cut = from.rfind('\n');
    call.query.emplace_back("key-marker", std::string(from.substr(0, cut)));
    call.query.emplace_back("upload-id-marker",
                            std::string(from.substr(cut + 1)));
  }
  OVPRESS_ASSIGN_OR_RETURN(const HttpResponse response, Send(call));
  pugi::xml_document document;
  document.load_buffer(response.text.data(), response.text.size());
  const pugi::xml_node root = document.child("ListMultipartUploadsResult");
  if (!root) {
    return absl::DataLossError(absl::StrCat(
        "ListMultipartUploads s3://", bucket, ": the answer is not a list"));
  }
  S3Page<S3Upload> page;
  for (const pugi::xml_node node : root.children("Upload")) {
    page.items.push_back({.key = node.child("Key").text().as_string(),
                          .id = node.child("UploadId").text().as_string(),
                          .started = ParseXmlTime(node.child("Initiated"))});
  }
  if (root.child("IsTruncated").text().as_bool()) {
    page.next =
        absl::StrCat(root.child("NextKeyMarker").text().as_string(), "\n",
                     root.child("NextUploadIdMarker").text().as_string());
  }
  return page;
}

S3Stats S3Client::Stats() const {
  return {.gets = counters_->gets,
          .puts = counters_->puts,
          .deletes = counters_->deletes,
          .lists = counters_->lists,
          .heads = counters_->heads,
          .retries = counters_->retries,
          .failures = counters_->failures,
          .bytes_sent = counters_->bytes_sent,
          .bytes_received = counters_->bytes_received};
}

absl::StatusOr<S3Location> ParseS3Url(absl::string_view url) {
  absl::string_view rest = url;
  if (!absl::ConsumePrefix(&rest, "s3://")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", absl::CHexEscape(url), "\" is not of the form s3://bucket/key"));
  }
  const size_t slash = rest.find('/');
  S3Location location{.bucket = std::string(rest.substr(0, slash))};
  if (slash != absl::string_view::npos) {
    location.key = std::string(rest.substr(slash + 1));
  }
  // S3's rule for bucket names, so that one can become a host name safely.
  const bool fine =
      location.bucket.size() >= 3 && location.bucket.size() <= 63 &&
      std::all_of(location.bucket.begin(), location.bucket.end(), [](char c) {
        return absl::ascii_islower(static_cast<unsigned char>(c)) ||
               absl::ascii_isdigit(static_cast<unsigned char>(c)) || c == '-' ||
               c == '.';
      });
  if (!fine || location.key.size() > 1024) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", absl::CHexEscape(url.substr(0, 200)),
        "\": a bucket's name is 3 to 63 of a-z 0-9 - . and a key at most 1024 "
        "bytes"));
  }
  return location;
}

}  // namespace ovpress
