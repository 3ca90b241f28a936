#include "server/jobs/local_blob_store.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <filesystem>
#include <limits>
#include <map>
#include <set>
#include <thread>
#include <utility>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/base/gathering_sink.h"
#include "core/base/hash_thread.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "server/jobs/errors.h"

namespace ovpress {
namespace {

namespace fs = std::filesystem;

constexpr size_t kHashBlockBytes = 1 << 20;
constexpr std::chrono::seconds kSweepMax{2};
// Appended bytes after which the disk is told to begin.
constexpr uint64_t kWritebackBytes = 8 << 20;

class Fd {
 public:
  Fd() = default;
  explicit Fd(int fd) : fd_(fd) {}
  Fd(Fd&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  Fd& operator=(Fd&& other) noexcept {
    std::swap(fd_, other.fd_);
    return *this;
  }
  ~Fd() {
    if (fd_ >= 0) ::close(fd_);
  }
  int get() const { return fd_; }

 private:
  int fd_ = -1;
};

absl::StatusOr<Fd> Open(const std::string& path, int flags) {
  const int fd = ::open(path.c_str(), flags | O_CLOEXEC, 0600);
  if (fd < 0) return ErrnoToStatus(errno, absl::StrCat("cannot open ", path));
  return Fd(fd);
}

absl::Status WriteAll(int fd, uint64_t offset, std::span<const std::byte> bytes,
                      const std::string& path) {
  while (!bytes.empty()) {
    const ssize_t n =
        ::pwrite(fd, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return ErrnoToStatus(errno, absl::StrCat("writing ", path));
    offset += static_cast<uint64_t>(n);
    bytes = bytes.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status ReadAll(int fd, uint64_t offset, std::span<std::byte> out,
                     const std::string& path) {
  while (!out.empty()) {
    const ssize_t n =
        ::pread(fd, out.data(), out.size(), static_cast<off_t>(offset));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return ErrnoToStatus(errno, absl::StrCat("reading ", path));
    if (n == 0) {
      return absl::DataLossError(
          absl::StrCat(path, " ends at ", offset, ", before its size"));
    }
    offset += static_cast<uint64_t>(n);
    out = out.subspan(static_cast<size_t>(n));
  }
  return absl::OkStatus();
}

absl::Status HashPrefix(int fd, uint64_t size, const std::string& path,
                        Sha256Hasher* hasher) {
  std::vector<std::byte> block(std::min<uint64_t>(size, kHashBlockBytes));
  for (uint64_t at = 0; at < size; at += block.size()) {
    const std::span<std::byte> part =
        std::span(block).first(std::min<uint64_t>(block.size(), size - at));
    OVPRESS_RETURN_IF_ERROR(ReadAll(fd, at, part, path));
    hasher->Update(part);
  }
  return absl::OkStatus();
}

absl::Status SyncFile(int fd, const std::string& path) {
  if (::fdatasync(fd) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("syncing ", path));
  }
  return absl::OkStatus();
}

// The disk begins to write, so that a sync later finds little left to do.
// Promises nothing: what goes wrong shows in SyncFile().
void StartWriteback(int fd, uint64_t offset, uint64_t size) {
  ::sync_file_range(fd, static_cast<off_t>(offset), static_cast<off_t>(size),
                    SYNC_FILE_RANGE_WRITE);
}

absl::Status SyncDirectory(const std::string& path) {
  OVPRESS_ASSIGN_OR_RETURN(const Fd fd, Open(path, O_RDONLY | O_DIRECTORY));
  if (::fsync(fd.get()) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("syncing ", path));
  }
  return absl::OkStatus();
}

absl::Status MakeDirectory(const std::string& path) {
  if (::mkdir(path.c_str(), 0700) != 0 && errno != EEXIST) {
    return ErrnoToStatus(errno, absl::StrCat("cannot make ", path));
  }
  return absl::OkStatus();
}

absl::Status Rename(const std::string& from, const std::string& to) {
  if (::rename(from.c_str(), to.c_str()) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("renaming to ", to));
  }
  return absl::OkStatus();
}

// Gives the file at `path` the name `target` as well, in place of what was
// there; `spare` is a free name on the same file system. Where a file system
// knows one name only, the old one goes.
absl::Status AddName(const std::string& path, const std::string& spare,
                     const std::string& target) {
  if (::link(path.c_str(), spare.c_str()) != 0) {
    if (errno != EPERM && errno != EOPNOTSUPP && errno != ENOSYS &&
        errno != EMLINK) {
      return ErrnoToStatus(errno, absl::StrCat("linking ", path));
    }
    return Rename(path, target);
  }
  const absl::Status status = Rename(spare, target);
  // Also after success: between two names of one file rename() does nothing.
  ::unlink(spare.c_str());
  return status;
}

void RemoveTree(const std::string& path) {
  std::error_code ignored;
  fs::remove_all(path, ignored);
}

std::string FileName(const BlobRef& ref) {
  return absl::StrCat(ref.sha256, "-", ref.size_bytes);
}

std::optional<BlobRef> RefOfFileName(absl::string_view name) {
  const std::vector<absl::string_view> parts =
      absl::StrSplit(name, absl::MaxSplits('-', 1));
  if (parts.size() != 2) return std::nullopt;
  const auto ref =
      ParseBlobName(absl::StrCat("blobs/", parts[0], "/", parts[1]));
  if (!ref.ok()) return std::nullopt;
  return *ref;
}

bool IsEmptyBlob(const BlobRef& ref) {
  static const std::string* const kEmpty = new std::string(Sha256Hex(""));
  return ref.size_bytes == 0 && ref.sha256 == *kEmpty;
}

// One staged upload; survives its writers.
struct Staged {
  std::string key;    // {owner hash}-{uuid}
  std::string owner;  // hash
  BlobRef ref;
  std::string folder;
  // Guards the file: one writer works, a takeover waits for its call to end.
  Mutex io;
  uint64_t generation ABSL_GUARDED_BY(io) = 0;
  bool writer_alive ABSL_GUARDED_BY(io) = false;
  bool gone ABSL_GUARDED_BY(io) = false;
  absl::Time last_use ABSL_GUARDED_BY(io);
  uint64_t durable ABSL_GUARDED_BY(io) = 0;
  std::atomic<uint64_t> written{0};
};

// What a file looks like to somebody who does not read it. Whoever writes to it
// changes that, so an unchanged look means the bytes that were hashed.
struct FileLook {
  ino_t inode = 0;
  off_t size = 0;
  int64_t changed_ns = 0;

  friend bool operator==(const FileLook&, const FileLook&) = default;
};

std::optional<FileLook> LookOf(const struct stat& info) {
  return FileLook{.inode = info.st_ino,
                  .size = info.st_size,
                  .changed_ns = int64_t{info.st_ctim.tv_sec} * 1'000'000'000 +
                                info.st_ctim.tv_nsec};
}
std::optional<FileLook> LookAt(const std::string& path) {
  struct stat info {};
  if (::stat(path.c_str(), &info) != 0) return std::nullopt;
  return LookOf(info);
}

struct BlobInfo {
  // Tells a blob from one of the same name that was dropped and came again.
  uint64_t generation = 0;
  absl::Time last_use;
  int pins = 0;
  std::set<std::string> owners;  // hashes
  // The file when its digest was last known to be right; nullopt: not since
  // this process started, or somebody changed the file.
  std::optional<FileLook> verified;
};

class LocalBlobStore final : public BlobStore {
 public:
  explicit LocalBlobStore(LocalBlobStoreOptions options)
      : options_(std::move(options)), root_(options_.directory) {}

  absl::Status Recover(RecoveryReport* report);

