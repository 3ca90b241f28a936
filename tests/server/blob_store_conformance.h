// What every BlobStore must do, tested over each of them: a program links
// blob_store_conformance.cc and instantiates the suite with its harness.
#ifndef OVPRESS_TESTS_SERVER_BLOB_STORE_CONFORMANCE_H_
#define OVPRESS_TESTS_SERVER_BLOB_STORE_CONFORMANCE_H_

#include <functional>
#include <memory>
#include <string>

#include "gtest/gtest.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/clock.h"
#include "server/jobs/limits.h"

namespace ovpress::testing {

// One place where blobs lie, and the stores that are opened on it, one after
// another: as over restarts.
class BlobStoreHarness {
 public:
  virtual ~BlobStoreHarness() = default;
  virtual std::unique_ptr<BlobStore> Open(const StoreLimits& limits,
                                          Clock* clock) = 0;
  enum class Harm { kOtherBytes, kShorter, kGone };
  // Behind the store's back. REQUIRES: no store is open.
  virtual void Damage(const BlobRef& ref, Harm harm) = 0;
};

struct BlobStoreKind {
  const char* name;
  std::unique_ptr<BlobStoreHarness> (*make)();
};
inline void PrintTo(const BlobStoreKind& kind, std::ostream* out) {
  *out << kind.name;
}

class BlobStoreConformance : public ::testing::TestWithParam<BlobStoreKind> {
 protected:
  BlobStoreConformance() { limits_.min_free_bytes = 0; }

  std::unique_ptr<BlobStore> Open() { return harness_->Open(limits_, &clock_); }
  static absl::Status Upload(BlobStore& store, const std::string& owner,
                             const std::string& bytes,
                             const std::string& uuid = "u");
  static bool Has(BlobStore& store, const std::string& owner,
                  const std::string& bytes);

  const std::unique_ptr<BlobStoreHarness> harness_ = GetParam().make();
  FakeClock clock_;
  StoreLimits limits_;
};

}  // namespace ovpress::testing

#endif  // OVPRESS_TESTS_SERVER_BLOB_STORE_CONFORMANCE_H_
