#include "core/base/io.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

// read and write take at most 2 GiB on Linux; smaller calls also notice a
// cancelled job sooner.
constexpr size_t kIoBytesMax = 1u << 30;

std::string DirectoryOf(const std::string& path) {
  const size_t slash = path.rfind('/');
  if (slash == std::string::npos) return ".";
  return slash == 0 ? "/" : path.substr(0, slash);
}

absl::Status SyncDirectoryOf(const std::string& path) {
  const std::string directory = DirectoryOf(path);
  int directory_fd = -1;
  do {
    directory_fd =
        ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  } while (directory_fd < 0 && errno == EINTR);
  if (directory_fd < 0) {
    return ErrnoToStatus(errno, absl::StrCat("opening ", directory));
  }
  int result = 0;
  do {
    result = ::fsync(directory_fd);
  } while (result != 0 && errno == EINTR);
  const int error = errno;
  ::close(directory_fd);
  // Some file systems cannot sync a directory.
  if (result != 0 && error != EINVAL && error != EROFS) {
    return ErrnoToStatus(error, absl::StrCat("making ", directory, " durable"));
  }
  return absl::OkStatus();
}

// A free name beside `path` for what lies there now.
std::string AsideName(const std::string& path) {
  const size_t slash = path.rfind('/');
  const size_t name = slash == std::string::npos ? 0 : slash + 1;
  return absl::StrCat(path.substr(0, name), ".", path.substr(name),
                      ".ovpress-old-", ::getpid());
}

class MemorySource final : public ByteSource {
 public:
  explicit MemorySource(std::span<const std::byte> bytes) : bytes_(bytes) {}
  uint64_t size_bytes() const override { return bytes_.size(); }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override {
    if (offset > bytes_.size() || out.size() > bytes_.size() - offset) {
      return absl::DataLossError(
          absl::StrCat("reading ", out.size(), " bytes at ", offset,
                       " leaves a source of ", bytes_.size(), " bytes"));
    }
    if (!out.empty()) {
      std::memcpy(out.data(), bytes_.data() + offset, out.size());
    }
    return absl::OkStatus();
  }

 private:
  const std::span<const std::byte> bytes_;
};

class FileSource final : public ByteSource {
 public:
  FileSource(std::string path, int fd, uint64_t size)
      : path_(std::move(path)), fd_(fd), size_(size) {}
  ~FileSource() override { ::close(fd_); }

  uint64_t size_bytes() const override { return size_; }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override {
    if (offset > size_ || out.size() > size_ - offset) {
      return absl::DataLossError(
          absl::StrCat("reading ", out.size(), " bytes at ", offset, " leaves ",
                       path_, ", which has ", size_, " bytes"));
    }
    size_t done = 0;
    while (done < out.size()) {
      const ssize_t got = ::pread(fd_, out.data() + done,
                                  std::min(out.size() - done, kIoBytesMax),
                                  static_cast<off_t>(offset + done));
      if (got < 0) {
        if (errno == EINTR) continue;
        return ErrnoToStatus(errno, absl::StrCat("reading ", path_));
      }
      if (got == 0) {
        return absl::DataLossError(
            absl::StrCat(path_, " was cut short while it was read: it ends at ",
                         offset + done, " of ", size_, " bytes"));
      }
      done += static_cast<size_t>(got);
    }
    return absl::OkStatus();
  }

 private:
  const std::string path_;
  const int fd_;
  const uint64_t size_;
};

}  // namespace

absl::Status ErrnoToStatus(int error_number, const std::string& what) {
  const std::string text =
      absl::StrCat(what, ": ", std::strerror(error_number));
  switch (error_number) {
    case ENOENT:
    case ENOTDIR:
      return absl::NotFoundError(text);
    case EACCES:
    case EPERM:
    case EROFS:
      return absl::PermissionDeniedError(text);
    case ENOSPC:
    case EDQUOT:
    case EFBIG:
    case EMFILE:
    case ENFILE:
    case ENOMEM:
      return absl::ResourceExhaustedError(text);
    case EISDIR:
    case EINVAL:
    case ENAMETOOLONG:
      return absl::InvalidArgumentError(text);
    default:
      return absl::UnavailableError(text);
  }
}

std::unique_ptr<ByteSource> MakeMemorySource(std::span<const std::byte> bytes) {
  return std::make_unique<MemorySource>(bytes);
}

absl::StatusOr<std::unique_ptr<ByteSource>> OpenFileSource(
    const std::string& path) {
  // Without O_NONBLOCK a FIFO would hang here until somebody writes.
  int fd = -1;
  do {
    fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return ErrnoToStatus(errno, absl::StrCat("opening ", path));
  auto fail = [fd](absl::Status status) {
    ::close(fd);
    return status;
  };
  struct stat info;
  if (::fstat(fd, &info) != 0) {
    return fail(ErrnoToStatus(errno, absl::StrCat("examining ", path)));
  }
  if (!S_ISREG(info.st_mode)) {
    return fail(absl::InvalidArgumentError(
        absl::StrCat(path, " is not a regular file")));
  }
  // Large sequential reads; a hint only.
  (void)::posix_fadvise(fd, 0, 0, POSIX_FADV_SEQUENTIAL);
  return std::make_unique<FileSource>(path, fd,
                                      static_cast<uint64_t>(info.st_size));
}

AtomicFile::AtomicFile(std::string path, std::string temporary_path, int fd)
    : path_(std::move(path)),
      temporary_path_(std::move(temporary_path)),
      fd_(fd) {}

AtomicFile::~AtomicFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!published_) ::unlink(temporary_path_.c_str());
}