  absl::StatusOr<OpenedUpload> OpenUpload(absl::string_view owner,
                                          const UploadName& name) override;
  absl::StatusOr<UploadStatus> QueryUpload(absl::string_view owner,
                                           const UploadName& name) override;
  absl::StatusOr<std::vector<BlobRef>> FindMissing(
      absl::string_view owner, std::span<const BlobRef> refs) override;
  absl::StatusOr<std::unique_ptr<ByteSource>> OpenRead(
      absl::string_view owner, const BlobRef& ref) override;
  absl::StatusOr<std::unique_ptr<ByteSource>> OpenReadAny(
      const BlobRef& ref) override;
  absl::StatusOr<std::unique_ptr<BlobPin>> Pin(
      absl::string_view owner, std::span<const BlobRef> refs) override;
  absl::Status Verify(const BlobRef& ref) override;
  absl::Status Release(absl::string_view owner, const BlobRef& ref) override;
  absl::StatusOr<std::unique_ptr<SpaceReservation>> Reserve(
      absl::string_view owner, uint64_t size_bytes) override;
  absl::StatusOr<std::unique_ptr<BlobWriter>> CreateOutput(
      absl::string_view owner, uint64_t size_bytes,
      SpaceReservation* reservation) override;
  absl::StatusOr<std::unique_ptr<ScratchBlob>> CreateScratch(
      absl::string_view owner, uint64_t size_bytes) override;
  void Sweep() override;
  BlobStoreStats Stats() override;

 private:
  class Upload;
  class Writer;
  class ReservedFile;
  class Scratch;
  class Source;
  class PinImpl;
  class ReservationImpl;

  std::string Path(absl::string_view a) const {
    return absl::StrCat(root_, "/", a);
  }
  std::string BlobPath(const BlobRef& ref) const {
    return absl::StrCat(root_, "/blobs/", ref.sha256.substr(0, 2), "/",
                        FileName(ref));
  }
  std::string MarkerFolder(const std::string& owner) const {
    return absl::StrCat(root_, "/owners/", owner);
  }
  absl::Status Step(absl::string_view name) const {
    return options_.crash_point ? options_.crash_point(name) : absl::OkStatus();
  }
  absl::Time Now() const { return options_.clock->Now(); }
  std::string TemporaryPath() {
    return absl::StrCat(root_, "/tmp/", next_temporary_++);
  }

  // Moves a finished, synced file to its place and makes `owner` see it.
  // Returns the blob's generation. After an error or a crash the file is at
  // `path` still, so that an upload loses nothing that it was told is durable.
  absl::StatusOr<uint64_t> Publish(const std::string& path, const BlobRef& ref,
                                   const std::string& owner, bool pin);
  // Its parts. A disk may take seconds to sync, so that is done without
  // mutex_; meanwhile `ref` is in publishing_, and whoever would take away what
  // is being named waits. Returns whether the store's own file is right.
  bool BeginPublication(const BlobRef& ref);
  absl::Status NameOnDisk(const std::string& path, const BlobRef& ref,
                          const std::string& owner, bool keep);
  void AwaitPublication(const BlobRef& ref)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    while (publishing_.contains(ref)) published_.Wait(&mutex_);
  }
  bool OwnerHas(const std::string& owner, const BlobRef& ref)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Use(const BlobRef& ref, BlobInfo& info)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Drop(const BlobRef& ref) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  struct Pinned {
    BlobRef ref;
    uint64_t generation = 0;
  };
  void Unpin(const std::vector<Pinned>& pinned);
  // Verify() unless it was done already and the file is as it was.
  absl::Status EnsureVerified(const BlobRef& ref);
  // Sets a damaged blob aside; kDataLoss. OK if what lies there now is not the
  // file that was examined (0: there was none) but one that is known to be
  // right.
  absl::Status Spoil(const BlobRef& ref, ino_t examined,
                     absl::string_view what);
  // Moves a blob's file to corrupt/, or deletes it if it does not fit there.
  void SetAside(const BlobRef& ref) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddDamaged(const std::string& name, uint64_t size_bytes,
                  absl::Time since) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Deletes the oldest of corrupt/; false if there is none. `why` is for the
  // log.
  bool DropOldestDamaged(absl::string_view why)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // The same if they are too many bytes or it is too old.
  bool TrimDamaged(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Log(Observer::Severity severity, const std::string& text) const {
    if (options_.observer) options_.observer->OnLog(severity, "", text);
  }
  uint64_t UsedBytes() const ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return blob_bytes_ + staged_bytes_ + reserved_bytes_ + damaged_bytes_;
  }
  uint64_t LimitBytes() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  OwnerQuota QuotaOf(absl::string_view owner_name) const {
    return options_.quotas == nullptr ? OwnerQuota{}
                                      : options_.quotas->QuotaOf(owner_name);
  }
  // Blobs, staged uploads and reservations.
  uint64_t OwnerBytes(const std::string& owner)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void AddReserved(const std::string& owner, uint64_t bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void SubReserved(const std::string& owner, uint64_t bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::StatusOr<std::unique_ptr<ByteSource>> OpenPinned(
      const BlobRef& ref, std::unique_ptr<BlobPin> pin);
  bool MayEvict(const BlobInfo& info, absl::Time now) const {
    return info.pins == 0 &&
           now - info.last_use >= options_.limits.min_blob_age;
  }
  bool EvictOne(absl::Time now) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  // Takes the owner's least recently used blob from it.
  bool EvictOneOf(const std::string& owner, absl::Time now)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void TakeFrom(const std::string& owner, const BlobRef& ref)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status MakeOwnRoom(absl::string_view owner_name,
                           const std::string& owner, uint64_t size_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  absl::Status MakeRoom(absl::string_view owner_name, const std::string& owner,
                        uint64_t size_bytes)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);
  void Forget(const std::shared_ptr<Staged>& staged);

  const LocalBlobStoreOptions options_;
  const std::string root_;
  Fd lock_;
  std::atomic<uint64_t> next_temporary_{0};
  std::atomic<uint64_t> staged_written_{0};    // of staged_bytes_
  std::atomic<uint64_t> reserved_written_{0};  // of reserved_bytes_

  Mutex mutex_;
  uint64_t next_generation_ ABSL_GUARDED_BY(mutex_) = 1;
  std::map<BlobRef, BlobInfo> blobs_ ABSL_GUARDED_BY(mutex_);
  // What Publish() is writing to the disk, and the wait for its end.
  std::set<BlobRef> publishing_ ABSL_GUARDED_BY(mutex_);
  CondVar published_;
  std::map<std::string, std::shared_ptr<Staged>> staged_
      ABSL_GUARDED_BY(mutex_);
  uint64_t blob_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t staged_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t reserved_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  // The same by owner; owners without any are not in it.
  std::map<std::string, uint64_t> reserved_by_owner_ ABSL_GUARDED_BY(mutex_);
  uint64_t evicted_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  // Sizes of the files in corrupt/, by when they were set aside and their name.
  std::map<std::pair<absl::Time, std::string>, uint64_t> damaged_
      ABSL_GUARDED_BY(mutex_);
  uint64_t damaged_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
};

// --- helpers with a handle ---

class LocalBlobStore::PinImpl final : public BlobPin {
 public:
  PinImpl(LocalBlobStore* store, std::vector<Pinned> pinned)
      : store_(store), pinned_(std::move(pinned)) {}
  ~PinImpl() override { store_->Unpin(pinned_); }

 private:
  LocalBlobStore* const store_;
  const std::vector<Pinned> pinned_;
};

class LocalBlobStore::Source final : public ByteSource {
 public:
  Source(Fd fd, uint64_t size, std::string path, std::unique_ptr<BlobPin> pin)
      : fd_(std::move(fd)),
        size_(size),
        path_(std::move(path)),
        pin_(std::move(pin)) {}
  uint64_t size_bytes() const override { return size_; }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override {
    if (offset > size_ || out.size() > size_ - offset) {
      return absl::DataLossError(absl::StrCat("bytes ", offset, " to ",
                                              offset + out.size(),
                                              " leave a blob of ", size_));
    }
    return ReadAll(fd_.get(), offset, out, path_);
  }

 private:
  const Fd fd_;
  const uint64_t size_;
  const std::string path_;
  const std::unique_ptr<BlobPin> pin_;
};

class LocalBlobStore::ReservationImpl final : public SpaceReservation {
 public:
  ReservationImpl(LocalBlobStore* store, std::string owner, uint64_t bytes)
      : store_(store), owner_(std::move(owner)), left_(bytes) {}
  ~ReservationImpl() override {
    MutexLock lock(&store_->mutex_);
    store_->SubReserved(owner_, left_);
  }
  uint64_t bytes_left() const override { return left_; }

 private:
  friend class LocalBlobStore;
  LocalBlobStore* const store_;
  const std::string owner_;
  std::atomic<uint64_t> left_;
};

// What reaches the file counts as written of what the store set aside.
class LocalBlobStore::ReservedFile final : public ByteSink {
 public:
  ReservedFile(LocalBlobStore* store, Fd fd, std::string path)
      : store_(store), fd_(std::move(fd)), path_(std::move(path)) {}
  ~ReservedFile() override { store_->reserved_written_ -= written_; }
  int fd() const { return fd_.get(); }
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    OVPRESS_RETURN_IF_ERROR(WriteAll(fd_.get(), offset, bytes, path_));
    written_ += bytes.size();
    store_->reserved_written_ += bytes.size();
    return absl::OkStatus();
  }

 private:
  LocalBlobStore* const store_;
  const Fd fd_;
  const std::string path_;
  std::atomic<uint64_t> written_{0};
};

class LocalBlobStore::Scratch final : public ScratchBlob {
 public:
  Scratch(LocalBlobStore* store, Fd fd, uint64_t size, std::string path,
          std::string owner)
      : store_(store),
        size_(size),
        path_(path),
        owner_(std::move(owner)),
        file_(store, std::move(fd), std::move(path)) {}
  ~Scratch() override {
    MutexLock lock(&store_->mutex_);
    store_->SubReserved(owner_, size_);
  }
  uint64_t size_bytes() const override { return size_; }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override {
    return ReadAll(file_.fd(), offset, out, path_);
  }
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    return file_.WriteAt(offset, bytes);
  }

