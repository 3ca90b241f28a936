// Stores on one bucket of a SeaweedFS and one schema of a PostgreSQL, as
// several servers have them.
#ifndef OVPRESS_TESTS_CLUSTER_S3_STORE_FIXTURE_H_
#define OVPRESS_TESTS_CLUSTER_S3_STORE_FIXTURE_H_

#include <stdlib.h>

#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "gtest/gtest.h"
#include "server/cluster/blob_index.h"
#include "server/cluster/s3_blob_store.h"
#include "tests/cluster/temp_postgres.h"
#include "tests/cluster/temp_seaweed.h"

namespace ovpress::testing {

class S3Place {
 public:
  S3Place() {
    std::string pattern =
        std::filesystem::temp_directory_path() / "s3_store_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    auto made = PgPool::Create({.conninfo = schema_});
    if (!made.ok()) {
      std::cerr << made.status() << "\n";
      std::abort();
    }
    pool_ = *std::move(made);
  }
  ~S3Place() { std::filesystem::remove_all(folder_); }

  S3BlobStoreOptions Options(const StoreLimits& limits, Clock* clock) {
    return {.pool = pool_.get(),
            .s3 = s3_.get(),
            .bucket = bucket_,
            .prefix = "some/prefix/",
            .directory = absl::StrCat(folder_, "/", ++servers_),
            .limits = limits,
            .clock = clock,
            .orphan_interval = absl::Hours(10'000),
            .renew_in_background = false};
  }
  std::unique_ptr<S3BlobStore> Open(const S3BlobStoreOptions& options) {
    auto store = S3BlobStore::Open(options);
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }
  // Keys of all objects but the marker.
  std::vector<std::string> Keys() {
    std::vector<std::string> keys;
    const auto page = s3_->List(bucket_, "", "");
    EXPECT_TRUE(page.ok()) << page.status();
    for (const S3Object& object : page->items) {
      if (object.key != "some/prefix/ovpress-cluster") {
        keys.push_back(object.key);
      }
    }
    return keys;
  }
  size_t Multiparts() {
    const auto page = s3_->ListMultiparts(bucket_, "", "");
    EXPECT_TRUE(page.ok()) << page.status();
    return page->items.size();
  }
  std::string KeyOf(const BlobRef& ref) {
    const auto rows = pool_->Read(
        "SELECT object_key FROM blobs WHERE sha256 = $1", {ref.sha256});
    EXPECT_TRUE(rows.ok() && rows->size() == 1) << rows.status();
    return std::string(rows->Text(0, 0));
  }

  const std::string schema_ = TempPostgres::Get().NewSchema();
  const std::string bucket_ = TempSeaweed::Get().NewBucket();
  const std::unique_ptr<S3Client> s3_ =
      *S3Client::Create(TempSeaweed::Get().Options());
  std::unique_ptr<PgPool> pool_;
  std::string folder_;
  int servers_ = 0;
};

}  // namespace ovpress::testing

#endif  // OVPRESS_TESTS_CLUSTER_S3_STORE_FIXTURE_H_
