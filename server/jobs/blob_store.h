// Content-addressed bytes: inputs uploaded by clients, outputs of jobs. The
// seam between a local directory and an object store; nothing behind it may be
// assumed to be a file.
//
// Ownership: an owner (identity; "" is the anonymous one) sees the blobs that
// it uploaded in full or that a job of its produced. Knowing a digest gives
// nothing. Bytes are stored once, however many own them.
#ifndef OVPRESS_SERVER_JOBS_BLOB_STORE_H_
#define OVPRESS_SERVER_JOBS_BLOB_STORE_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/base/io.h"
#include "server/jobs/digest.h"

namespace ovpress {

// The one writer of a staged upload. Bytes are hashed as they come. Destroying
// it makes what was received durable and leaves the upload to be resumed.
// Not thread-safe; calls do file I/O (never on a gRPC thread).
class BlobUpload {
 public:
  virtual ~BlobUpload() = default;
  // Where the next byte belongs.
  virtual uint64_t next_offset() const = 0;
  // kOutOfRange if offset != next_offset(); kInvalidArgument if the bytes go
  // beyond the size in the name; kAborted if another writer took over;
  // kResourceExhausted on a full disk. Empty `bytes` are fine.
  virtual absl::Status Append(uint64_t offset,
                              std::span<const std::byte> bytes) = 0;
  // The same for bytes that `keep_alive` owns and that do not change any more:
  // the store may hash them while the caller fetches the next ones.
  virtual absl::Status AppendShared(
      uint64_t offset, std::span<const std::byte> bytes,
      const std::shared_ptr<const void>& /*keep_alive*/) {
    return Append(offset, bytes);
  }
  // Checks length and digest, makes the blob durable and visible, in this
  // order. kInvalidArgument: too short (the upload stays), or the digest
  // differs (the upload is dropped: sending the same again cannot help).
  // Returns once a crash cannot lose the blob.
  virtual absl::Status Finish() = 0;
};

struct UploadStatus {
  uint64_t committed_bytes = 0;  // durable
  bool complete = false;
};

// Space set aside; freed when destroyed. Writers draw from it.
class SpaceReservation {
 public:
  virtual ~SpaceReservation() = default;
  virtual uint64_t bytes_left() const = 0;
};

// An output on its way. WriteAt is thread-safe for disjoint ranges; the rest is
// not. Destroying it unpublished drops the bytes.
class BlobWriter : public ByteSink {
 public:
  // Computes the digest, makes the blob durable and visible to `owner`; it
  // stays pinned while the returned pin lives. Nothing may be written after it.
  // kInternal if a byte of [0, size_bytes) was never written.
  struct Published;
  virtual absl::StatusOr<Published> Publish() = 0;
};

// While it lives the blobs are not evicted. Pins are of this process: after a
// restart JobManager takes those of the stored jobs again before eviction
// starts.
class BlobPin {
 public:
  virtual ~BlobPin() = default;
};

struct BlobWriter::Published {
  BlobRef ref;
  std::unique_ptr<BlobPin> pin;
};

// An output of which several servers write ranges, for its holder. Not
// thread-safe. Destroying it unpublished drops the bytes.
class SharedOutput {
 public:
  virtual ~SharedOutput() = default;
  // Text that lets any server on the same store open range i of those given.
  virtual std::string RangeHandle(size_t i) const = 0;
  // As BlobWriter::Publish, once all ranges are written; `receipts` are those
  // of their writers, by range. Reads the whole output for its digest, hence
  // `stop` (may be null): kCancelled. kDataLoss if a receipt is not of this
  // output.
  virtual absl::StatusOr<BlobWriter::Published> Publish(
      const std::vector<std::string>& receipts,
      const std::atomic<bool>* stop) = 0;
};

// One range on its way. Offsets are those of the whole output. As BlobWriter,
// but that it may be written again, by this or another server, with the same
// bytes.
class RangeWriter : public ByteSink {
 public:
  // Once it returns a crash cannot lose the range. kInternal if a byte was
  // never written.
  virtual absl::StatusOr<std::string> Finish() = 0;
};

// Temporary bytes that end with the object (or the process): the spool of
// CompressStream. Thread-safe for disjoint ranges; ReadAt of what was not
// written is kDataLoss or zeros.
class ScratchBlob : public ByteSink, public ByteSource {};

struct BlobStoreStats {
  uint64_t blob_bytes = 0;
  uint64_t blob_count = 0;
  uint64_t staged_bytes = 0;  // reserved for uploads
  uint64_t upload_count = 0;
  uint64_t reserved_bytes = 0;  // SpaceReservations and scratch
  uint64_t damaged_bytes = 0;   // set aside
  uint64_t damaged_count = 0;
  uint64_t pinned_bytes = 0;
  uint64_t limit_bytes = 0;  // what all of it together may take now
  uint64_t evicted_bytes_total = 0;
};

// Thread-safe. Blocking calls (I/O).
class BlobStore {
 public:
  virtual ~BlobStore() = default;

  // --- uploads, by (owner, uuid) ---

  // Either `already_exists` (the owner has the blob: answer the full size) or a
  // writer that starts at next_offset(). Order of checks: name, size
  // (kInvalidArgument above max_blob_bytes), same uuid with another blob
  // (kAlreadyExists), a live second writer (kAborted), limits and space
  // (kResourceExhausted with LimitDetails). Space for the whole blob is set
  // aside here, before a byte is taken. The empty blob always exists.
  struct OpenedUpload {
    bool already_exists = false;
    std::unique_ptr<BlobUpload> writer;
  };
  virtual absl::StatusOr<OpenedUpload> OpenUpload(absl::string_view owner,
                                                  const UploadName& name) = 0;
  // kNotFound for an unknown or expired upload of a blob the owner lacks.
  virtual absl::StatusOr<UploadStatus> QueryUpload(absl::string_view owner,
                                                   const UploadName& name) = 0;