 private:
  LocalBlobStore* const store_;
  const uint64_t size_;
  const std::string path_;
  const std::string owner_;
  ReservedFile file_;
};

class LocalBlobStore::Writer final : public BlobWriter {
 public:
  Writer(LocalBlobStore* store, Fd fd, uint64_t size, std::string path,
         std::string owner)
      : store_(store),
        size_(size),
        path_(std::move(path)),
        owner_(std::move(owner)),
        file_(store, std::move(fd), path_),
        gathered_(&file_, size) {}
  ~Writer() override {
    if (!published_) ::unlink(path_.c_str());
    MutexLock lock(&store_->mutex_);
    store_->SubReserved(owner_, size_);
  }
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    OVPRESS_RETURN_IF_ERROR(gathered_.WriteAt(offset, bytes));
    written_ += bytes.size();
    return absl::OkStatus();
  }
  absl::StatusOr<Published> Publish() override {
    if (written_ != size_) {
      return absl::InternalError(absl::StrCat("output has ", written_.load(),
                                              " of ", size_, " bytes"));
    }
    OVPRESS_RETURN_IF_ERROR(gathered_.Flush());
    // The disk and a core at the same time.
    absl::Status synced;
    std::thread sync([&] { synced = SyncFile(file_.fd(), path_); });
    Sha256Hasher hasher;
    const absl::Status hashed = HashPrefix(file_.fd(), size_, path_, &hasher);
    sync.join();
    OVPRESS_RETURN_IF_ERROR(synced);
    OVPRESS_RETURN_IF_ERROR(hashed);
    Published published;
    published.ref = {.sha256 = hasher.FinishHex(), .size_bytes = size_};
    OVPRESS_ASSIGN_OR_RETURN(
        const uint64_t generation,
        store_->Publish(path_, published.ref, owner_, /*pin=*/true));
    published_ = true;
    published.pin = std::make_unique<PinImpl>(
        store_, std::vector<Pinned>{{published.ref, generation}});
    return published;
  }

 private:
  LocalBlobStore* const store_;
  const uint64_t size_;
  const std::string path_;
  const std::string owner_;
  ReservedFile file_;
  GatheringSink gathered_;
  std::atomic<uint64_t> written_{0};
  bool published_ = false;
};

class LocalBlobStore::Upload final : public BlobUpload {
 public:
  Upload(LocalBlobStore* store, std::shared_ptr<Staged> staged,
         uint64_t generation, Fd data, Fd record, uint64_t offset,
         Sha256Hasher hasher)
      : store_(store),
        staged_(std::move(staged)),
        generation_(generation),
        data_(std::move(data)),
        record_(std::move(record)),
        offset_(offset),
        writeback_offset_(offset),
        hasher_(std::move(hasher)) {}
  ~Upload() override {
    MutexLock lock(&staged_->io);
    if (staged_->generation != generation_ || staged_->gone) return;
    SyncLocked().IgnoreError();
    staged_->writer_alive = false;
  }
  uint64_t next_offset() const override { return offset_; }

  absl::Status Append(uint64_t offset,
                      std::span<const std::byte> bytes) override {
    const auto kept =
        std::make_shared<std::vector<std::byte>>(bytes.begin(), bytes.end());
    return AppendShared(offset, *kept, kept);
  }

  absl::Status AppendShared(
      uint64_t offset, std::span<const std::byte> bytes,
      const std::shared_ptr<const void>& keep_alive) override {
    MutexLock lock(&staged_->io);
    OVPRESS_RETURN_IF_ERROR(CheckMine());
    if (offset != offset_) {
      return absl::OutOfRangeError(
          absl::StrCat("write_offset ", offset, " must be ", offset_,
                       ", where the bytes so far end; ask QueryWriteStatus"));
    }
    const uint64_t size = staged_->ref.size_bytes;
    if (bytes.size() > size - offset_) {
      return absl::InvalidArgumentError(
          absl::StrCat("bytes up to ", offset_ + bytes.size(),
                       " go beyond the size in the resource name, ", size));
    }
    staged_->last_use = store_->Now();
    const std::string path = staged_->folder + "/data";
    OVPRESS_RETURN_IF_ERROR(WriteAll(data_.get(), offset_, bytes, path));
    hasher_.Update(bytes, keep_alive);
    offset_ += bytes.size();
    store_->staged_written_ += bytes.size();
    staged_->written = offset_;
    if (offset_ - writeback_offset_ >= kWritebackBytes) {
      StartWriteback(data_.get(), writeback_offset_,
                     offset_ - writeback_offset_);
      writeback_offset_ = offset_;
    }
    if (offset_ - staged_->durable >=
        store_->options_.limits.sync_interval_bytes) {
      return SyncLocked();
    }
    return absl::OkStatus();
  }

  absl::Status Finish() override {
    absl::Status status;
    {
      MutexLock lock(&staged_->io);
      OVPRESS_RETURN_IF_ERROR(CheckMine());
      if (offset_ != staged_->ref.size_bytes) {
        return absl::InvalidArgumentError(absl::StrCat(
            "finish_write at ", offset_, " bytes, the resource name says ",
            staged_->ref.size_bytes, "; the upload stays and can go on"));
      }
      OVPRESS_RETURN_IF_ERROR(SyncLocked());
      OVPRESS_RETURN_IF_ERROR(store_->Step("upload_synced"));
      const std::string digest = hasher_.FinishHex();
      staged_->gone = true;
      if (digest != staged_->ref.sha256) {
        status = absl::InvalidArgumentError(absl::StrCat(
            "the ", offset_, " bytes received have SHA-256 ", digest,
            ", the resource name says ", staged_->ref.sha256,
            "; the upload was dropped, sending the same again cannot help"));
      } else {
        status = store_
                     ->Publish(staged_->folder + "/data", staged_->ref,
                               staged_->owner, /*pin=*/false)
                     .status();
        if (!status.ok() && LookAt(staged_->folder + "/data").has_value()) {
          // The bytes are durable and still here: to be resumed, not sent
          // again.
          staged_->gone = false;
          ++staged_->generation;
          staged_->writer_alive = false;
          return status;
        }
      }
    }
    store_->Forget(staged_);
    return status;
  }

