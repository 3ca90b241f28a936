// Flags of where the blobs are, and what they open.
#ifndef OVPRESS_SERVER_BLOB_STORE_FLAGS_H_
#define OVPRESS_SERVER_BLOB_STORE_FLAGS_H_

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "server/cluster/pg.h"
#include "server/cluster/s3_blob_store.h"
#include "server/cluster/s3_client.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/clock.h"
#include "server/jobs/limits.h"
#include "server/jobs/observer.h"
#include "server/jobs/quotas.h"

namespace CLI {
class App;
}

namespace ovpress {

struct BlobStoreFlags {
  std::string blob_store;  // "": a folder in the data directory
  std::string s3_endpoint;
  std::string s3_region = "us-east-1";
  bool s3_path_style = false;
  std::string s3_ca_file;
  std::string sts_endpoint;
  std::string cache_dir;
  uint64_t cache_bytes = 8ull << 30;
  std::vector<std::string> allow_address;

  void Register(CLI::App* app);
};

struct Blobs {
  std::unique_ptr<PgPool> pool;  // of our own, if none was given
  std::unique_ptr<S3Client> s3;  // null for a directory
  std::unique_ptr<BlobStore> store;
  S3BlobStore* shared = nullptr;  // `store`, if it is on S3
  std::string description;        // for the log
  std::string warning;            // for the log; "": none

  // Prometheus text about requests and cache; "" for a directory.
  std::string MetricsText() const;
};

struct BlobsOptions {
  std::string data_dir;
  StoreLimits limits;
  // For the index of S3. Null: OVPRESS_JOB_STORE tells the address.
  PgPool* pool = nullptr;
  Clock* clock = nullptr;  // of a directory; S3 goes by the database's
  Observer* observer = nullptr;
  const QuotaSource* quotas = nullptr;
};
// kInvalidArgument for a directory with a shared queue (`pool`): jobs would go
// to servers that do not have their models.
absl::StatusOr<Blobs> OpenBlobs(const BlobStoreFlags& flags,
                                const BlobsOptions& options);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_BLOB_STORE_FLAGS_H_
