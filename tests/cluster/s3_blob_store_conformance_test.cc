// The common suite over the object store, with a real PostgreSQL and SeaweedFS.
#include "tests/cluster/s3_store_fixture.h"
#include "tests/server/blob_store_conformance.h"

namespace ovpress::testing {
namespace {

class S3Harness final : public BlobStoreHarness {
 public:
  std::unique_ptr<BlobStore> Open(const StoreLimits& limits,
                                  Clock* clock) override {
    return place_.Open(place_.Options(limits, clock));
  }
  void Damage(const BlobRef& ref, Harm harm) override {
    const std::string key = place_.KeyOf(ref);
    std::string bytes(ref.size_bytes, '\0');
    EXPECT_TRUE(
        place_.s3_->GetRange(place_.bucket_, key, 0, AsWritableBytes(bytes), {})
            .ok());
    if (harm == Harm::kGone) {
      EXPECT_TRUE(place_.s3_->Delete(place_.bucket_, key).ok());
      return;
    }
    if (harm == Harm::kShorter) bytes.pop_back();
    if (harm == Harm::kOtherBytes) bytes.back() = '\xee';
    EXPECT_TRUE(
        place_.s3_->Put(place_.bucket_, key, {.bytes = AsBytes(bytes)}).ok());
  }

 private:
  S3Place place_;
};

std::unique_ptr<BlobStoreHarness> MakeS3() {
  return std::make_unique<S3Harness>();
}

INSTANTIATE_TEST_SUITE_P(S3, BlobStoreConformance,
                         ::testing::Values(BlobStoreKind{"s3", &MakeS3}));

}  // namespace
}  // namespace ovpress::testing