 private:
  absl::Status CheckMine() ABSL_EXCLUSIVE_LOCKS_REQUIRED(staged_->io) {
    if (staged_->gone || staged_->generation != generation_) {
      return absl::AbortedError("another writer took over this upload");
    }
    return absl::OkStatus();
  }
  absl::Status SyncLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(staged_->io) {
    if (offset_ == staged_->durable) return absl::OkStatus();
    OVPRESS_RETURN_IF_ERROR(SyncFile(data_.get(), staged_->folder + "/data"));
    // Fixed width: one write over the old text, within one sector.
    const std::string text = absl::StrCat(absl::Dec(offset_, absl::kZeroPad20));
    OVPRESS_RETURN_IF_ERROR(
        WriteAll(record_.get(), 0, AsBytes(text), staged_->folder + "/record"));
    OVPRESS_RETURN_IF_ERROR(
        SyncFile(record_.get(), staged_->folder + "/record"));
    staged_->durable = offset_;
    return absl::OkStatus();
  }

  LocalBlobStore* const store_;
  const std::shared_ptr<Staged> staged_;
  const uint64_t generation_;
  const Fd data_;
  const Fd record_;
  uint64_t offset_;
  uint64_t writeback_offset_;  // below it the disk was told to begin
  HashThread hasher_;
};

// --- start-up ---

absl::Status LocalBlobStore::Recover(RecoveryReport* report) {
  OVPRESS_RETURN_IF_ERROR(MakeDirectory(root_));
  OVPRESS_ASSIGN_OR_RETURN(lock_, Open(Path("LOCK"), O_RDWR | O_CREAT));
  if (::flock(lock_.get(), LOCK_EX | LOCK_NB) != 0) {
    return absl::FailedPreconditionError(
        absl::StrCat("another process works on ", root_));
  }
  RemoveTree(Path("tmp"));
  for (const char* name : {"blobs", "owners", "uploads", "tmp", "corrupt"}) {
    OVPRESS_RETURN_IF_ERROR(MakeDirectory(Path(name)));
  }
  MutexLock lock(&mutex_);
  std::error_code error;
  for (const auto& entry : fs::directory_iterator(Path("corrupt"), error)) {
    struct stat info {};
    if (::lstat(entry.path().c_str(), &info) != 0 || !S_ISREG(info.st_mode)) {
      continue;  // somebody else's; DropOldestDamaged() deletes files only
    }
    AddDamaged(entry.path().filename().string(),
               static_cast<uint64_t>(info.st_size),
               absl::FromTimeT(info.st_mtime));
  }
  if (error) return ErrnoToStatus(error.value(), "reading " + Path("corrupt"));
  for (const auto& entry :
       fs::recursive_directory_iterator(Path("blobs"), error)) {
    if (!entry.is_regular_file()) continue;
    const std::string path = entry.path().string();
    const auto ref = RefOfFileName(entry.path().filename().string());
    struct stat info {};
    if (!ref.has_value() || ::stat(path.c_str(), &info) != 0) continue;
    if (static_cast<uint64_t>(info.st_size) != ref->size_bytes) {
      ++report->corrupt_blobs;
      if (options_.observer) options_.observer->OnBlobCorrupt(*ref);
      SetAside(*ref);
      continue;
    }
    BlobInfo& blob = blobs_[*ref];
    blob.generation = next_generation_++;
    blob.last_use = absl::FromTimeT(info.st_mtime);
  }
  if (error) return ErrnoToStatus(error.value(), "reading " + Path("blobs"));
  for (const auto& owner : fs::directory_iterator(Path("owners"), error)) {
    for (const auto& marker : fs::directory_iterator(owner.path(), error)) {
      const auto ref = RefOfFileName(marker.path().filename().string());
      const auto it = ref ? blobs_.find(*ref) : blobs_.end();
      if (it == blobs_.end()) {
        ::unlink(marker.path().c_str());
        ++report->orphans_removed;
      } else {
        it->second.owners.insert(owner.path().filename().string());
      }
    }
  }
  if (error) return ErrnoToStatus(error.value(), "reading " + Path("owners"));
  for (auto it = blobs_.begin(); it != blobs_.end();) {
    if (it->second.owners.empty()) {
      ::unlink(BlobPath(it->first).c_str());
      ++report->orphans_removed;
      it = blobs_.erase(it);
      continue;
    }
    blob_bytes_ += it->first.size_bytes;
    ++it;
  }
  report->blobs = blobs_.size();
  report->blob_bytes = blob_bytes_;
  for (const auto& entry : fs::directory_iterator(Path("uploads"), error)) {
    auto staged = std::make_shared<Staged>();
    staged->key = entry.path().filename().string();
    staged->folder = entry.path().string();
    const auto record = ReadSmallFile(staged->folder + "/record", 4096);
    const std::vector<std::string> lines =
        record.ok() ? std::vector<std::string>(absl::StrSplit(*record, '\n'))
                    : std::vector<std::string>();
    struct stat info {};
    uint64_t durable = 0;
    if (lines.size() < 3 || !absl::SimpleAtoi(lines[0], &durable) ||
        ::stat((staged->folder + "/data").c_str(), &info) != 0 ||
        static_cast<uint64_t>(info.st_size) < durable) {
      RemoveTree(staged->folder);
      ++report->orphans_removed;
      continue;
    }
    staged->owner = lines[1];
    const auto ref = ParseBlobName(lines[2]);
    if (!ref.ok()) {
      RemoveTree(staged->folder);
      continue;
    }
    staged->ref = *ref;
    if (OwnerHas(staged->owner, *ref)) {  // published, then came the crash
      RemoveTree(staged->folder);
      ++report->orphans_removed;
      continue;
    }
    {
      MutexLock io(&staged->io);
      staged->durable = durable;
      staged->last_use = absl::FromTimeT(info.st_mtime);
    }
    staged->written = durable;
    staged_written_ += durable;
    staged_bytes_ += ref->size_bytes;
    staged_[staged->key] = staged;
    ++report->uploads_resumable;
  }
  return absl::OkStatus();
}

// --- space ---

uint64_t LocalBlobStore::LimitBytes() {
  uint64_t limit = options_.limits.max_store_bytes != 0
                       ? options_.limits.max_store_bytes
                       : std::numeric_limits<uint64_t>::max();
  struct statvfs info {};
  if (::statvfs(root_.c_str(), &info) == 0) {
    const uint64_t free = static_cast<uint64_t>(info.f_bavail) * info.f_frsize;
    const uint64_t on_disk =
        blob_bytes_ + staged_written_ + reserved_written_ + damaged_bytes_;
    const uint64_t spare = free > options_.limits.min_free_bytes
                               ? free - options_.limits.min_free_bytes
                               : 0;
    limit = std::min(limit, on_disk + spare);
  }
  return limit;
}

uint64_t LocalBlobStore::OwnerBytes(const std::string& owner) {
  uint64_t bytes = 0;
  for (const auto& [ref, info] : blobs_) {
    if (info.owners.contains(owner)) bytes += ref.size_bytes;
  }
  for (const auto& [key, staged] : staged_) {
    if (staged->owner == owner) bytes += staged->ref.size_bytes;
  }
  const auto reserved = reserved_by_owner_.find(owner);
  return reserved == reserved_by_owner_.end() ? bytes
                                              : bytes + reserved->second;
}

void LocalBlobStore::AddReserved(const std::string& owner, uint64_t bytes) {
  if (bytes == 0) return;
  reserved_bytes_ += bytes;
  reserved_by_owner_[owner] += bytes;
}

void LocalBlobStore::SubReserved(const std::string& owner, uint64_t bytes) {
  if (bytes == 0) return;
  reserved_bytes_ -= bytes;
  const auto it = reserved_by_owner_.find(owner);
  it->second -= bytes;
  if (it->second == 0) reserved_by_owner_.erase(it);
}

bool LocalBlobStore::EvictOne(absl::Time now) {
  auto oldest = blobs_.end();
  for (auto it = blobs_.begin(); it != blobs_.end(); ++it) {
    if (!MayEvict(it->second, now)) continue;
    if (oldest == blobs_.end() ||
        it->second.last_use < oldest->second.last_use) {
      oldest = it;
    }
  }
  if (oldest == blobs_.end()) return false;
  const BlobRef ref = oldest->first;
  evicted_bytes_ += ref.size_bytes;
  if (options_.observer) options_.observer->OnBlobEvicted(ref.size_bytes);
  Drop(ref);
  return true;
}

bool LocalBlobStore::EvictOneOf(const std::string& owner, absl::Time now) {
  auto oldest = blobs_.end();
  for (auto it = blobs_.begin(); it != blobs_.end(); ++it) {
    if (!it->second.owners.contains(owner) || !MayEvict(it->second, now)) {
      continue;
    }
    if (oldest == blobs_.end() ||
        it->second.last_use < oldest->second.last_use) {
      oldest = it;
    }
  }
  if (oldest == blobs_.end()) return false;
  const BlobRef ref = oldest->first;
  if (oldest->second.owners.size() == 1) {
    evicted_bytes_ += ref.size_bytes;
    if (options_.observer) options_.observer->OnBlobEvicted(ref.size_bytes);
  }
  TakeFrom(owner, ref);
  return true;
}

absl::Status LocalBlobStore::MakeOwnRoom(absl::string_view owner_name,
                                         const std::string& owner,
                                         uint64_t size_bytes) {
  const uint64_t most =
      QuotaOf(owner_name).max_bytes.value_or(options_.limits.max_owner_bytes);
  if (most == 0) return absl::OkStatus();
  uint64_t owned = OwnerBytes(owner);
  while (size_bytes > most || owned > most - size_bytes) {
    if (size_bytes > most || !EvictOneOf(owner, Now())) {
      return LimitError(
          "this client's share of the store is full",
          {.limit = "max_owner_bytes",
           .subject = absl::StrCat("client:", owner_name),
           .limit_value = most,
           .requested = owned + size_bytes,
           .retry_after = size_bytes <= most ? absl::Minutes(1)
                                             : absl::InfiniteDuration()});
    }
    owned = OwnerBytes(owner);
  }
  return absl::OkStatus();
}

absl::Status LocalBlobStore::MakeRoom(absl::string_view owner_name,
                                      const std::string& owner,
                                      uint64_t size_bytes) {
  OVPRESS_RETURN_IF_ERROR(MakeOwnRoom(owner_name, owner, size_bytes));
  LimitDetails details{.requested = size_bytes};
  uint64_t limit = LimitBytes();
  while (UsedBytes() + size_bytes > limit) {
    if (!DropOldestDamaged("its room is needed") && !EvictOne(Now())) {
      details.limit = "max_store_bytes";
      details.subject = "server";
      details.limit_value = limit;
      details.requested = UsedBytes() + size_bytes;
      if (size_bytes <= limit) details.retry_after = absl::Minutes(1);
      return LimitError("the store is full", details);
    }
    limit = LimitBytes();
  }
  return absl::OkStatus();
}

// --- blobs ---

bool LocalBlobStore::OwnerHas(const std::string& owner, const BlobRef& ref) {
  const auto it = blobs_.find(ref);
  return it != blobs_.end() && it->second.owners.contains(owner);
}

void LocalBlobStore::Use(const BlobRef& ref, BlobInfo& info) {
  info.last_use = Now();
  const std::string path = BlobPath(ref);
  if (info.verified != LookAt(path)) info.verified.reset();
  const timespec time = absl::ToTimespec(info.last_use);
  const timespec times[2] = {time, time};
  ::utimensat(AT_FDCWD, path.c_str(), times, 0);
  // Setting the time is a change, too, but ours.
  if (info.verified.has_value()) info.verified = LookAt(path);
}

void LocalBlobStore::Drop(const BlobRef& ref) {
  const auto it = blobs_.find(ref);
  if (it == blobs_.end()) return;
  // Markers first: a crash between leaves a blob without owner.
  for (const std::string& owner : it->second.owners) {
    ::unlink((MarkerFolder(owner) + "/" + FileName(ref)).c_str());
  }
  ::unlink(BlobPath(ref).c_str());
  blob_bytes_ -= ref.size_bytes;
  blobs_.erase(it);
}

void LocalBlobStore::Unpin(const std::vector<Pinned>& pinned) {
  MutexLock lock(&mutex_);
  for (const Pinned& pin : pinned) {
    const auto it = blobs_.find(pin.ref);
    if (it == blobs_.end() || it->second.generation != pin.generation) continue;
    if (--it->second.pins == 0 && it->second.owners.empty()) Drop(pin.ref);
  }
}

bool LocalBlobStore::BeginPublication(const BlobRef& ref) {
  MutexLock lock(&mutex_);
  AwaitPublication(ref);
  publishing_.insert(ref);
  const auto present = blobs_.find(ref);
  if (present == blobs_.end()) return false;
  // Nobody drops it, and with it the name that is about to be replaced.
  ++present->second.pins;
  return present->second.verified.has_value() &&
         present->second.verified == LookAt(BlobPath(ref));
}

absl::Status LocalBlobStore::NameOnDisk(const std::string& path,
                                        const BlobRef& ref,
                                        const std::string& owner, bool keep) {
  if (!keep) {
    const std::string target = BlobPath(ref);
    const std::string folder = target.substr(0, target.rfind('/'));
    OVPRESS_RETURN_IF_ERROR(MakeDirectory(folder));
    OVPRESS_RETURN_IF_ERROR(SyncDirectory(Path("blobs")));
    OVPRESS_RETURN_IF_ERROR(AddName(path, TemporaryPath(), target));
    OVPRESS_RETURN_IF_ERROR(Step("blob_renamed"));
    OVPRESS_RETURN_IF_ERROR(SyncDirectory(folder));
    OVPRESS_RETURN_IF_ERROR(Step("blob_synced"));
  }
  OVPRESS_RETURN_IF_ERROR(MakeDirectory(MarkerFolder(owner)));
  OVPRESS_RETURN_IF_ERROR(SyncDirectory(Path("owners")));
  OVPRESS_RETURN_IF_ERROR(
      Open(MarkerFolder(owner) + "/" + FileName(ref), O_WRONLY | O_CREAT)
          .status());
  OVPRESS_RETURN_IF_ERROR(Step("marker_made"));
  OVPRESS_RETURN_IF_ERROR(SyncDirectory(MarkerFolder(owner)));
  OVPRESS_RETURN_IF_ERROR(Step("marker_synced"));
  // Before the file's look is taken: losing a name changes it.
  ::unlink(path.c_str());
  return absl::OkStatus();
}

absl::StatusOr<uint64_t> LocalBlobStore::Publish(const std::string& path,
                                                 const BlobRef& ref,
                                                 const std::string& owner,
                                                 bool pin) {
  // Bytes that are known to be right replace those that are not.
  const bool keep = BeginPublication(ref);
  const absl::Status status = NameOnDisk(path, ref, owner, keep);
  MutexLock lock(&mutex_);
  publishing_.erase(ref);
  published_.SignalAll();
  const auto present = blobs_.find(ref);
  if (present != blobs_.end()) --present->second.pins;  // BeginPublication()'s
  if (!status.ok()) {
    if (present != blobs_.end() && present->second.pins == 0 &&
        present->second.owners.empty()) {
      Drop(ref);
    }
    return status;
  }
  const auto [at, is_new] = blobs_.try_emplace(ref);
  BlobInfo& info = at->second;
  if (is_new) {
    blob_bytes_ += ref.size_bytes;
    info.generation = next_generation_++;
  }
  info.owners.insert(owner);
  if (pin) ++info.pins;
  if (!keep) info.verified = LookAt(BlobPath(ref));
  Use(ref, info);
  if (options_.observer) options_.observer->OnBlobPublished(ref.size_bytes);
  return info.generation;
}

absl::StatusOr<std::vector<BlobRef>> LocalBlobStore::FindMissing(
    absl::string_view owner, std::span<const BlobRef> refs) {
  for (const BlobRef& ref : refs) {
    OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(ref));
  }
  const std::string hash = Sha256Hex(owner);
  std::vector<BlobRef> missing;
  std::set<BlobRef> seen;
  MutexLock lock(&mutex_);
  for (const BlobRef& ref : refs) {
    if (!seen.insert(ref).second || IsEmptyBlob(ref)) continue;
    if (OwnerHas(hash, ref)) {
      Use(ref, blobs_[ref]);
    } else {
      missing.push_back(ref);
    }
  }
  return missing;
}

