// Resource names and blob references: a name that is taken is one that we would
// print, and nothing that could leave a directory is taken.
#include "server/jobs/digest.h"
#include "tests/fuzz/input.h"

namespace {

void CheckFileNameSafe(const std::string& part) {
  for (const char c : part) {
    OVPRESS_FUZZ_ASSERT((c >= '0' && c <= '9') || (c >= 'a' && c <= 'z') ||
                            (c >= 'A' && c <= 'Z') || c == '-',
                        part);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ovpress;  // NOLINT(google-build-using-namespace): one
                            // function
  const std::string name(reinterpret_cast<const char*>(data), size);
  const auto blob = ParseBlobName(name);
  if (blob.ok()) {
    OVPRESS_FUZZ_ASSERT(BlobName(*blob) == name, name);
    OVPRESS_FUZZ_ASSERT(ValidateBlobRef(*blob).ok(), name);
    CheckFileNameSafe(blob->sha256);
  } else {
    OVPRESS_FUZZ_ASSERT(absl::IsInvalidArgument(blob.status()), name);
    OVPRESS_FUZZ_ASSERT(blob.status().message().size() < 2048, name);
  }
  const auto upload = ParseUploadName(name);
  if (upload.ok()) {
    OVPRESS_FUZZ_ASSERT(FormatUploadName(*upload) == name, name);
    OVPRESS_FUZZ_ASSERT(ValidateUploadUuid(upload->uuid).ok(), name);
    CheckFileNameSafe(upload->uuid);
    CheckFileNameSafe(upload->ref.sha256);
  } else {
    OVPRESS_FUZZ_ASSERT(absl::IsInvalidArgument(upload.status()), name);
    OVPRESS_FUZZ_ASSERT(upload.status().message().size() < 2048, name);
  }
  BlobRef ref;
  ref.sha256 = name;
  if (ValidateBlobRef(ref).ok()) CheckFileNameSafe(ref.sha256);
  if (ValidateUploadUuid(name).ok()) CheckFileNameSafe(name);
  return 0;
}
