// The common suite over the store in a local directory.
#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/str_cat.h"
#include "server/jobs/local_blob_store.h"
#include "tests/server/blob_store_conformance.h"

namespace ovpress::testing {
namespace {

namespace fs = std::filesystem;

class LocalHarness final : public BlobStoreHarness {
 public:
  LocalHarness() {
    std::string pattern = fs::temp_directory_path() / "local_store_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  ~LocalHarness() override { fs::remove_all(folder_); }
  std::unique_ptr<BlobStore> Open(const StoreLimits& limits,
                                  Clock* clock) override {
    auto store = OpenLocalBlobStore(
        {.directory = folder_, .limits = limits, .clock = clock});
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }
  void Damage(const BlobRef& ref, Harm harm) override {
    const std::string path =
        absl::StrCat(folder_, "/blobs/", ref.sha256.substr(0, 2), "/",
                     ref.sha256, "-", ref.size_bytes);
    if (harm == Harm::kGone) fs::remove(path);
    if (harm == Harm::kShorter) fs::resize_file(path, ref.size_bytes - 1);
    if (harm == Harm::kOtherBytes) {
      std::fstream file(path, std::ios::in | std::ios::out);
      file.seekp(static_cast<std::streamoff>(ref.size_bytes - 1));
      file.put('\xee');
    }
  }

 private:
  std::string folder_;
};

std::unique_ptr<BlobStoreHarness> MakeLocal() {
  return std::make_unique<LocalHarness>();
}

INSTANTIATE_TEST_SUITE_P(Local, BlobStoreConformance,
                         ::testing::Values(BlobStoreKind{"local", &MakeLocal}));

}  // namespace
}  // namespace ovpress::testing