absl::StatusOr<std::unique_ptr<BlobPin>> LocalBlobStore::Pin(
    absl::string_view owner, std::span<const BlobRef> refs) {
  OVPRESS_ASSIGN_OR_RETURN(const std::vector<BlobRef> missing,
                           FindMissing(owner, refs));
  if (!missing.empty()) return MissingBlobsError(missing);
  const std::string hash = Sha256Hex(owner);
  std::vector<Pinned> pinned;
  MutexLock lock(&mutex_);
  for (const BlobRef& ref : refs) {
    if (IsEmptyBlob(ref)) continue;
    if (!OwnerHas(hash, ref)) {  // evicted since
      for (const Pinned& taken : pinned) --blobs_[taken.ref].pins;
      return MissingBlobsError({ref});
    }
    BlobInfo& info = blobs_[ref];
    ++info.pins;
    pinned.push_back({ref, info.generation});
  }
  return std::make_unique<PinImpl>(this, std::move(pinned));
}

absl::StatusOr<std::unique_ptr<ByteSource>> LocalBlobStore::OpenRead(
    absl::string_view owner, const BlobRef& ref) {
  if (IsEmptyBlob(ref)) return MakeMemorySource({});
  absl::StatusOr<std::unique_ptr<BlobPin>> pin =
      Pin(owner, std::span<const BlobRef>(&ref, 1));
  if (absl::IsFailedPrecondition(pin.status())) {
    return absl::NotFoundError(absl::StrCat("there is no ", BlobName(ref)));
  }
  OVPRESS_RETURN_IF_ERROR(pin.status());
  return OpenPinned(ref, *std::move(pin));
}