absl::StatusOr<std::unique_ptr<AtomicFile>> AtomicFile::Create(
    const std::string& path, uint64_t reserve_bytes) {
  const size_t slash = path.rfind('/');
  const std::string name =
      slash == std::string::npos ? path : path.substr(slash + 1);
  if (name.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("'", path, "' names no file"));
  }
  struct stat target;
  if (::stat(path.c_str(), &target) == 0 && !S_ISREG(target.st_mode)) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " exists and is not a regular file"));
  }
  std::string temporary =
      absl::StrCat(slash == std::string::npos ? "" : path.substr(0, slash + 1),
                   ".", name, ".ovpress-XXXXXX");
  int fd = -1;
  do {
    fd = ::mkostemp(temporary.data(), O_CLOEXEC);
  } while (fd < 0 && errno == EINTR);
  if (fd < 0) return ErrnoToStatus(errno, absl::StrCat("creating ", path));
  std::unique_ptr<AtomicFile> file(new AtomicFile(path, temporary, fd));
  // mkostemp gives 0600; a finished file has what open() would have given.
  const mode_t mask = ::umask(0);
  ::umask(mask);
  if (::fchmod(fd, 0666 & ~mask) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("creating ", path));
  }
  if (reserve_bytes > 0) {
    if (reserve_bytes >
        static_cast<uint64_t>(std::numeric_limits<off_t>::max())) {
      return absl::ResourceExhaustedError(absl::StrCat(
          path, " would have ", reserve_bytes, " bytes, more than a file can"));
    }
    int error = 0;
    do {
      // Not posix_fallocate: where the file system cannot reserve, that one
      // writes zeros, which costs as much as the work itself.
      error = ::fallocate(fd, 0, 0, static_cast<off_t>(reserve_bytes)) == 0
                  ? 0
                  : errno;
    } while (error == EINTR);
    if (error != 0 && error != EOPNOTSUPP && error != ENOSYS &&
        error != EINVAL) {
      return ErrnoToStatus(error, absl::StrCat("reserving ", reserve_bytes,
                                               " bytes for ", path));
    }
    int sized = 0;
    do {
      sized = ::ftruncate(fd, static_cast<off_t>(reserve_bytes));
    } while (sized != 0 && errno == EINTR);
    if (sized != 0) return ErrnoToStatus(errno, absl::StrCat("sizing ", path));
  }
  return file;
}

absl::Status AtomicFile::WriteAt(uint64_t offset,
                                 std::span<const std::byte> bytes) {
  size_t done = 0;
  while (done < bytes.size()) {
    const ssize_t put = ::pwrite(fd_, bytes.data() + done,
                                 std::min(bytes.size() - done, kIoBytesMax),
                                 static_cast<off_t>(offset + done));
    if (put < 0) {
      if (errno == EINTR) continue;
      return ErrnoToStatus(errno, absl::StrCat("writing ", path_));
    }
    if (put == 0) {
      return absl::UnavailableError(
          absl::StrCat("writing ", path_, ": no byte was taken"));
    }
    done += static_cast<size_t>(put);
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Sync() {
  int result = 0;
  do {
    result = ::fsync(fd_);
  } while (result != 0 && errno == EINTR);
  if (result != 0) {
    return ErrnoToStatus(errno, absl::StrCat("making ", path_, " durable"));
  }
  return absl::OkStatus();
}

absl::Status AtomicFile::Publish() {
  const int fd = fd_;
  fd_ = -1;
  // NFS reports late write errors here.
  if (::close(fd) != 0 && errno != EINTR) {
    return ErrnoToStatus(errno, absl::StrCat("closing ", path_));
  }
  if (::rename(temporary_path_.c_str(), path_.c_str()) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("renaming to ", path_));
  }
  published_ = true;
  return SyncDirectoryOf(path_);
}

absl::Status AtomicFile::Commit() {
  OVPRESS_RETURN_IF_ERROR(Sync());
  return Publish();
}

absl::Status PublishTogether(std::span<AtomicFile* const> files) {
  // What lies there goes aside, last file first, so that nobody finds the last
  // one with others that do not belong to it.
  std::vector<AtomicFile*> aside;
  std::vector<AtomicFile*> placed;
  absl::Status status;
  for (size_t i = files.size(); i-- > 0 && status.ok();) {
    const std::string& path = files[i]->path();
    if (::rename(path.c_str(), AsideName(path).c_str()) == 0) {
      aside.push_back(files[i]);
    } else if (errno != ENOENT) {
      status = ErrnoToStatus(errno, absl::StrCat("replacing ", path));
    }
  }
  for (AtomicFile* file : files) {
    if (!status.ok()) break;
    status = file->Publish();
    // Also after an error: the name may have been taken before the sync failed.
    placed.push_back(file);
  }
  if (status.ok()) {
    for (AtomicFile* file : aside) ::unlink(AsideName(file->path()).c_str());
    return status;
  }
  for (size_t i = placed.size(); i-- > 0;) {
    if (placed[i]->published()) ::unlink(placed[i]->path().c_str());
  }
  for (size_t i = aside.size(); i-- > 0;) {
    const std::string& path = aside[i]->path();
    if (::rename(AsideName(path).c_str(), path.c_str()) != 0) {
      status = absl::Status(
          status.code(),
          absl::StrCat(status.message(), "; the file that was there before is ",
                       AsideName(path), " now"));
    }
  }
  return status;
}

absl::StatusOr<std::string> ReadSmallFile(const std::string& path,
                                          uint64_t limit_bytes) {
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ByteSource> source,
                           OpenFileSource(path));
  if (source->size_bytes() > limit_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(path, " has ", source->size_bytes(),
                     " bytes; the limit is ", limit_bytes));
  }
  std::string text(source->size_bytes(), '\0');
  OVPRESS_RETURN_IF_ERROR(source->ReadAt(0, AsWritableBytes(text)));
  return text;
}

}  // namespace ovpress
