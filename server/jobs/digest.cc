#include "server/jobs/digest.h"

#include <algorithm>
#include <vector>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

bool IsLowerHex(char c) {
  return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');
}

absl::StatusOr<BlobRef> RefFromParts(absl::string_view sha256,
                                     absl::string_view size,
                                     absl::string_view name) {
  BlobRef ref;
  ref.sha256 = std::string(sha256);
  OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(ref));
  // SimpleAtoi alone takes spaces, signs and leading zeros: one blob must have
  // one name.
  if (size.empty() || (size.size() > 1 && size[0] == '0') ||
      !std::all_of(size.begin(), size.end(),
                   [](char c) { return c >= '0' && c <= '9'; }) ||
      !absl::SimpleAtoi(size, &ref.size_bytes) ||
      ref.size_bytes > static_cast<uint64_t>(INT64_MAX)) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", absl::CHexEscape(name),
                     "': the size must be a decimal number below 2^63"));
  }
  return ref;
}

// Longer names cannot be valid; cut before they reach a message.
constexpr size_t kMaxNameBytes = 256;

absl::Status BadName(absl::string_view name, absl::string_view grammar) {
  return absl::InvalidArgumentError(absl::StrCat(
      "resource name '", absl::CHexEscape(name.substr(0, kMaxNameBytes)),
      "' must be ", grammar));
}

constexpr char kBlobGrammar[] = "blobs/{sha256}/{size}";
constexpr char kUploadGrammar[] = "uploads/{uuid}/blobs/{sha256}/{size}";

}  // namespace

std::string BlobName(const BlobRef& ref) {
  return absl::StrCat("blobs/", ref.sha256, "/", ref.size_bytes);
}

absl::StatusOr<BlobRef> ParseBlobName(absl::string_view name) {
  if (name.size() > kMaxNameBytes) return BadName(name, kBlobGrammar);
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  if (parts.size() != 3 || parts[0] != "blobs") {
    return BadName(name, kBlobGrammar);
  }
  return RefFromParts(parts[1], parts[2], name);
}

absl::Status ValidateBlobRef(const BlobRef& ref) {
  if (ref.sha256.size() != 64 ||
      !std::all_of(ref.sha256.begin(), ref.sha256.end(), IsLowerHex)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "digest '",
        absl::CHexEscape(absl::string_view(ref.sha256).substr(0, 80)),
        "' must be SHA-256 in 64 lower-case hexadecimal digits"));
  }
  return absl::OkStatus();
}

std::string FormatUploadName(const UploadName& name) {
  return absl::StrCat("uploads/", name.uuid, "/", BlobName(name.ref));
}

absl::StatusOr<UploadName> ParseUploadName(absl::string_view name) {
  if (name.size() > kMaxNameBytes) return BadName(name, kUploadGrammar);
  const std::vector<absl::string_view> parts = absl::StrSplit(name, '/');
  if (parts.size() != 5 || parts[0] != "uploads" || parts[2] != "blobs") {
    return BadName(name, kUploadGrammar);
  }
  OVPRESS_RETURN_IF_ERROR(ValidateUploadUuid(parts[1]));
  UploadName upload;
  upload.uuid = std::string(parts[1]);
  OVPRESS_ASSIGN_OR_RETURN(upload.ref, RefFromParts(parts[3], parts[4], name));
  return upload;
}

absl::Status ValidateUploadUuid(absl::string_view uuid) {
  const auto allowed = [](char c) {
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
           (c >= 'A' && c <= 'Z') || c == '-';
  };
  if (uuid.empty() || uuid.size() > 64 ||
      !std::all_of(uuid.begin(), uuid.end(), allowed)) {
    return absl::InvalidArgumentError(
        absl::StrCat("upload id '", absl::CHexEscape(uuid.substr(0, 80)),
                     "' must be a UUID: 1 to 64 of [A-Za-z0-9-]"));
  }
  return absl::OkStatus();
}

BlobRef BlobRefOf(absl::string_view bytes) {
  return BlobRef{.sha256 = Sha256Hex(bytes), .size_bytes = bytes.size()};
}

}  // namespace ovpress
