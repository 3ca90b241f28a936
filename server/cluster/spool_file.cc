#include "server/cluster/spool_file.h"

#include <fcntl.h>
#include <stdlib.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "absl/strings/str_cat.h"

namespace ovpress {

absl::StatusOr<std::unique_ptr<SpoolFile>> SpoolFile::Create(
    const std::string& folder, uint64_t size_bytes) {
  std::string path = folder + "/spool_XXXXXX";
  const int fd = ::mkostemp(path.data(), O_CLOEXEC);
  if (fd < 0) {
    return ErrnoToStatus(errno, absl::StrCat("a temporary file in ", folder));
  }
  ::unlink(path.c_str());
  std::unique_ptr<SpoolFile> file(new SpoolFile(fd, size_bytes, folder));
  if (::ftruncate(fd, static_cast<off_t>(size_bytes)) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("a temporary file in ", folder));
  }
  return file;
}

SpoolFile::~SpoolFile() { ::close(fd_); }

absl::Status SpoolFile::ReadAt(uint64_t offset, std::span<std::byte> out) {
  if (offset > size_ || out.size() > size_ - offset) {
    return absl::DataLossError(absl::StrCat("bytes ", offset, " to ",
                                            offset + out.size(),
                                            " leave a file of ", size_));
  }
  while (!out.empty()) {
    const ssize_t n =
        ::pread(fd_, out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return n == 0 ? absl::DataLossError("a temporary file got shorter")
                    : ErrnoToStatus(errno, "reading a temporary file");
    }
    offset += static_cast<uint64_t>(n);
    out = out.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status SpoolFile::WriteAt(uint64_t offset,
                                std::span<const std::byte> bytes) {
  if (offset > size_ || bytes.size() > size_ - offset) {
    return absl::InternalError(absl::StrCat("bytes ", offset, " to ",
                                            offset + bytes.size(),
                                            " leave a file of ", size_));
  }
  while (!bytes.empty()) {
    const ssize_t n =
        ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) {
      return ErrnoToStatus(
          errno, absl::StrCat("writing a temporary file in ", folder_));
    }
    offset += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

void SpoolFile::Discard(uint64_t offset, uint64_t size_bytes) {
  // Best effort: where it fails the space comes back with the file.
  (void)::fallocate(fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
                    static_cast<off_t>(offset), static_cast<off_t>(size_bytes));
}

}  // namespace ovpress