absl::StatusOr<std::unique_ptr<ByteSource>> LocalBlobStore::OpenReadAny(
    const BlobRef& ref) {
  OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(ref));
  if (IsEmptyBlob(ref)) return MakeMemorySource({});
  std::vector<Pinned> pinned;
  {
    MutexLock lock(&mutex_);
    const auto it = blobs_.find(ref);
    if (it == blobs_.end()) {
      return absl::NotFoundError(absl::StrCat("there is no ", BlobName(ref)));
    }
    ++it->second.pins;
    pinned.push_back({ref, it->second.generation});
  }
  return OpenPinned(ref, std::make_unique<PinImpl>(this, std::move(pinned)));
}

absl::StatusOr<std::unique_ptr<ByteSource>> LocalBlobStore::OpenPinned(
    const BlobRef& ref, std::unique_ptr<BlobPin> pin) {
  OVPRESS_RETURN_IF_ERROR(EnsureVerified(ref));
  const std::string path = BlobPath(ref);
  OVPRESS_ASSIGN_OR_RETURN(Fd fd, Open(path, O_RDONLY));
  return std::make_unique<Source>(std::move(fd), ref.size_bytes, path,
                                  std::move(pin));
}

absl::Status LocalBlobStore::Verify(const BlobRef& ref) {
  if (IsEmptyBlob(ref)) return absl::OkStatus();
  const std::string path = BlobPath(ref);
  const absl::StatusOr<Fd> fd = Open(path, O_RDONLY);
  if (absl::IsNotFound(fd.status())) return Spoil(ref, 0, "is gone");
  OVPRESS_RETURN_IF_ERROR(fd.status());
  struct stat before {};
  if (::fstat(fd->get(), &before) != 0) {
    return ErrnoToStatus(errno, absl::StrCat("examining ", path));
  }
  if (static_cast<uint64_t>(before.st_size) != ref.size_bytes) {
    return Spoil(ref, before.st_ino, "does not have its size any more");
  }
  Sha256Hasher hasher;
  const absl::Status read =
      HashPrefix(fd->get(), ref.size_bytes, path, &hasher);
  // A disk that cannot read now may do so later: nothing is known of the bytes.
  if (!read.ok() && !absl::IsDataLoss(read)) return read;
  if (!read.ok() || hasher.FinishHex() != ref.sha256) {
    return Spoil(ref, before.st_ino, "does not have its digest any more");
  }
  MutexLock lock(&mutex_);
  const auto it = blobs_.find(ref);
  if (it != blobs_.end()) {
    // Times that others set in between only cost another pass.
    it->second.verified = LookOf(before);
  }
  return absl::OkStatus();
}

absl::Status LocalBlobStore::EnsureVerified(const BlobRef& ref) {
  {
    MutexLock lock(&mutex_);
    const auto it = blobs_.find(ref);
    if (it != blobs_.end() && it->second.verified.has_value() &&
        it->second.verified == LookAt(BlobPath(ref))) {
      return absl::OkStatus();
    }
  }
  return Verify(ref);
}

absl::Status LocalBlobStore::Spoil(const BlobRef& ref, ino_t examined,
                                   absl::string_view what) {
  MutexLock lock(&mutex_);
  AwaitPublication(ref);
  const std::optional<FileLook> look = LookAt(BlobPath(ref));
  const auto it = blobs_.find(ref);
  if (it != blobs_.end() && look.has_value() && look->inode != examined &&
      it->second.verified == look) {
    return absl::OkStatus();
  }
  if (options_.observer) options_.observer->OnBlobCorrupt(ref);
  if (look.has_value()) SetAside(ref);
  Drop(ref);
  return absl::DataLossError(
      absl::StrCat("stored ", BlobName(ref), " ", what,
                   "; it was set aside, upload it again or run its job again"));
}

void LocalBlobStore::AddDamaged(const std::string& name, uint64_t size_bytes,
                                absl::Time since) {
  damaged_[{since, name}] = size_bytes;
  damaged_bytes_ += size_bytes;
}

