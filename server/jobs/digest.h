// SHA-256 names of blobs.
#ifndef OVPRESS_SERVER_JOBS_DIGEST_H_
#define OVPRESS_SERVER_JOBS_DIGEST_H_

#include <cstdint>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/base/sha256.h"

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

// Of a text, as a blob.
BlobRef BlobRefOf(absl::string_view bytes);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_DIGEST_H_
