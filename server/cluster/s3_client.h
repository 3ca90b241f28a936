// The S3 calls that a blob store needs, over any S3-compatible store: signed,
// retried, checked. Knows nothing of blobs.
//
// Errors: kNotFound (no such key, bucket, upload), kFailedPrecondition
// (If-Match did not hold: the object changed), kPermissionDenied,
// kUnauthenticated (no credentials), kInvalidArgument, kOutOfRange (range
// beyond the object), kResourceExhausted (quota, disk of the store),
// kUnimplemented, kUnavailable (after all retries), kCancelled (Patience was
// over), kDataLoss (the answer contradicts itself). The message names the call,
// bucket and key, HTTP status, S3's code and request id.
#ifndef OVPRESS_SERVER_CLUSTER_S3_CLIENT_H_
#define OVPRESS_SERVER_CLUSTER_S3_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/cluster/http_client.h"
#include "server/cluster/s3_credentials.h"

namespace ovpress {

// S3's own limits.
inline constexpr uint64_t kS3MinPartBytes = 5ull << 20;  // but for the last
inline constexpr uint64_t kS3MaxPutBytes = 5ull << 30;   // and of a part
inline constexpr int kS3MaxParts = 10'000;

struct S3ClientOptions {
  std::string endpoint;  // "http://127.0.0.1:8333"; empty: AWS of the region
  std::string region = "us-east-1";
  // endpoint/bucket/key instead of bucket.endpoint/key.
  bool path_style = false;
  std::shared_ptr<CredentialsProvider> credentials;  // REQUIRED
  std::string ca_file;                               // PEM; empty: the system's
  absl::Duration connect_timeout = absl::Seconds(10);
  // An exchange that moved no byte for so long is given up and tried again.
  absl::Duration silence_limit = absl::Seconds(30);
  // The same where the store works before it answers (complete, copy).
  absl::Duration work_silence_limit = absl::Minutes(5);
  // Tries of one call. Waits between them double from first_backoff to
  // max_backoff; each is drawn from the upper half (jitter), so that many
  // clients do not come back at once: 7 waits add up to 9 to 19 s.
  int max_attempts = 8;
  absl::Duration first_backoff = absl::Milliseconds(150);
  absl::Duration max_backoff = absl::Seconds(10);
};

struct S3Object {
  std::string key;
  uint64_t size_bytes = 0;
  std::string etag;  // with its quotes
  std::string version_id;
  absl::Time modified = absl::InfinitePast();
};

struct S3Part {
  int number = 0;  // from 1
  std::string etag;
  uint64_t size_bytes = 0;
};

struct S3Upload {
  std::string key;
  std::string id;
  absl::Time started = absl::InfinitePast();
};

template <typename T>
struct S3Page {
  std::vector<T> items;
  std::string next;  // for the next call; empty: the end
};

// Requests and bytes since the start; retries count as requests, too.
struct S3Stats {
  uint64_t gets = 0;
  uint64_t puts = 0;  // PUT and POST: what stores bill alike
  uint64_t deletes = 0;
  uint64_t lists = 0;
  uint64_t heads = 0;
  uint64_t retries = 0;
  uint64_t failures = 0;  // calls that failed after all tries
  uint64_t bytes_sent = 0;
  uint64_t bytes_received = 0;
};

// Thread-safe; calls block.
class S3Client {
 public:
  static absl::StatusOr<std::unique_ptr<S3Client>> Create(
      S3ClientOptions options);
  ~S3Client();

  struct GetOptions {
    std::string if_match;    // ETag
    std::string version_id;  // of a versioned bucket
  };
  // Exactly the range; a broken transfer goes on where it ended. An answer with
  // another range than asked for is kDataLoss.
  absl::Status GetRange(absl::string_view bucket, absl::string_view key,
                        uint64_t offset, std::span<std::byte> out,
                        const GetOptions& options);
  absl::StatusOr<S3Object> Head(absl::string_view bucket, absl::string_view key,
                                const GetOptions& options);
  // Returns the ETag. The store checks the bytes: their SHA-256 is signed.
  absl::StatusOr<std::string> Put(absl::string_view bucket,
                                  absl::string_view key, const HttpBody& body);
  // OK if there is none.
  absl::Status Delete(absl::string_view bucket, absl::string_view key);
  struct Source {
    std::string bucket;
    std::string key;
    std::string if_match;
  };
  absl::StatusOr<std::string> Copy(absl::string_view bucket,
                                   absl::string_view key, const Source& source);
  absl::StatusOr<S3Page<S3Object>> List(absl::string_view bucket,
                                        absl::string_view prefix,
                                        absl::string_view from);
  // OK if the caller owns it already.
  absl::Status CreateBucket(absl::string_view bucket);

  absl::StatusOr<std::string> CreateMultipart(absl::string_view bucket,
                                              absl::string_view key);
  // Where a part belongs.
  struct PartOf {
    std::string bucket;
    std::string key;
    std::string upload_id;
    int number = 0;  // from 1 to kS3MaxParts
  };
  absl::StatusOr<S3Part> UploadPart(const PartOf& part, const HttpBody& body);
  absl::StatusOr<S3Part> CopyPart(const PartOf& part, const Source& source,
                                  uint64_t offset, uint64_t size_bytes);
  // `part.number` is not used by these three. Complete returns the object's
  // ETag; it is idempotent: where the upload is gone because an earlier try did
  // it, whose answer was lost, the object decides.
  absl::StatusOr<std::string> CompleteMultipart(
      const PartOf& upload, const std::vector<S3Part>& parts);
  absl::Status AbortMultipart(const PartOf& upload);  // OK if there is none
  absl::StatusOr<S3Page<S3Part>> ListParts(const PartOf& upload, int after);
  // `from` is a page's `next`.
  absl::StatusOr<S3Page<S3Upload>> ListMultiparts(absl::string_view bucket,
                                                  absl::string_view prefix,
                                                  absl::string_view from);

  S3Stats Stats() const;

 private:
  struct Call;
  struct Target;
  explicit S3Client(S3ClientOptions options);
  absl::StatusOr<HttpResponse> Send(const Call& call);
  HttpResponse SendOnce(const Call& call, const S3Credentials& credentials,
                        uint64_t out_done);
  Target TargetOf(absl::string_view bucket, absl::string_view key) const;
  void Backoff(int attempt, const HttpResponse& response) const;

  const S3ClientOptions options_;
  const std::unique_ptr<HttpClient> http_;
  // Scheme and "host[:port]" of the endpoint.
  std::string scheme_;
  std::string authority_;
  // Of the store's clock against ours, from its refusals.
  std::atomic<int64_t> skew_seconds_{0};

  struct Counters;
  const std::unique_ptr<Counters> counters_;
};

// "s3://bucket/key" or "s3://bucket/prefix". kInvalidArgument.
struct S3Location {
  std::string bucket;
  std::string key;
};
absl::StatusOr<S3Location> ParseS3Url(absl::string_view url);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_S3_CLIENT_H_
