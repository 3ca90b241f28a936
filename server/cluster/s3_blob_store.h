// BlobStore on an S3-compatible object store, shared by any number of servers:
// the bytes lie in objects with random keys, BlobIndex (PostgreSQL) tells which
// is which. Local disk is only a spool for what is on its way and a cache for
// what is read; both may be lost at any time.
//
// Uploads are sent as parts of one multipart upload while they come; with each
// part the index learns the SHA-256 state, so that any server can go on. What
// is behind the last part is put into an object of its own when a connection
// breaks. Outputs are written in any order into the spool; a part is sent as
// soon as it is whole, while the job goes on, and its disk space is given back.
// Reads fetch blocks of 8 MiB, each checked against its own digest from the
// index, into the cache, two blocks ahead of a sequential reader.
#ifndef OVPRESS_SERVER_CLUSTER_S3_BLOB_STORE_H_
#define OVPRESS_SERVER_CLUSTER_S3_BLOB_STORE_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/cluster/block_cache.h"
#include "server/cluster/pg.h"
#include "server/cluster/s3_client.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/clock.h"
#include "server/jobs/limits.h"
#include "server/jobs/observer.h"
#include "server/jobs/quotas.h"

namespace ovpress {

// Of reads, the cache and the digests in the index. Large enough that a
// request's latency (tens of milliseconds) is small beside its transfer, small
// enough that several fit into memory. Never change it: stored digests are of
// this size.
inline constexpr uint64_t kBlobBlockBytes = 8ull << 20;

// Objects that a client may name: those whose address starts with `prefix`
// ("s3://bucket/" or "s3://bucket/folder/"; it must end with '/'). `owner` is
// an identity; nullopt: all clients.
struct AllowedPrefix {
  std::optional<std::string> owner;
  std::string prefix;
};
// "s3://bucket/folder/" or "IDENTITY=s3://bucket/folder/"; a missing last '/'
// is added. kInvalidArgument.
absl::StatusOr<AllowedPrefix> ParseAllowedPrefix(absl::string_view text);

struct S3BlobStoreOptions {
  PgPool* pool = nullptr;  // REQUIRED, as is the next; both outlive the store
  S3Client* s3 = nullptr;
  std::string bucket;
  std::string prefix;     // of all keys: "ovpress/"; may be empty
  std::string directory;  // local, for spool and cache; made if missing
  uint64_t cache_bytes = 8ull << 30;
  // max_store_bytes, max_owner_bytes, ... hold over all servers; min_free_bytes
  // is not used (the local disk holds nothing that must stay).
  StoreLimits limits;
  // Null: the database's clock. For tests.
  Clock* clock = nullptr;
  Observer* observer = nullptr;  // may be null, as is the next
  const QuotaSource* quotas = nullptr;
  // Threads that send parts; each is a connection.
  int send_threads = 6;
  // Threads that read ahead, and blocks in memory at a time on their way from
  // the store to the cache.
  int read_threads = 4;
  int max_blocks_in_memory = 8;
  int read_ahead_blocks = 2;
  absl::Duration session_lease = absl::Seconds(60);
  // Between two searches for objects that the index does not know, over all
  // servers, and how old such an object must be to be removed.
  absl::Duration orphan_interval = absl::Hours(6);
  absl::Duration orphan_age = absl::Hours(24);
  // What may be read and written by address. Empty: nothing.
  std::vector<AllowedPrefix> allowed;
  // Renew the session by a thread. Tests with a clock of their own do not.
  bool renew_in_background = true;
};

class S3BlobStore : public BlobStore {
 public:
  // kFailedPrecondition if the prefix belongs to another index; the errors of
  // S3Client and PgPool.
  static absl::StatusOr<std::unique_ptr<S3BlobStore>> Open(
      S3BlobStoreOptions options);

  virtual BlockCacheStats CacheStats() = 0;
  // The object that holds a blob, to hand it to another reader: kNotFound.
  struct Object {
    std::string bucket;
    std::string key;
    std::string etag;
  };
  virtual absl::StatusOr<Object> Locate(const BlobRef& ref) = 0;
};

// The size of the parts of an object: 8 to 64 MiB, so that there are about 256
// of them, at most kS3MaxParts; a multiple of kBlobBlockBytes.
uint64_t PartBytesFor(uint64_t size_bytes);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_S3_BLOB_STORE_H_
