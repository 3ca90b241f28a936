// SHA-256 names of blobs and the streaming hasher behind them.
#ifndef OVPRESS_SERVER_JOBS_DIGEST_H_
#define OVPRESS_SERVER_JOBS_DIGEST_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ovpress {

// A blob by its content.
struct BlobRef {
  std::string sha256;  // 64 lower-case hexadecimal digits
  uint64_t size_bytes = 0;

  friend bool operator==(const BlobRef&, const BlobRef&) = default;
  friend auto operator<=>(const BlobRef&, const BlobRef&) = default;
};

// "blobs/{sha256}/{size}"; the way back refuses anything else with
// kInvalidArgument (upper case, leading zeros, further segments).
std::string BlobName(const BlobRef& ref);
absl::StatusOr<BlobRef> ParseBlobName(absl::string_view name);
// kInvalidArgument unless sha256 is 64 lower-case hexadecimal digits. Must be
// called on whatever comes from outside: stores make file names of it.
absl::Status ValidateBlobRef(const BlobRef& ref);

// "uploads/{uuid}/blobs/{sha256}/{size}"; uuid is 1 to 64 of [A-Za-z0-9-].
struct UploadName {
  std::string uuid;
  BlobRef ref;
};
std::string FormatUploadName(const UploadName& name);
absl::StatusOr<UploadName> ParseUploadName(absl::string_view name);
absl::Status ValidateUploadUuid(absl::string_view uuid);

// SHA-256 of a stream, by OpenSSL's EVP. Not thread-safe.
class Sha256Hasher {
 public:
  Sha256Hasher();
  ~Sha256Hasher();
  Sha256Hasher(Sha256Hasher&&) noexcept;
  Sha256Hasher& operator=(Sha256Hasher&&) noexcept;

  void Update(std::span<const std::byte> bytes);
  uint64_t bytes_hashed() const { return bytes_hashed_; }
  // Lower-case hexadecimal. Ends the hasher: no Update() after it.
  std::string FinishHex();

 private:
  struct Deleter {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Deleter> context_;
  uint64_t bytes_hashed_ = 0;
};

std::string Sha256Hex(absl::string_view bytes);
// Of a text, as a blob.
BlobRef BlobRefOf(absl::string_view bytes);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_DIGEST_H_
