// A temporary file without a name: bytes on their way to the object store. It
// ends with the object, whatever happens to the process.
#ifndef OVPRESS_SERVER_CLUSTER_SPOOL_FILE_H_
#define OVPRESS_SERVER_CLUSTER_SPOOL_FILE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "core/base/io.h"

namespace ovpress {

// Thread-safe for disjoint ranges.
class SpoolFile : public ByteSource, public ByteSink {
 public:
  // In `folder`, which must exist. Sparse: takes space as it is written.
  static absl::StatusOr<std::unique_ptr<SpoolFile>> Create(
      const std::string& folder, uint64_t size_bytes);
  ~SpoolFile() override;

  uint64_t size_bytes() const override { return size_; }
  // What was never written reads as zeros.
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override;
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override;
  // Gives the space of a range back, as far as the file system can.
  void Discard(uint64_t offset, uint64_t size_bytes);

 private:
  SpoolFile(int fd, uint64_t size, std::string folder)
      : fd_(fd), size_(size), folder_(std::move(folder)) {}
  const int fd_;
  const uint64_t size_;
  const std::string folder_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_SPOOL_FILE_H_