void LocalBlobStore::SetAside(const BlobRef& ref) {
  const std::string name = FileName(ref);
  const std::string path = Path("corrupt/" + name);
  // The file of the same blob that was damaged before is replaced.
  const auto earlier = std::find_if(
      damaged_.begin(), damaged_.end(),
      [&](const auto& entry) { return entry.first.second == name; });
  if (earlier != damaged_.end()) {
    damaged_bytes_ -= earlier->second;
    damaged_.erase(earlier);
  }
  struct stat info {};
  const absl::Status moved =
      ::stat(BlobPath(ref).c_str(), &info) != 0
          ? ErrnoToStatus(errno, absl::StrCat("examining ", BlobPath(ref)))
      : static_cast<uint64_t>(info.st_size) > options_.limits.max_damaged_bytes
          ? absl::ResourceExhaustedError("larger than max_damaged_bytes")
          : Rename(BlobPath(ref), path);
  if (!moved.ok()) {
    // It must not be taken for a blob again, so it cannot stay either.
    ::unlink(BlobPath(ref).c_str());
    Log(Observer::Severity::kWarning,
        absl::StrCat("damaged ", BlobName(ref),
                     " was deleted, not set aside: ", moved.message()));
    return;
  }
  const absl::Time now = Now();
  const timespec time = absl::ToTimespec(now);
  const timespec times[2] = {time, time};
  ::utimensat(AT_FDCWD, path.c_str(), times, 0);
  AddDamaged(name, static_cast<uint64_t>(info.st_size), now);
  Log(Observer::Severity::kWarning,
      absl::StrCat("damaged ", BlobName(ref), " was set aside as ", path, "; ",
                   damaged_.size(), " files of ", damaged_bytes_,
                   " bytes are there"));
  while (TrimDamaged(now)) {
  }
}

bool LocalBlobStore::DropOldestDamaged(absl::string_view why) {
  if (damaged_.empty()) return false;
  const auto oldest = damaged_.begin();
  const std::string path = Path("corrupt/" + oldest->first.second);
  // What cannot be deleted is not counted any more: the next start sees it.
  const bool deleted = ::unlink(path.c_str()) == 0 || errno == ENOENT;
  Log(deleted ? Observer::Severity::kInfo : Observer::Severity::kWarning,
      absl::StrCat(path,
                   deleted ? " was deleted: " : " cannot be deleted: ", why));
  damaged_bytes_ -= oldest->second;
  damaged_.erase(oldest);
  return true;
}

bool LocalBlobStore::TrimDamaged(absl::Time now) {
  const StoreLimits& limits = options_.limits;
  if (damaged_bytes_ > limits.max_damaged_bytes) {
    return DropOldestDamaged("damaged blobs are more than max_damaged_bytes");
  }
  return !damaged_.empty() &&
         now - damaged_.begin()->first.first >= limits.damaged_ttl &&
         DropOldestDamaged("it was kept for damaged_ttl");
}

absl::Status LocalBlobStore::Release(absl::string_view owner,
                                     const BlobRef& ref) {
  const std::string hash = Sha256Hex(owner);
  MutexLock lock(&mutex_);
  AwaitPublication(ref);
  if (OwnerHas(hash, ref)) TakeFrom(hash, ref);
  return absl::OkStatus();
}

void LocalBlobStore::TakeFrom(const std::string& owner, const BlobRef& ref) {
  ::unlink((MarkerFolder(owner) + "/" + FileName(ref)).c_str());
  BlobInfo& info = blobs_[ref];
  info.owners.erase(owner);
  if (info.owners.empty() && info.pins == 0) Drop(ref);
}

// --- uploads ---

absl::StatusOr<BlobStore::OpenedUpload> LocalBlobStore::OpenUpload(
    absl::string_view owner, const UploadName& name) {
  OVPRESS_RETURN_IF_ERROR(ValidateUploadUuid(name.uuid));
  OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(name.ref));
  const StoreLimits& limits = options_.limits;
  if (name.ref.size_bytes > limits.max_blob_bytes) {
    return LimitError("the blob is too large",
                      {.limit = "max_blob_bytes",
                       .subject = "server",
                       .limit_value = limits.max_blob_bytes,
                       .requested = name.ref.size_bytes});
  }
  const std::string hash = Sha256Hex(owner);
  const std::string key = absl::StrCat(hash, "-", name.uuid);
  std::shared_ptr<Staged> staged;
  bool is_new = false;
  {
    MutexLock lock(&mutex_);
    if (IsEmptyBlob(name.ref)) return OpenedUpload{.already_exists = true};
    const auto it = staged_.find(key);
    if (it != staged_.end() && it->second->ref != name.ref) {
      return absl::AlreadyExistsError(
          absl::StrCat("upload ", name.uuid, " is already in use for ",
                       BlobName(it->second->ref), "; choose another uuid"));
    }
    if (OwnerHas(hash, name.ref)) {
      Use(name.ref, blobs_[name.ref]);
      return OpenedUpload{.already_exists = true};
    }
    if (it != staged_.end()) {
      staged = it->second;
    } else {
      int of_owner = 0;
      for (const auto& [other, upload] : staged_) {
        of_owner += upload->owner == hash;
      }
      const int own_most =
          QuotaOf(owner).max_uploads.value_or(limits.max_owner_uploads);
      const bool owner_full = of_owner >= own_most;
      if (owner_full ||
          staged_.size() >= static_cast<size_t>(limits.max_uploads)) {
        return LimitError(
            "too many unfinished uploads",
            {.limit = owner_full ? "max_owner_uploads" : "max_uploads",
             .subject = owner_full ? absl::StrCat("client:", owner) : "server",
             .limit_value = static_cast<uint64_t>(
                 owner_full ? own_most : limits.max_uploads),
             .retry_after = absl::Seconds(30)});
      }
      OVPRESS_RETURN_IF_ERROR(MakeRoom(owner, hash, name.ref.size_bytes));
      staged = std::make_shared<Staged>();
      staged->key = key;
      staged->owner = hash;
      staged->ref = name.ref;
      staged->folder = Path("uploads/" + key);
      staged_[key] = staged;
      staged_bytes_ += name.ref.size_bytes;
      is_new = true;
    }
  }
  const auto open = [&]() -> absl::StatusOr<OpenedUpload> {
    MutexLock io(&staged->io);
    const absl::Time now = Now();
    if (staged->gone) return absl::AbortedError("the upload just ended");
    if (staged->writer_alive &&
        now - staged->last_use < limits.writer_takeover) {
      return WithRetryAfter(
          absl::AbortedError(absl::StrCat(
              "another writer is at upload ", name.uuid,
              "; it gives way after ",
              absl::FormatDuration(limits.writer_takeover), " of silence")),
          limits.writer_takeover);
    }
    if (is_new) {
      OVPRESS_RETURN_IF_ERROR(MakeDirectory(staged->folder));
      const std::string record =
          absl::StrCat(absl::Dec(0, absl::kZeroPad20), "\n", hash, "\n",
                       BlobName(name.ref), "\n");
      OVPRESS_ASSIGN_OR_RETURN(
          const Fd made, Open(staged->folder + "/record", O_WRONLY | O_CREAT));
      OVPRESS_RETURN_IF_ERROR(
          WriteAll(made.get(), 0, AsBytes(record), "record"));
      OVPRESS_RETURN_IF_ERROR(SyncFile(made.get(), "record"));
    }
    const std::string path = staged->folder + "/data";
    OVPRESS_ASSIGN_OR_RETURN(Fd data, Open(path, O_RDWR | O_CREAT));
    OVPRESS_ASSIGN_OR_RETURN(Fd record,
                             Open(staged->folder + "/record", O_WRONLY));
    if (is_new) {
      OVPRESS_RETURN_IF_ERROR(SyncDirectory(staged->folder));
      OVPRESS_RETURN_IF_ERROR(SyncDirectory(Path("uploads")));
    }
    // What a writer that was taken over left beyond the durable part goes.
    if (::ftruncate(data.get(), static_cast<off_t>(staged->durable)) != 0) {
      return ErrnoToStatus(errno, absl::StrCat("truncating ", path));
    }
    staged_written_ -= staged->written - staged->durable;
    staged->written = staged->durable;
    Sha256Hasher hasher;
    OVPRESS_RETURN_IF_ERROR(
        HashPrefix(data.get(), staged->durable, path, &hasher));
    if (staged->durable > 0 && options_.observer) {
      options_.observer->OnUploadResumed();
    }
    staged->writer_alive = true;
    staged->last_use = now;
    OpenedUpload opened;
    opened.writer = std::make_unique<Upload>(
        this, staged, ++staged->generation, std::move(data), std::move(record),
        staged->durable, std::move(hasher));
    return opened;
  };
  absl::StatusOr<OpenedUpload> opened = open();
  if (!opened.ok() && is_new) Forget(staged);
  return opened;
}

