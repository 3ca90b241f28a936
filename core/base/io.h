// Where bytes come from and go to: the seam between the engine and files,
// spools, streams, object stores and fault-injecting tests.
#ifndef OVPRESS_CORE_BASE_IO_H_
#define OVPRESS_CORE_BASE_IO_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ovpress {

// Text as bytes, without a copy.
inline std::span<const std::byte> AsBytes(absl::string_view text) {
  return std::as_bytes(std::span(text.data(), text.size()));
}
inline std::span<std::byte> AsWritableBytes(std::string& text) {
  return std::as_writable_bytes(std::span(text.data(), text.size()));
}

// Random-access input of a known size. Thread-safe.
class ByteSource {
 public:
  virtual ~ByteSource() = default;
  virtual uint64_t size_bytes() const = 0;
  // Fills `out` from `offset`. kDataLoss if the range leaves the source or the
  // source turns out shorter than it said; kUnavailable/kInternal on I/O
  // errors.
  virtual absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) = 0;
};

// Random-access output. Thread-safe; callers write disjoint ranges.
class ByteSink {
 public:
  virtual ~ByteSink() = default;
  virtual absl::Status WriteAt(uint64_t offset,
                               std::span<const std::byte> bytes) = 0;
};

// A source over memory that the caller keeps alive.
std::unique_ptr<ByteSource> MakeMemorySource(std::span<const std::byte> bytes);

// Opens a regular file for reading by pread: nothing is mapped, so the page
// cache does not count as this process's memory. kNotFound, kPermissionDenied,
// kInvalidArgument (not a regular file).
absl::StatusOr<std::unique_ptr<ByteSource>> OpenFileSource(
    const std::string& path);

// A file that appears whole or not at all. Bytes go to a temporary file beside
// `path` (same directory, so that the rename is atomic); Commit() makes them
// durable (fsync) and renames; destroying it without Commit() removes the
// temporary file. Not thread-safe but for WriteAt.
class AtomicFile : public ByteSink {
 public:
  // `reserve_bytes` > 0 reserves the disk space now (fallocate), so that a full
  // disk is known before the work: kResourceExhausted.
  static absl::StatusOr<std::unique_ptr<AtomicFile>> Create(
      const std::string& path, uint64_t reserve_bytes);
  ~AtomicFile() override;

  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override;
  // fsync of the data; the name stays temporary.
  absl::Status Sync();
  // Rename to the final path and fsync of the directory. REQUIRES: Sync() done.
  absl::Status Publish();
  absl::Status Commit();
  const std::string& temporary_path() const { return temporary_path_; }
  const std::string& path() const { return path_; }
  // True once the file has its final name, even if Publish() failed later.
  bool published() const { return published_; }

 private:
  AtomicFile(std::string path, std::string temporary_path, int fd);
  const std::string path_;
  const std::string temporary_path_;
  int fd_;
  bool published_ = false;
};

// Publishes files that belong together, in this order: after an error none of
// them is there and what they were to replace is, unless putting it back failed
// as well; then the message says where it lies. A crash in between leaves the
// last name free, never old and new side by side. REQUIRES: Sync() done on
// each.
absl::Status PublishTogether(std::span<AtomicFile* const> files);

// Reads a whole small file; kResourceExhausted above `limit_bytes`.
absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          uint64_t limit_bytes);

// Maps errno to a status whose message is "<what>: <strerror>": ENOENT ->
// kNotFound, EACCES/EPERM/EROFS -> kPermissionDenied, ENOSPC/EDQUOT/EMFILE/
// ENFILE/ENOMEM -> kResourceExhausted, others -> kUnavailable... never kOk.
absl::Status ErrnoToStatus(int error_number, const std::string& what);

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_IO_H_