  // --- blobs ---

  // Those of `refs` that the owner does not have, in order, each once. Those
  // that are there count as used now.
  virtual absl::StatusOr<std::vector<BlobRef>> FindMissing(
      absl::string_view owner, std::span<const BlobRef> refs) = 0;
  // Pinned while the source lives. kNotFound, also for blobs of others. What
  // was on the disk before this process, or was changed by somebody else, is
  // read once in full and compared with its digest: kDataLoss as from Verify().
  virtual absl::StatusOr<std::unique_ptr<ByteSource>> OpenRead(
      absl::string_view owner, const BlobRef& ref) = 0;
  // The same for an admin: whoever owns the blob.
  virtual absl::StatusOr<std::unique_ptr<ByteSource>> OpenReadAny(
      const BlobRef& ref) = 0;
  // kFailedPrecondition with GetMissingBlobs() if the owner lacks some.
  virtual absl::StatusOr<std::unique_ptr<BlobPin>> Pin(
      absl::string_view owner, std::span<const BlobRef> refs) = 0;
  // Reads the blob and compares the digest: kDataLoss if it differs; the blob
  // is then set aside and reported missing. For reads of what must be right.
  virtual absl::Status Verify(const BlobRef& ref) = 0;
  // The owner no longer has it; bytes go when nobody else owns or pins them.
  virtual absl::Status Release(absl::string_view owner, const BlobRef& ref) = 0;

  // --- outputs of jobs ---

  // Evicts unused blobs as needed, the owner's own if it is its share that is
  // full. kResourceExhausted with LimitDetails;
  // retry_after is infinite if even an empty store could not hold it (then
  // kInvalidArgument).
  virtual absl::StatusOr<std::unique_ptr<SpaceReservation>> Reserve(
      absl::string_view owner, uint64_t size_bytes) = 0;
  // `size_bytes` is exact. Draws from `reservation`, which must be of this
  // store and outlive the call only; takes what it lacks from the store.
  virtual absl::StatusOr<std::unique_ptr<BlobWriter>> CreateOutput(
      absl::string_view owner, uint64_t size_bytes,
      SpaceReservation* reservation) = 0;
  virtual absl::StatusOr<std::unique_ptr<ScratchBlob>> CreateScratch(
      absl::string_view owner, uint64_t size_bytes) = 0;

  // --- outputs that several servers write ---

  struct OutputRange {
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  // The least size of a range, but for the last; 0: the store has no such
  // outputs.
  virtual uint64_t min_shared_range_bytes() const { return 0; }
  // As CreateOutput. `ranges` follow one another and cover the output, which is
  // not empty.
  virtual absl::StatusOr<std::unique_ptr<SharedOutput>> CreateSharedOutput(
      absl::string_view /*owner*/, const std::vector<OutputRange>& /*ranges*/,
      SpaceReservation* /*reservation*/) {
    return absl::UnimplementedError(
        "outputs of this store are written by one server");
  }
  // kInvalidArgument for text that is no handle. kAborted, here or from the
  // writer: the output is gone.
  virtual absl::StatusOr<std::unique_ptr<RangeWriter>> OpenRange(
      absl::string_view /*handle*/) {
    return absl::UnimplementedError(
        "outputs of this store are written by one server");
  }

  // --- bytes that lie elsewhere ---

  // A blob for the bytes at `address` as they are now; they stay where they
  // are. Its name stands for the address and the version that was found, not
  // for the content; reading it later, when something else lies there, is
  // kFailedPrecondition. `address` is what the store understands
  // ("s3://bucket/key"). kUnimplemented by a store that knows of no elsewhere,
  // kPermissionDenied for an address that is not allowed, kNotFound.
  virtual absl::StatusOr<BlobRef> Refer(absl::string_view /*owner*/,
                                        absl::string_view /*address*/) {
    return absl::UnimplementedError(
        "this server keeps its blobs in a local directory and takes no model "
        "by address; upload it");
  }
  // Is the owner allowed to have something written there? As above.
  virtual absl::Status CheckExport(absl::string_view /*owner*/,
                                   absl::string_view /*address*/) {
    return absl::UnimplementedError(
        "this server keeps its blobs in a local directory and writes no result "
        "to an address; download it");
  }
  // Copies a blob of the owner to `address`, whole or not at all; what was
  // there is replaced.
  virtual absl::Status Export(absl::string_view owner, const BlobRef& /*ref*/,
                              absl::string_view address) {
    return CheckExport(owner, address);
  }

  // --- upkeep ---

  // Drops expired uploads and old damaged blobs, evicts down to the limit.
  // Called now and then.
  virtual void Sweep() = 0;
  virtual BlobStoreStats Stats() = 0;
};

// Small helper: an output whose bytes are at hand.
absl::StatusOr<BlobWriter::Published> PublishBytes(
    BlobStore* store, absl::string_view owner, absl::string_view bytes,
    SpaceReservation* reservation);
// Reads a whole small blob; kResourceExhausted above `limit_bytes`.
absl::StatusOr<std::string> ReadBlob(BlobStore* store, absl::string_view owner,
                                     const BlobRef& ref, uint64_t limit_bytes);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_BLOB_STORE_H_