void LocalBlobStore::Forget(const std::shared_ptr<Staged>& staged) {
  RemoveTree(staged->folder);
  MutexLock lock(&mutex_);
  if (staged_.erase(staged->key) == 0) return;
  staged_bytes_ -= staged->ref.size_bytes;
  staged_written_ -= staged->written;
}

absl::StatusOr<UploadStatus> LocalBlobStore::QueryUpload(
    absl::string_view owner, const UploadName& name) {
  OVPRESS_RETURN_IF_ERROR(ValidateUploadUuid(name.uuid));
  OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(name.ref));
  const std::string hash = Sha256Hex(owner);
  std::shared_ptr<Staged> staged;
  {
    MutexLock lock(&mutex_);
    if (IsEmptyBlob(name.ref) || OwnerHas(hash, name.ref)) {
      return UploadStatus{.committed_bytes = name.ref.size_bytes,
                          .complete = true};
    }
    const auto it = staged_.find(absl::StrCat(hash, "-", name.uuid));
    if (it == staged_.end() || it->second->ref != name.ref) {
      return absl::NotFoundError(
          absl::StrCat("there is no upload ", FormatUploadName(name)));
    }
    staged = it->second;
  }
  MutexLock io(&staged->io);
  return UploadStatus{.committed_bytes = staged->durable};
}

// --- outputs ---

absl::StatusOr<std::unique_ptr<SpaceReservation>> LocalBlobStore::Reserve(
    absl::string_view owner, uint64_t size_bytes) {
  std::string hash = Sha256Hex(owner);
  MutexLock lock(&mutex_);
  OVPRESS_RETURN_IF_ERROR(MakeRoom(owner, hash, size_bytes));
  AddReserved(hash, size_bytes);
  return std::make_unique<ReservationImpl>(this, std::move(hash), size_bytes);
}

absl::StatusOr<std::unique_ptr<BlobWriter>> LocalBlobStore::CreateOutput(
    absl::string_view owner, uint64_t size_bytes,
    SpaceReservation* reservation) {
  const std::string hash = Sha256Hex(owner);
  const std::string path = TemporaryPath();
  OVPRESS_ASSIGN_OR_RETURN(Fd fd, Open(path, O_RDWR | O_CREAT | O_EXCL));
  {
    MutexLock lock(&mutex_);
    uint64_t drawn = 0;
    auto* held = static_cast<ReservationImpl*>(reservation);
    if (held != nullptr && held->owner_ == hash) {
      drawn = std::min<uint64_t>(size_bytes, held->left_);
      held->left_ -= drawn;
    }
    const absl::Status room = drawn == size_bytes
                                  ? absl::OkStatus()
                                  : MakeRoom(owner, hash, size_bytes - drawn);
    if (!room.ok()) {
      if (drawn > 0) static_cast<ReservationImpl*>(reservation)->left_ += drawn;
      ::unlink(path.c_str());
      return room;
    }
    AddReserved(hash, size_bytes - drawn);
  }
  auto writer =
      std::make_unique<Writer>(this, std::move(fd), size_bytes, path, hash);
  return writer;
}

absl::StatusOr<std::unique_ptr<ScratchBlob>> LocalBlobStore::CreateScratch(
    absl::string_view owner, uint64_t size_bytes) {
  const std::string path = TemporaryPath();
  OVPRESS_ASSIGN_OR_RETURN(Fd fd, Open(path, O_RDWR | O_CREAT | O_EXCL));
  ::unlink(path.c_str());  // ends with the descriptor, whatever happens
  std::string hash = Sha256Hex(owner);
  {
    MutexLock lock(&mutex_);
    OVPRESS_RETURN_IF_ERROR(MakeRoom(owner, hash, size_bytes));
    AddReserved(hash, size_bytes);
  }
  return std::make_unique<Scratch>(this, std::move(fd), size_bytes, path,
                                   std::move(hash));
}

// --- upkeep ---

void LocalBlobStore::Sweep() {
  const absl::Time now = Now();
  std::vector<std::shared_ptr<Staged>> all;
  {
    MutexLock lock(&mutex_);
    for (const auto& [key, staged] : staged_) all.push_back(staged);
  }
  for (const auto& staged : all) {
    bool expired = false;
    {
      MutexLock io(&staged->io);
      if (staged->gone) continue;
      expired = now - staged->last_use >= options_.limits.upload_ttl;
      if (!expired && staged->writer_alive) continue;
      MutexLock lock(&mutex_);
      // The blob may have come by another upload meanwhile.
      if (!expired && !OwnerHas(staged->owner, staged->ref)) continue;
      staged->gone = true;
    }
    Forget(staged);
    if (expired && options_.observer) options_.observer->OnUploadExpired();
  }
  // One at a time with the lock free in between, for a disk may take long to
  // delete thousands; and not for ever, for the caller has other duties. What
  // is left waits for the next sweep or for whoever needs the room.
  const auto until = std::chrono::steady_clock::now() + kSweepMax;
  while (std::chrono::steady_clock::now() < until) {
    {
      MutexLock lock(&mutex_);
      if (!TrimDamaged(now) &&
          (UsedBytes() <= LimitBytes() ||
           (!DropOldestDamaged("its room is needed") && !EvictOne(now)))) {
        break;
      }
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
}

BlobStoreStats LocalBlobStore::Stats() {
  MutexLock lock(&mutex_);
  BlobStoreStats stats;
  stats.blob_bytes = blob_bytes_;
  stats.blob_count = blobs_.size();
  stats.staged_bytes = staged_bytes_;
  stats.upload_count = staged_.size();
  stats.reserved_bytes = reserved_bytes_;
  stats.damaged_bytes = damaged_bytes_;
  stats.damaged_count = damaged_.size();
  for (const auto& [ref, info] : blobs_) {
    if (info.pins > 0) stats.pinned_bytes += ref.size_bytes;
  }
  stats.limit_bytes = LimitBytes();
  stats.evicted_bytes_total = evicted_bytes_;
  return stats;
}

}  // namespace

absl::StatusOr<std::unique_ptr<BlobStore>> OpenLocalBlobStore(
    LocalBlobStoreOptions options, RecoveryReport* report) {
  RecoveryReport ignored;
  auto store = std::make_unique<LocalBlobStore>(std::move(options));
  OVPRESS_RETURN_IF_ERROR(
      store->Recover(report != nullptr ? report : &ignored));
  return store;
}

absl::StatusOr<BlobWriter::Published> PublishBytes(
    BlobStore* store, absl::string_view owner, absl::string_view bytes,
    SpaceReservation* reservation) {
  OVPRESS_ASSIGN_OR_RETURN(
      const std::unique_ptr<BlobWriter> writer,
      store->CreateOutput(owner, bytes.size(), reservation));
  OVPRESS_RETURN_IF_ERROR(writer->WriteAt(0, AsBytes(bytes)));
  return writer->Publish();
}

absl::StatusOr<std::string> ReadBlob(BlobStore* store, absl::string_view owner,
                                     const BlobRef& ref, uint64_t limit_bytes) {
  if (ref.size_bytes > limit_bytes) {
    return absl::ResourceExhaustedError(
        absl::StrCat(BlobName(ref), " is larger than ", limit_bytes, " bytes"));
  }
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ByteSource> source,
                           store->OpenRead(owner, ref));
  std::string bytes(ref.size_bytes, '\0');
  OVPRESS_RETURN_IF_ERROR(source->ReadAt(0, AsWritableBytes(bytes)));
  return bytes;
}

}  // namespace ovpress
