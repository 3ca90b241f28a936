#include "server/cluster/s3_blob_store.h"

#include <algorithm>
#include <atomic>
#include <deque>
#include <filesystem>
#include <future>
#include <optional>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "absl/functional/function_ref.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "core/base/check.h"
#include "core/base/mutex.h"
#include "core/base/patience.h"
#include "core/base/status_macros.h"
#include "server/cluster/blob_index.h"
#include "server/cluster/random_id.h"
#include "server/cluster/spool_file.h"
#include "server/cluster/stream_hash.h"
#include "server/cluster/task_pool.h"
#include "server/jobs/errors.h"

namespace ovpress {
namespace {

constexpr size_t kHashBlockBytes = 1 << 20;
// Parts of one upload on their way: the client waits for the oldest.
constexpr size_t kMaxPartsInFlight = 3;
// How often a writer tells the others that it lives, and learns whether it was
// taken over, when no part does.
constexpr absl::Duration kTouchInterval = absl::Seconds(1);
constexpr int kGarbageBatch = 100;
constexpr int kGarbageBatches = 10;
// One request of the store's own copying; S3 takes up to 5 GiB, but answers
// sooner, and is tried again at less cost, with less.
constexpr uint64_t kMaxCopyBytes = 1ull << 30;
// Blocks of an output that is read again for its digest, in memory at a time.
constexpr uint64_t kHashReadAhead = 4;
constexpr char kMarkerName[] = "ovpress-cluster";

bool IsEmptyBlob(const BlobRef& ref) {
  static const std::string* const kEmpty = new std::string(Sha256Hex(""));
  return ref.size_bytes == 0 && ref.sha256 == *kEmpty;
}

absl::Status HashRange(SpoolFile& file, uint64_t offset, uint64_t size,
                       StreamHash* hash) {
  std::vector<std::byte> block(std::min<uint64_t>(size, kHashBlockBytes));
  for (uint64_t at = 0; at < size; at += block.size()) {
    const std::span<std::byte> part =
        std::span(block).first(std::min<uint64_t>(block.size(), size - at));
    OVPRESS_RETURN_IF_ERROR(file.ReadAt(offset + at, part));
    hash->Update(part);
  }
  return absl::OkStatus();
}

// Objects of others stand in the index as "s3://bucket/key#ETag".
std::string ExternalKey(absl::string_view address, absl::string_view etag) {
  return absl::StrCat(address, "#", etag);
}
absl::string_view AddressOf(const BlobObject& object) {
  return absl::string_view(object.key)
      .substr(0, object.key.size() - object.etag.size() - 1);
}

class S3BlobStoreImpl final : public S3BlobStore {
 public:
  explicit S3BlobStoreImpl(S3BlobStoreOptions options)
      : options_(std::move(options)),
        senders_(std::make_unique<TaskPool>(options_.send_threads)),
        hashers_(std::make_unique<TaskPool>(2)),
        readers_(std::make_unique<TaskPool>(options_.read_threads)) {}
  ~S3BlobStoreImpl() override {
    {
      MutexLock lock(&mutex_);
      ending_ = true;
      closing_ = true;
    }
    ended_.SignalAll();
    if (renewer_.joinable()) renewer_.join();
    readers_.reset();
    senders_.reset();
    hashers_.reset();
  }

  absl::Status Start();

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
  uint64_t min_shared_range_bytes() const override { return kS3MinPartBytes; }
  absl::StatusOr<std::unique_ptr<SharedOutput>> CreateSharedOutput(
      absl::string_view owner, const std::vector<OutputRange>& ranges,
      SpaceReservation* reservation) override;
  absl::StatusOr<std::unique_ptr<RangeWriter>> OpenRange(
      absl::string_view handle) override;
  absl::StatusOr<BlobRef> Refer(absl::string_view owner,
                                absl::string_view address) override;
  absl::Status CheckExport(absl::string_view owner,
                           absl::string_view address) override;
  absl::Status Export(absl::string_view owner, const BlobRef& ref,
                      absl::string_view address) override;
  void Sweep() override;
  BlobStoreStats Stats() override;
  BlockCacheStats CacheStats() override { return cache_->Stats(); }
  absl::StatusOr<Object> Locate(const BlobRef& ref) override;

 private:
  class EmptyWriter;
  class NewObject;
  class Pieces;
  class PinImpl;
  class ReservationImpl;
  class Scratch;
  class Shared;
  class SharedRange;
  class Source;
  class Upload;
  class Writer;
  // What reading a blob takes; shared with tasks that read ahead.
  struct Readable {
    BlobRef ref;
    BlobObject object;
  };

  // Renews the session if a third of its lease is over.
  absl::Status Fresh();
  void RenewLoop();
  void Log(Observer::Severity severity, absl::string_view text) {
    if (options_.observer) options_.observer->OnLog(severity, "", text);
  }
  std::string NewKey() const {
    const std::string id = RandomId();
    // Keys that differ at the front spread over the partitions of a store.
    return absl::StrCat(options_.prefix, id.substr(0, 2), "/", id);
  }
  std::string spool_folder() const { return options_.directory + "/spool"; }
  S3Client::PartOf PartOf(const std::string& key, const std::string& upload_id,
                          int number) const {
    return {.bucket = options_.bucket,
            .key = key,
            .upload_id = upload_id,
            .number = number};
  }
  // Registers an object for an output and takes its space.
  absl::StatusOr<std::unique_ptr<NewObject>> BeginObject(
      absl::string_view owner, uint64_t size_bytes,
      SpaceReservation* reservation);
  absl::StatusOr<std::string> BeginUpload(const std::string& key);
  absl::Status OursOr(const absl::Status& status, const std::string& key,
                      const std::string& upload_id);
  absl::Status FetchExternal(const Readable& blob, uint64_t index,
                             std::span<std::byte> out);
  // A block from the store, checked.
  absl::Status FetchBlock(const Readable& blob, uint64_t index,
                          std::span<std::byte> out);
  absl::StatusOr<std::shared_ptr<const BlockCache::Block>> GetBlock(
      const Readable& blob, uint64_t index);
  absl::StatusOr<std::unique_ptr<ByteSource>> OpenPinned(
      const BlobRef& ref, std::unique_ptr<BlobPin> pin);
  // Sets a damaged blob aside; kDataLoss.
  absl::Status Spoil(const BlobRef& ref, const std::string& object_key,
                     absl::string_view what);
  // Is the object that the index names still there?
  absl::StatusOr<bool> IsIntact(const BlobObject& object, uint64_t size_bytes);
  absl::StatusOr<S3Location> CheckAddress(absl::string_view owner,
                                          absl::string_view address) const;
  absl::Status CopyLarge(const BlobRef& ref, const S3Client::Source& from,
                         const S3Location& to);
  void CollectGarbage();
  void CollectOrphans();

  const S3BlobStoreOptions options_;
  std::unique_ptr<BlobIndex> index_;
  std::unique_ptr<BlockCache> cache_;
  std::string cluster_id_;

  Mutex mutex_;
  CondVar ended_;
  CondVar block_freed_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> closing_{false};  // the same, for who waits
  absl::Time renewed_ ABSL_GUARDED_BY(mutex_) = absl::InfinitePast();
  int blocks_in_memory_ ABSL_GUARDED_BY(mutex_) = 0;

  std::thread renewer_;
  std::unique_ptr<TaskPool> senders_;
  std::unique_ptr<TaskPool> hashers_;
  std::unique_ptr<TaskPool> readers_;
};

// --- helpers with a handle ---

class S3BlobStoreImpl::PinImpl final : public BlobPin {
 public:
  PinImpl(BlobIndex* index, std::vector<int64_t> pins)
      : index_(index), pins_(std::move(pins)) {}
  ~PinImpl() override { index_->Unpin(pins_); }

 private:
  BlobIndex* const index_;
  const std::vector<int64_t> pins_;
};

class S3BlobStoreImpl::ReservationImpl final : public SpaceReservation {
 public:
  ReservationImpl(BlobIndex* index, int64_t id, uint64_t bytes)
      : index_(index), id_(id), left_(bytes) {}
  ~ReservationImpl() override { index_->Unreserve(id_); }
  uint64_t bytes_left() const override { return left_; }

 private:
  friend class S3BlobStoreImpl;
  BlobIndex* const index_;
  const int64_t id_;
  std::atomic<uint64_t> left_;
};

class S3BlobStoreImpl::Scratch final : public ScratchBlob {
 public:
  Scratch(BlobIndex* index, int64_t reservation,
          std::unique_ptr<SpoolFile> file)
      : index_(index), reservation_(reservation), file_(std::move(file)) {}
  ~Scratch() override { index_->Unreserve(reservation_); }
  uint64_t size_bytes() const override { return file_->size_bytes(); }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override {
    return file_->ReadAt(offset, out);
  }
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    return file_->WriteAt(offset, bytes);
  }

 private:
  BlobIndex* const index_;
  const int64_t reservation_;
  const std::unique_ptr<SpoolFile> file_;
};

class S3BlobStoreImpl::Source final : public ByteSource {
 public:
  Source(S3BlobStoreImpl* store, std::shared_ptr<const Readable> blob,
         std::unique_ptr<BlobPin> pin)
      : store_(store), blob_(std::move(blob)), pin_(std::move(pin)) {}
  uint64_t size_bytes() const override { return blob_->ref.size_bytes; }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override {
    const Patience patience(stop_ != nullptr ? stop_ : Patience::Stop());
    const uint64_t size = blob_->ref.size_bytes;
    if (offset > size || out.size() > size - offset) {
      return absl::DataLossError(absl::StrCat("bytes ", offset, " to ",
                                              offset + out.size(),
                                              " leave a blob of ", size));
    }
    while (!out.empty()) {
      const uint64_t index = offset / kBlobBlockBytes;
      const uint64_t at = offset % kBlobBlockBytes;
      const auto n = static_cast<size_t>(
          std::min<uint64_t>(out.size(), kBlobBlockBytes - at));
      ReadAhead(index);
      OVPRESS_ASSIGN_OR_RETURN(
          const std::shared_ptr<const BlockCache::Block> block,
          store_->GetBlock(*blob_, index));
      OVPRESS_RETURN_IF_ERROR(block->Read(at, out.first(n)));
      offset += n;
      out = out.subspan(n);
    }
    return absl::OkStatus();
  }

 private:
  // Only for readers that go forward: others would pay for what they skip.
  void ReadAhead(uint64_t index) {
    const uint64_t last = last_.exchange(index);
    if (index == last || index != last + 1) return;
    const uint64_t blocks =
        (blob_->ref.size_bytes + kBlobBlockBytes - 1) / kBlobBlockBytes;
    const auto ahead =
        static_cast<uint64_t>(store_->options_.read_ahead_blocks);
    for (uint64_t i = index + 1; i <= index + ahead && i < blocks; ++i) {
      if (store_->cache_->Has(blob_->object.key, i)) continue;
      store_->readers_->Add([store = store_, blob = blob_, i] {
        const Patience patience(&store->closing_);
        store->GetBlock(*blob, i).IgnoreError();
      });
    }
  }

  S3BlobStoreImpl* const store_;
  const std::shared_ptr<const Readable> blob_;
  const std::unique_ptr<BlobPin> pin_;
  // Of who opened it, for the threads that read for them.
  const std::atomic<bool>* const stop_ = Patience::Stop();
  // The block read last; starts so that block 0 is its successor.
  std::atomic<uint64_t> last_{~uint64_t{0}};
};

// --- outputs ---

// Bytes that are written in any order and sent in pieces, each as soon as it is
// whole, as parts of one multipart upload (or one object, if there is no upload
// yet and one piece is all). For outputs and for ranges of shared ones.
class S3BlobStoreImpl::Pieces {
 public:
  struct Shape {
    std::string key;
    // Of an upload that exists; "": UploadId() makes one when it is needed.
    std::string upload_id;
    int first_number = 1;
    uint64_t piece_bytes = 0;
    size_t count = 0;  // the last takes what is left, more or less
    bool hash = false;
  };
  Pieces(S3BlobStoreImpl* store, Shape shape, std::unique_ptr<SpoolFile> spool)
      : store_(store),
        shape_(std::move(shape)),
        size_(spool->size_bytes()),
        spool_(std::move(spool)),
        pieces_(shape_.count),
        upload_id_(shape_.upload_id),
        hash_(kBlobBlockBytes) {}
  // Waits for what is on its way.
  ~Pieces() {
    MutexLock lock(&mutex_);
    given_up_ = true;
    while (at_work_ > 0) changed_.Wait(&mutex_);
  }

  absl::Status WriteAt(uint64_t offset, std::span<const std::byte> bytes) {
    if (offset > size_ || bytes.size() > size_ - offset) {
      return absl::InternalError(absl::StrCat("output bytes ", offset, " to ",
                                              offset + bytes.size(),
                                              " leave the output of ", size_));
    }
    if (bytes.empty()) return absl::OkStatus();
    OVPRESS_RETURN_IF_ERROR(spool_->WriteAt(offset, bytes));
    MutexLock lock(&mutex_);
    if (!failed_.ok()) return failed_;
    written_ += bytes.size();
    uint64_t left = bytes.size();
    for (size_t i =
             std::min<size_t>(offset / shape_.piece_bytes, shape_.count - 1);
         left > 0; ++i) {
      const uint64_t n =
          std::min(left, i * shape_.piece_bytes + SizeOf(i) - offset);
      pieces_[i].written += n;
      offset += n;
      left -= n;
      if (pieces_[i].written == SizeOf(i)) PieceIsWhole(i);
    }
    return absl::OkStatus();
  }

  // Until all are sent, and hashed; the parts, in order.
  absl::StatusOr<std::vector<S3Part>> Wait() {
    MutexLock lock(&mutex_);
    OVPRESS_RETURN_IF_ERROR(failed_);
    if (written_ != size_) {
      return absl::InternalError(
          absl::StrCat("output has ", written_, " of ", size_, " bytes"));
    }
    while (failed_.ok() && (sent_ < pieces_.size() ||
                            (shape_.hash && next_hash_ < pieces_.size()))) {
      changed_.Wait(&mutex_);
    }
    OVPRESS_RETURN_IF_ERROR(failed_);
    std::vector<S3Part> parts;
    for (const Piece& piece : pieces_) parts.push_back(piece.sent);
    return parts;
  }

  // Begins the multipart upload; who comes meanwhile waits.
  absl::StatusOr<std::string> UploadId() {
    MutexLock lock(&upload_id_mutex_);
    if (!upload_id_.empty()) return upload_id_;
    OVPRESS_ASSIGN_OR_RETURN(std::string id, store_->BeginUpload(shape_.key));
    upload_id_ = std::move(id);
    return upload_id_;
  }

  uint64_t size_bytes() const { return size_; }
  // REQUIRES: Shape::hash, and Wait() was OK.
  StreamHash* hash() { return &hash_; }

 private:
  struct Piece {
    uint64_t written = 0;
    bool whole = false;
    bool hashed = false;
    S3Part sent;  // number 0: not yet
  };

  uint64_t SizeOf(size_t i) const {
    return i + 1 < shape_.count ? shape_.piece_bytes
                                : size_ - i * shape_.piece_bytes;
  }

  void PieceIsWhole(size_t i) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    pieces_[i].whole = true;
    ++at_work_;
    store_->senders_->Add([this, i] { Send(i); });
    if (shape_.hash && i == next_hash_ && !hashing_) {
      hashing_ = true;
      ++at_work_;
      store_->hashers_->Add([this] { Hash(); });
    }
  }

  // In the order of the bytes, as far as they are whole.
  void Hash() {
    mutex_.Lock();
    while (failed_.ok() && !given_up_ && next_hash_ < pieces_.size() &&
           pieces_[next_hash_].whole) {
      const size_t i = next_hash_;
      mutex_.Unlock();
      const absl::Status status =
          HashRange(*spool_, i * shape_.piece_bytes, SizeOf(i), &hash_);
      mutex_.Lock();
      failed_.Update(status);
      pieces_[i].hashed = true;
      ++next_hash_;
      DiscardIfDone(i);
    }
    hashing_ = false;
    --at_work_;
    changed_.SignalAll();
    mutex_.Unlock();
  }

  void Send(size_t i) {
    {
      MutexLock lock(&mutex_);
      if (given_up_ || !failed_.ok()) {
        --at_work_;
        changed_.SignalAll();
        return;
      }
    }
    const Patience patience(stop_);
    absl::StatusOr<S3Part> sent = SendPiece(i);
    MutexLock lock(&mutex_);
    if (sent.ok()) {
      pieces_[i].sent = *std::move(sent);
      ++sent_;
      DiscardIfDone(i);
    } else {
      failed_.Update(sent.status());
    }
    --at_work_;
    changed_.SignalAll();
  }

  absl::StatusOr<S3Part> SendPiece(size_t i) {
    S3Client& s3 = *store_->options_.s3;
    const HttpBody body{.source = spool_.get(),
                        .offset = i * shape_.piece_bytes,
                        .size = SizeOf(i)};
    const int number = shape_.first_number + static_cast<int>(i);
    if (pieces_.size() == 1 && shape_.upload_id.empty()) {
      OVPRESS_ASSIGN_OR_RETURN(
          std::string etag, s3.Put(store_->options_.bucket, shape_.key, body));
      return S3Part{
          .number = number, .etag = std::move(etag), .size_bytes = body.size};
    }
    OVPRESS_ASSIGN_OR_RETURN(const std::string upload_id, UploadId());
    absl::StatusOr<S3Part> sent =
        s3.UploadPart(store_->PartOf(shape_.key, upload_id, number), body);
    if (sent.ok()) return sent;
    return shape_.upload_id.empty()
               ? store_->OursOr(sent.status(), shape_.key, upload_id)
               : sent.status();
  }

  void DiscardIfDone(size_t i) ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    if ((pieces_[i].hashed || !shape_.hash) && pieces_[i].sent.number != 0) {
      spool_->Discard(i * shape_.piece_bytes, SizeOf(i));
    }
  }

  S3BlobStoreImpl* const store_;
  const Shape shape_;
  const uint64_t size_;
  const std::unique_ptr<SpoolFile> spool_;
  // Of who made us, for the threads that send.
  const std::atomic<bool>* const stop_ = Patience::Stop();
  Mutex mutex_;
  CondVar changed_;
  // Its size never changes.
  std::vector<Piece> pieces_;
  uint64_t written_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t sent_ ABSL_GUARDED_BY(mutex_) = 0;
  size_t next_hash_ ABSL_GUARDED_BY(mutex_) = 0;
  bool hashing_ ABSL_GUARDED_BY(mutex_) = false;
  int at_work_ ABSL_GUARDED_BY(mutex_) = 0;  // tasks of ours
  bool given_up_ ABSL_GUARDED_BY(mutex_) = false;
  absl::Status failed_ ABSL_GUARDED_BY(mutex_);
  Mutex upload_id_mutex_;
  std::string upload_id_ ABSL_GUARDED_BY(upload_id_mutex_);
  StreamHash hash_;  // of the hashing task, then of whoever called Wait()
};

absl::StatusOr<std::string> S3BlobStoreImpl::BeginUpload(
    const std::string& key) {
  OVPRESS_ASSIGN_OR_RETURN(std::string id,
                           options_.s3->CreateMultipart(options_.bucket, key));
  OVPRESS_RETURN_IF_ERROR(index_->SetUploadId(key, id));
  return id;
}

// A multipart upload that is gone was removed by another server, because this
// one lost its session: then that is the error, not the object store's.
absl::Status S3BlobStoreImpl::OursOr(const absl::Status& status,
                                     const std::string& key,
                                     const std::string& upload_id) {
  if (absl::IsNotFound(status)) {
    OVPRESS_RETURN_IF_ERROR(index_->SetUploadId(key, upload_id));
  }
  return status;
}

// An object that the index knows as one to come, with its space. It becomes
// garbage if it was not published.
class S3BlobStoreImpl::NewObject {
 public:
  NewObject(S3BlobStoreImpl* store, std::string owner, std::string key,
            int64_t reservation)
      : store_(store),
        owner_(std::move(owner)),
        key_(std::move(key)),
        reservation_(reservation) {}
  ~NewObject() {
    if (!published_) store_->index_->Abandon(key_);
    store_->index_->Unreserve(reservation_);
  }
  const std::string& key() const { return key_; }

  // Makes the object a blob of its owner, unless a good one has the same bytes
  // already: that takes its place. `complete` is called first then, and says
  // what it takes for the object to be there; it may set the ETag.
  absl::StatusOr<BlobWriter::Published> Publish(
      const BlobRef& ref, BlobObject object,
      absl::FunctionRef<absl::Status(BlobObject*)> complete) {
    std::optional<int64_t> pin;
    OVPRESS_ASSIGN_OR_RETURN(std::string replaces, FindPresent(ref, &pin));
    if (!pin.has_value()) {
      object.key = key_;
      OVPRESS_RETURN_IF_ERROR(complete(&object));
      OVPRESS_ASSIGN_OR_RETURN(
          pin, store_->index_->Publish({.owner = owner_,
                                        .ref = ref,
                                        .object = std::move(object),
                                        .replaces = std::move(replaces)}));
      published_ = true;
    }
    if (store_->options_.observer) {
      store_->options_.observer->OnBlobPublished(ref.size_bytes);
    }
    return BlobWriter::Published{
        .ref = ref,
        .pin = std::make_unique<PinImpl>(store_->index_.get(),
                                         std::vector<int64_t>{*pin})};
  }

 private:
  // `pin` is set for a good object that has the blob. Otherwise the key of a
  // damaged one, or "".
  absl::StatusOr<std::string> FindPresent(const BlobRef& ref,
                                          std::optional<int64_t>* pin) {
    BlobIndex& index = *store_->index_;
    const absl::StatusOr<BlobObject> present = index.Find(ref);
    if (absl::IsNotFound(present.status())) return std::string();
    OVPRESS_RETURN_IF_ERROR(present.status());
    OVPRESS_ASSIGN_OR_RETURN(const bool intact,
                             store_->IsIntact(*present, ref.size_bytes));
    if (!intact) return present->key;
    const absl::StatusOr<int64_t> adopted = index.Adopt(owner_, ref);
    if (absl::IsNotFound(adopted.status())) return std::string();
    OVPRESS_ASSIGN_OR_RETURN(*pin, adopted);
    return std::string();
  }

  S3BlobStoreImpl* const store_;
  const std::string owner_;
  const std::string key_;
  const int64_t reservation_;
  bool published_ = false;
};

class S3BlobStoreImpl::Writer final : public BlobWriter {
 public:
  Writer(S3BlobStoreImpl* store, std::unique_ptr<NewObject> object,
         uint64_t size_bytes, std::unique_ptr<SpoolFile> spool)
      : store_(store),
        object_(std::move(object)),
        pieces_(store,
                {.key = object_->key(),
                 .piece_bytes = PartBytesFor(size_bytes),
                 .count = PiecesOf(size_bytes),
                 .hash = true},
                std::move(spool)) {}

  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    return pieces_.WriteAt(offset, bytes);
  }

  absl::StatusOr<Published> Publish() override {
    OVPRESS_ASSIGN_OR_RETURN(const std::vector<S3Part> parts, pieces_.Wait());
    StreamHash* const hash = pieces_.hash();
    hash->EndBlock();
    BlobObject made{.etag = parts[0].etag,
                    .block_digests = hash->TakeBlockDigests()};
    const BlobRef ref{.sha256 = hash->FinishHex(),
                      .size_bytes = pieces_.size_bytes()};
    return object_->Publish(ref, std::move(made), [&](BlobObject* object) {
      return parts.size() > 1 ? Complete(parts, object) : absl::OkStatus();
    });
  }

 private:
  absl::Status Complete(const std::vector<S3Part>& parts, BlobObject* object) {
    OVPRESS_ASSIGN_OR_RETURN(const std::string upload_id, pieces_.UploadId());
    absl::StatusOr<std::string> etag = store_->options_.s3->CompleteMultipart(
        store_->PartOf(object->key, upload_id, 0), parts);
    if (!etag.ok()) {
      return store_->OursOr(etag.status(), object->key, upload_id);
    }
    object->etag = *std::move(etag);
    return absl::OkStatus();
  }

  static size_t PiecesOf(uint64_t size) {
    const uint64_t piece = PartBytesFor(size);
    return static_cast<size_t>((size + piece - 1) / piece);
  }

  S3BlobStoreImpl* const store_;
  // Outlives the pieces that are on their way.
  const std::unique_ptr<NewObject> object_;
  Pieces pieces_;
};

// The blob without bytes: nothing is stored for it.
class S3BlobStoreImpl::EmptyWriter final : public BlobWriter {
 public:
  explicit EmptyWriter(S3BlobStoreImpl* store) : store_(store) {}
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    if (offset == 0 && bytes.empty()) return absl::OkStatus();
    return absl::InternalError(absl::StrCat("output bytes ", offset, " to ",
                                            offset + bytes.size(),
                                            " leave the output of 0"));
  }
  absl::StatusOr<Published> Publish() override {
    return Published{.ref = BlobRefOf(""),
                     .pin = std::make_unique<PinImpl>(store_->index_.get(),
                                                      std::vector<int64_t>())};
  }

 private:
  S3BlobStoreImpl* const store_;
};

// --- outputs that several servers write ---

// A range has numbers of its own in the multipart upload, so that servers need
// not agree on anything: RangeHandle() has them.
class S3BlobStoreImpl::Shared final : public SharedOutput {
 public:
  struct Range {
    OutputRange range;
    int first_number = 1;
    size_t count = 0;
  };
  Shared(S3BlobStoreImpl* store, std::unique_ptr<NewObject> object,
         std::string upload_id, const std::vector<OutputRange>& ranges)
      : store_(store),
        object_(std::move(object)),
        upload_id_(std::move(upload_id)),
        size_(ranges.back().end),
        piece_bytes_(PartBytesFor(size_)) {
    int number = 1;
    for (const OutputRange& range : ranges) {
      const auto count = static_cast<size_t>(
          std::max<uint64_t>(1, (range.end - range.begin) / piece_bytes_));
      ranges_.push_back(
          {.range = range, .first_number = number, .count = count});
      number += static_cast<int>(count);
    }
  }

  std::string RangeHandle(size_t i) const override {
    const Range& range = ranges_[i];
    return absl::StrJoin(
        {absl::StrCat(range.range.begin), absl::StrCat(range.range.end),
         absl::StrCat(range.first_number), absl::StrCat(range.count),
         absl::StrCat(piece_bytes_), upload_id_, object_->key()},
        " ");
  }

  absl::StatusOr<BlobWriter::Published> Publish(
      const std::vector<std::string>& receipts,
      const std::atomic<bool>* stop) override {
    OVPRESS_ASSIGN_OR_RETURN(std::vector<S3Part> parts, PartsOf(receipts));
    S3Client& s3 = *store_->options_.s3;
    const S3Client::PartOf upload =
        store_->PartOf(object_->key(), upload_id_, 0);
    absl::StatusOr<std::string> etag = s3.CompleteMultipart(upload, parts);
    if (absl::IsInvalidArgument(etag.status())) {
      OVPRESS_ASSIGN_OR_RETURN(const bool sent_again, FindEtags(&parts));
      if (sent_again) etag = s3.CompleteMultipart(upload, parts);
    }
    if (!etag.ok()) {
      return store_->OursOr(etag.status(), object_->key(), upload_id_);
    }
    StreamHash hash(kBlobBlockBytes);
    OVPRESS_RETURN_IF_ERROR(HashObject(*etag, stop, &hash));
    BlobObject made{.etag = *etag, .block_digests = hash.TakeBlockDigests()};
    const BlobRef ref{.sha256 = hash.FinishHex(), .size_bytes = size_};
    return object_->Publish(ref, std::move(made),
                            [](BlobObject*) { return absl::OkStatus(); });
  }

 private:
  absl::StatusOr<std::vector<S3Part>> PartsOf(
      const std::vector<std::string>& receipts) const;
  // A server that came too late may have sent parts once more, with the same
  // bytes; where ETags are no sums of them (with SSE-KMS, say) they are others
  // then. False if a part is missing or of another size.
  absl::StatusOr<bool> FindEtags(std::vector<S3Part>* parts) const;
  // Reads the object, a few blocks ahead of the hash.
  absl::Status HashObject(const std::string& etag,
                          const std::atomic<bool>* stop, StreamHash* hash);

  S3BlobStoreImpl* const store_;
  const std::unique_ptr<NewObject> object_;
  const std::string upload_id_;
  const uint64_t size_;
  const uint64_t piece_bytes_;
  std::vector<Range> ranges_;
};

absl::StatusOr<std::vector<S3Part>> S3BlobStoreImpl::Shared::PartsOf(
    const std::vector<std::string>& receipts) const {
  std::vector<S3Part> parts;
  bool fits = receipts.size() == ranges_.size();
  for (size_t i = 0; fits && i < ranges_.size(); ++i) {
    const std::vector<absl::string_view> etags =
        absl::StrSplit(receipts[i], ' ');
    fits = etags.size() == ranges_[i].count;
    uint64_t left = ranges_[i].range.end - ranges_[i].range.begin;
    for (size_t k = 0; k < etags.size(); ++k) {
      const uint64_t size = k + 1 < etags.size() ? piece_bytes_ : left;
      parts.push_back({.number = static_cast<int>(parts.size()) + 1,
                       .etag = std::string(etags[k]),
                       .size_bytes = size});
      left -= size;
    }
  }
  if (fits) return parts;
  return absl::DataLossError(absl::StrCat(
      "receipts of ", receipts.size(), " ranges and at least ", parts.size(),
      " parts for an output of ", ranges_.size(), " ranges"));
}

absl::StatusOr<bool> S3BlobStoreImpl::Shared::FindEtags(
    std::vector<S3Part>* parts) const {
  std::vector<S3Part> listed;
  int after = 0;
  do {
    OVPRESS_ASSIGN_OR_RETURN(
        S3Page<S3Part> page,
        store_->options_.s3->ListParts(
            store_->PartOf(object_->key(), upload_id_, 0), after));
    listed.insert(listed.end(), page.items.begin(), page.items.end());
    if (page.next.empty()) break;
    if (!absl::SimpleAtoi(page.next, &after)) return false;
  } while (listed.size() < parts->size());
  const bool same =
      std::equal(listed.begin(), listed.end(), parts->begin(), parts->end(),
                 [](const S3Part& a, const S3Part& b) {
                   return a.number == b.number && a.size_bytes == b.size_bytes;
                 });
  if (same) *parts = std::move(listed);
  return same;
}

absl::Status S3BlobStoreImpl::Shared::HashObject(const std::string& etag,
                                                 const std::atomic<bool>* stop,
                                                 StreamHash* hash) {
  struct Block {
    std::vector<std::byte> bytes;
    std::future<absl::Status> read;
  };
  const uint64_t blocks = (size_ + kBlobBlockBytes - 1) / kBlobBlockBytes;
  const auto size_of = [&](uint64_t i) {
    return static_cast<size_t>(
        std::min(kBlobBlockBytes, size_ - i * kBlobBlockBytes));
  };
  std::deque<Block> ahead;
  uint64_t asked = 0;
  absl::Status status;
  for (uint64_t i = 0; i < blocks && status.ok(); ++i) {
    for (; asked < std::min(blocks, i + kHashReadAhead); ++asked) {
      Block& block = ahead.emplace_back();
      block.bytes.resize(size_of(asked));
      auto promise = std::make_shared<std::promise<absl::Status>>();
      block.read = promise->get_future();
      store_->readers_->Add([store = store_, key = object_->key(), etag, asked,
                             bytes = std::span(block.bytes), promise, stop] {
        const Patience patience(stop);
        promise->set_value(store->options_.s3->GetRange(
            store->options_.bucket, key, asked * kBlobBlockBytes, bytes,
            {.if_match = etag}));
      });
    }
    status = ahead.front().read.get();
    if (status.ok()) hash->Update(ahead.front().bytes);
    ahead.pop_front();
    if (stop != nullptr && *stop) {
      status.Update(absl::CancelledError("the job was stopped"));
    }
  }
  // Their bytes are being written to.
  for (Block& block : ahead) block.read.wait();
  OVPRESS_RETURN_IF_ERROR(status);
  hash->EndBlock();
  return absl::OkStatus();
}

class S3BlobStoreImpl::SharedRange final : public RangeWriter {
 public:
  SharedRange(S3BlobStoreImpl* store, uint64_t begin, Pieces::Shape shape,
              std::unique_ptr<SpoolFile> spool)
      : begin_(begin), pieces_(store, std::move(shape), std::move(spool)) {}

  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    if (offset < begin_) {
      return absl::InternalError(absl::StrCat(
          "output byte ", offset, " lies before a range from ", begin_));
    }
    return Gone(pieces_.WriteAt(offset - begin_, bytes));
  }

  absl::StatusOr<std::string> Finish() override {
    const absl::StatusOr<std::vector<S3Part>> parts = pieces_.Wait();
    if (!parts.ok()) return Gone(parts.status());
    return absl::StrJoin(*parts, " ", [](std::string* out, const S3Part& part) {
      out->append(part.etag);
    });
  }

 private:
  static absl::Status Gone(const absl::Status& status) {
    return absl::IsNotFound(status)
               ? absl::AbortedError(
                     absl::StrCat("the output is gone: ", status.message()))
               : status;
  }
  const uint64_t begin_;
  Pieces pieces_;
};

absl::StatusOr<std::unique_ptr<SharedOutput>>
S3BlobStoreImpl::CreateSharedOutput(absl::string_view owner,
                                    const std::vector<OutputRange>& ranges,
                                    SpaceReservation* reservation) {
  OVPRESS_CHECK(!ranges.empty() && ranges.back().end > 0);
  OVPRESS_RETURN_IF_ERROR(Fresh());
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<NewObject> object,
                           BeginObject(owner, ranges.back().end, reservation));
  OVPRESS_ASSIGN_OR_RETURN(std::string upload_id, BeginUpload(object->key()));
  return std::make_unique<Shared>(this, std::move(object), std::move(upload_id),
                                  ranges);
}

absl::StatusOr<std::unique_ptr<RangeWriter>> S3BlobStoreImpl::OpenRange(
    absl::string_view handle) {
  const std::vector<absl::string_view> fields =
      absl::StrSplit(handle, absl::MaxSplits(' ', 6));
  uint64_t begin = 0;
  uint64_t end = 0;
  uint64_t count = 0;
  Pieces::Shape shape;
  if (fields.size() != 7 || !absl::SimpleAtoi(fields[0], &begin) ||
      !absl::SimpleAtoi(fields[1], &end) ||
      !absl::SimpleAtoi(fields[2], &shape.first_number) ||
      !absl::SimpleAtoi(fields[3], &count) ||
      !absl::SimpleAtoi(fields[4], &shape.piece_bytes) || begin >= end ||
      count == 0 || count > kS3MaxParts || shape.piece_bytes == 0 ||
      (count > 1 && (end - begin) / shape.piece_bytes < count)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "\"", absl::CHexEscape(handle), "\" is no range of an output"));
  }
  shape.upload_id = std::string(fields[5]);
  shape.key = std::string(fields[6]);
  shape.count = static_cast<size_t>(count);
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<SpoolFile> spool,
                           SpoolFile::Create(spool_folder(), end - begin));
  return std::make_unique<SharedRange>(this, begin, std::move(shape),
                                       std::move(spool));
}

// --- uploads ---

class S3BlobStoreImpl::Upload final : public BlobUpload {
 public:
  Upload(S3BlobStoreImpl* store, BlobIndex::UploadKey key, UploadRow row,
         std::unique_ptr<SpoolFile> spool, StreamHash hash)
      : store_(store),
        key_(std::move(key)),
        row_(std::move(row)),
        spool_(std::move(spool)),
        hash_(std::move(hash)),
        offset_(row_.committed_bytes),
        queued_(row_.committed_bytes),
        touched_(store->index_->Now()),
        upload_id_(row_.s3_upload_id) {}
  ~Upload() override {
    // All parts that can still be kept are, then the tail.
    const absl::Status parts = CommitParts(0);
    if (over_) return;
    const uint64_t tail = offset_ - queued_;
    std::string tail_key;
    if (parts.ok() && tail > 0 && tail != row_.tail_bytes &&
        store_->index_->TouchUpload(key_).ok()) {
      // Named after the writer: one that was frozen and comes late does not
      // write over the tail of another.
      tail_key = absl::StrCat(row_.object_key, ".tail", key_.generation);
      if (!store_->options_.s3
               ->Put(store_->options_.bucket, tail_key,
                     {.source = spool_.get(), .offset = queued_, .size = tail})
               .ok()) {
        tail_key.clear();
      }
    }
    const absl::Status left = store_->index_->LeaveUpload(key_, tail_key, tail);
    if (absl::IsAborted(left) && !tail_key.empty()) {
      store_->options_.s3->Delete(store_->options_.bucket, tail_key)
          .IgnoreError();
    }
  }

  uint64_t next_offset() const override { return offset_; }

  // Bytes behind the last part that another writer left.
  absl::Status TakeTail() {
    const uint64_t tail_bytes = row_.tail_bytes;
    std::vector<std::byte> block(std::min<uint64_t>(tail_bytes, 1 << 20));
    for (uint64_t at = 0; at < tail_bytes; at += block.size()) {
      const std::span<std::byte> piece = std::span(block).first(
          std::min<uint64_t>(block.size(), tail_bytes - at));
      OVPRESS_RETURN_IF_ERROR(store_->options_.s3->GetRange(
          store_->options_.bucket, row_.tail_key, at, piece, {}));
      OVPRESS_RETURN_IF_ERROR(Take(piece));
    }
    return absl::OkStatus();
  }

  absl::Status Append(uint64_t offset,
                      std::span<const std::byte> bytes) override {
    OVPRESS_RETURN_IF_ERROR(CheckMine());
    if (offset != offset_) {
      return absl::OutOfRangeError(
          absl::StrCat("write_offset ", offset, " must be ", offset_,
                       ", where the bytes so far end; ask QueryWriteStatus"));
    }
    const uint64_t size = row_.ref.size_bytes;
    if (bytes.size() > size - offset_) {
      return absl::InvalidArgumentError(
          absl::StrCat("bytes up to ", offset_ + bytes.size(),
                       " go beyond the size in the resource name, ", size));
    }
    return Take(bytes);
  }

  absl::Status Finish() override {
    OVPRESS_RETURN_IF_ERROR(CheckMine());
    const uint64_t size = row_.ref.size_bytes;
    if (offset_ != size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "finish_write at ", offset_, " bytes, the resource name says ", size,
          "; the upload stays and can go on"));
    }
    OVPRESS_RETURN_IF_ERROR(CommitParts(0));
    hash_.EndBlock();
    BlobIndex::NewBlob blob{.owner = key_.owner, .ref = row_.ref};
    blob.object.key = row_.object_key;
    // Of what is behind the last whole part; nothing, if that was the end.
    const std::string last_digests = hash_.TakeBlockDigests();
    const std::string digest = hash_.FinishHex();
    if (digest != row_.ref.sha256) {
      over_ = true;
      OVPRESS_RETURN_IF_ERROR(store_->index_->DropUpload(key_));
      return absl::InvalidArgumentError(absl::StrCat(
          "the ", offset_, " bytes received have SHA-256 ", digest,
          ", the resource name says ", row_.ref.sha256,
          "; the upload was dropped, sending the same again cannot help"));
    }
    OVPRESS_ASSIGN_OR_RETURN(const bool adopted, AdoptPresent(&blob));
    if (adopted) return absl::OkStatus();
    if (size <= row_.part_bytes && queued_ == 0) {
      blob.object.block_digests = last_digests;
      OVPRESS_ASSIGN_OR_RETURN(
          blob.object.etag,
          store_->options_.s3->Put(store_->options_.bucket, row_.object_key,
                                   {.source = spool_.get(), .size = size}));
    } else {
      OVPRESS_RETURN_IF_ERROR(Complete(last_digests, &blob));
    }
    // From here on nothing is left to resume, but if the index cannot be
    // reached the upload's row still says how to finish.
    OVPRESS_RETURN_IF_ERROR(store_->index_->PublishUpload(key_, blob));
    over_ = true;
    if (store_->options_.observer) {
      store_->options_.observer->OnBlobPublished(size);
    }
    return absl::OkStatus();
  }

 private:
  struct Pending {
    BlobIndex::CommittedPart part;
    absl::StatusOr<S3Part> sent = absl::UnavailableError("not sent");
    bool done = false;
  };

  // Stores, hashes and, at a part's end, sends.
  absl::Status Take(std::span<const std::byte> bytes) {
    while (!bytes.empty()) {
      const uint64_t part_end = queued_ + row_.part_bytes;
      const auto n = static_cast<size_t>(
          std::min<uint64_t>(bytes.size(), part_end - offset_));
      OVPRESS_RETURN_IF_ERROR(spool_->WriteAt(offset_, bytes.first(n)));
      hash_.Update(bytes.first(n));
      offset_ += n;
      bytes = bytes.subspan(n);
      if (offset_ == part_end && row_.ref.size_bytes > row_.part_bytes) {
        QueuePart(row_.part_bytes);
        OVPRESS_RETURN_IF_ERROR(CommitParts(kMaxPartsInFlight - 1));
      }
    }
    return absl::OkStatus();
  }

  absl::Status CheckMine() {
    OVPRESS_RETURN_IF_ERROR(failed_);
    if (over_) return absl::AbortedError("the upload just ended");
    const absl::Time now = store_->index_->Now();
    if (now - touched_ < kTouchInterval) return absl::OkStatus();
    touched_ = now;
    const absl::Status status = store_->index_->TouchUpload(key_);
    if (absl::IsAborted(status)) over_ = true;
    return status;
  }

  void QueuePart(uint64_t size) {
    auto pending = std::make_shared<Pending>();
    pending->part.part.number = static_cast<int>(queued_ / row_.part_bytes) + 1;
    pending->part.part.size_bytes = size;
    pending->part.part.block_digests = hash_.TakeBlockDigests();
    const uint64_t offset = queued_;
    queued_ += size;
    pending->part.committed_bytes = queued_;
    pending->part.midstate = hash_.Save();
    pending_.push_back(pending);
    store_->senders_->Add([this, pending, offset] {
      absl::StatusOr<S3Part> sent = SendPart(*pending, offset);
      MutexLock lock(&mutex_);
      pending->sent = std::move(sent);
      pending->done = true;
      changed_.SignalAll();
    });
  }

  absl::StatusOr<S3Part> SendPart(const Pending& pending, uint64_t offset) {
    std::string upload_id;
    {
      MutexLock lock(&upload_id_mutex_);
      if (upload_id_.empty()) {
        OVPRESS_ASSIGN_OR_RETURN(std::string id,
                                 store_->options_.s3->CreateMultipart(
                                     store_->options_.bucket, row_.object_key));
        OVPRESS_RETURN_IF_ERROR(store_->index_->SetUploadId(key_, id));
        upload_id_ = std::move(id);
      }
      upload_id = upload_id_;
    }
    return store_->options_.s3->UploadPart(
        store_->PartOf(row_.object_key, upload_id, pending.part.part.number),
        {.source = spool_.get(),
         .offset = offset,
         .size = pending.part.part.size_bytes});
  }

  // Tells the index of the parts that arrived, in order, until at most
  // `in_flight` are left.
  absl::Status CommitParts(size_t in_flight) {
    while (!pending_.empty()) {
      const std::shared_ptr<Pending> first = pending_.front();
      {
        MutexLock lock(&mutex_);
        if (!first->done && pending_.size() <= in_flight) break;
        while (!first->done) changed_.Wait(&mutex_);
      }
      pending_.pop_front();
      if (!failed_.ok()) continue;  // a gap: those behind it do not count
      if (!first->sent.ok()) {
        failed_ = first->sent.status();
        continue;
      }
      first->part.part.etag = first->sent->etag;
      const absl::Status status =
          store_->index_->CommitPart(key_, row_.object_key, first->part);
      if (absl::IsAborted(status)) over_ = true;
      failed_.Update(status);
      touched_ = store_->index_->Now();
      spool_->Discard(first->part.committed_bytes - first->part.part.size_bytes,
                      first->part.part.size_bytes);
    }
    return failed_;
  }

  // Others may have stored the same meanwhile: then the owner gets theirs and
  // what was sent is thrown away.
  absl::StatusOr<bool> AdoptPresent(BlobIndex::NewBlob* blob) {
    BlobIndex& index = *store_->index_;
    const absl::StatusOr<BlobObject> present = index.Find(row_.ref);
    if (absl::IsNotFound(present.status())) return false;
    OVPRESS_RETURN_IF_ERROR(present.status());
    OVPRESS_ASSIGN_OR_RETURN(const bool intact,
                             store_->IsIntact(*present, row_.ref.size_bytes));
    if (!intact) {
      blob->replaces = present->key;
      return false;
    }
    const absl::StatusOr<int64_t> pin = index.Adopt(key_.owner, row_.ref);
    if (absl::IsNotFound(pin.status())) return false;
    OVPRESS_RETURN_IF_ERROR(pin.status());
    const absl::Status dropped = index.DropUpload(key_);
    over_ = true;
    index.Unpin({*pin});
    OVPRESS_RETURN_IF_ERROR(dropped);
    return true;
  }

  // Sends what is behind the last whole part and assembles. The last part is
  // never committed to the index: there its SHA-256 state could not be kept.
  absl::Status Complete(const std::string& last_digests,
                        BlobIndex::NewBlob* blob) {
    S3Client& s3 = *store_->options_.s3;
    OVPRESS_ASSIGN_OR_RETURN(const std::vector<UploadPartRow> rows,
                             store_->index_->UploadParts(row_.object_key));
    std::vector<S3Part> parts;
    for (const UploadPartRow& row : rows) {
      parts.push_back({.number = row.number,
                       .etag = row.etag,
                       .size_bytes = row.size_bytes});
      blob->object.block_digests += row.block_digests;
    }
    blob->object.block_digests += last_digests;
    const uint64_t size = row_.ref.size_bytes;
    if (queued_ < size) {
      Pending last;
      last.part.part.number = static_cast<int>(parts.size()) + 1;
      last.part.part.size_bytes = size - queued_;
      absl::StatusOr<S3Part> sent = SendPart(last, queued_);
      if (absl::IsNotFound(sent.status())) {
        // Assembled before by a writer that could not tell the index any more?
        // The key is ours alone, so an object under it is that one.
        const absl::StatusOr<S3Object> head =
            s3.Head(store_->options_.bucket, row_.object_key, {});
        if (head.ok() && head->size_bytes == size) {
          blob->object.etag = head->etag;
          return absl::OkStatus();
        }
      }
      OVPRESS_RETURN_IF_ERROR(sent.status());
      parts.push_back(*std::move(sent));
    }
    std::string upload_id;
    {
      MutexLock lock(&upload_id_mutex_);
      upload_id = upload_id_;
    }
    OVPRESS_ASSIGN_OR_RETURN(
        blob->object.etag,
        s3.CompleteMultipart(store_->PartOf(row_.object_key, upload_id, 0),
                             parts));
    return absl::OkStatus();
  }

  S3BlobStoreImpl* const store_;
  const BlobIndex::UploadKey key_;
  const UploadRow row_;
  const std::unique_ptr<SpoolFile> spool_;
  StreamHash hash_;
  uint64_t offset_;
  uint64_t queued_;  // in parts, sent or on their way
  absl::Time touched_;
  // Published, dropped or taken over.
  bool over_ = false;
  // Of a part: the writer is of no use any more.
  absl::Status failed_;
  std::deque<std::shared_ptr<Pending>> pending_;
  Mutex upload_id_mutex_;
  std::string upload_id_ ABSL_GUARDED_BY(upload_id_mutex_);
  Mutex mutex_;  // of the Pendings
  CondVar changed_;
};

// --- the store ---

absl::Status S3BlobStoreImpl::Start() {
  std::error_code error;
  std::filesystem::create_directories(spool_folder(), error);
  if (error) {
    return ErrnoToStatus(error.value(), "cannot make " + spool_folder());
  }
  OVPRESS_ASSIGN_OR_RETURN(
      cache_, BlockCache::Create(options_.directory + "/cache",
                                 options_.cache_bytes, kBlobBlockBytes));
  BlobIndexOptions index{.pool = options_.pool,
                         .limits = options_.limits,
                         .quotas = options_.quotas,
                         .session_lease = options_.session_lease};
  if (options_.clock != nullptr) {
    index.now = [clock = options_.clock] { return clock->Now(); };
  }
  OVPRESS_ASSIGN_OR_RETURN(index_, BlobIndex::Open(index));
  {
    MutexLock lock(&mutex_);
    renewed_ = index_->Now();
  }
  // Two indexes on one prefix would throw each other's objects away.
  OVPRESS_ASSIGN_OR_RETURN(cluster_id_, index_->ClusterId());
  const std::string& id = cluster_id_;
  const std::string marker = options_.prefix + kMarkerName;
  std::string found(id.size(), '\0');
  absl::Status read = options_.s3->GetRange(options_.bucket, marker, 0,
                                            AsWritableBytes(found), {});
  if (absl::IsNotFound(read)) {
    OVPRESS_RETURN_IF_ERROR(
        options_.s3->Put(options_.bucket, marker, {.bytes = AsBytes(id)})
            .status());
    read = options_.s3->GetRange(options_.bucket, marker, 0,
                                 AsWritableBytes(found), {});
  }
  OVPRESS_RETURN_IF_ERROR(read);
  if (found != id) {
    return absl::FailedPreconditionError(absl::StrCat(
        "s3://", options_.bucket, "/", options_.prefix,
        " belongs to another database; take another prefix, or, if that "
        "database is gone for good, remove s3://",
        options_.bucket, "/", marker));
  }
  if (options_.renew_in_background) {
    renewer_ = std::thread([this] { RenewLoop(); });
  }
  return absl::OkStatus();
}

absl::Status S3BlobStoreImpl::Fresh() {
  const absl::Time now = index_->Now();
  {
    MutexLock lock(&mutex_);
    if (now - renewed_ < options_.session_lease / 3) return absl::OkStatus();
  }
  OVPRESS_ASSIGN_OR_RETURN(const bool kept, index_->Renew());
  if (!kept) {
    Log(Observer::Severity::kError,
        "this server did not renew its session in the object store's index in "
        "time: its pins and unfinished outputs are lost");
  }
  MutexLock lock(&mutex_);
  renewed_ = index_->Now();
  return absl::OkStatus();
}

void S3BlobStoreImpl::RenewLoop() {
  const Patience patience(&closing_);
  const auto step = absl::ToChronoMilliseconds(options_.session_lease / 6);
  mutex_.Lock();
  while (!ending_) {
    ended_.WaitUntil(&mutex_, std::chrono::steady_clock::now() + step);
    if (ending_) break;
    mutex_.Unlock();
    const absl::Status status = Fresh();
    if (!status.ok()) {
      Log(Observer::Severity::kWarning,
          absl::StrCat("renewing the session: ", status.message()));
    }
    mutex_.Lock();
  }
  mutex_.Unlock();
}

absl::StatusOr<std::vector<BlobRef>> S3BlobStoreImpl::FindMissing(
    absl::string_view owner, std::span<const BlobRef> refs) {
  std::vector<BlobRef> asked;
  for (const BlobRef& ref : refs) {
    OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(ref));
    if (!IsEmptyBlob(ref)) asked.push_back(ref);
  }
  if (asked.empty()) return std::vector<BlobRef>();
  OVPRESS_RETURN_IF_ERROR(Fresh());
  return index_->FindMissing(Sha256Hex(owner), asked);
}

absl::StatusOr<std::unique_ptr<BlobPin>> S3BlobStoreImpl::Pin(
    absl::string_view owner, std::span<const BlobRef> refs) {
  std::vector<BlobRef> asked;
  for (const BlobRef& ref : refs) {
    OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(ref));
    if (!IsEmptyBlob(ref)) asked.push_back(ref);
  }
  OVPRESS_RETURN_IF_ERROR(Fresh());
  OVPRESS_ASSIGN_OR_RETURN(std::vector<int64_t> pins,
                           index_->Pin(Sha256Hex(owner), asked));
  return std::make_unique<PinImpl>(index_.get(), std::move(pins));
}

absl::StatusOr<std::unique_ptr<ByteSource>> S3BlobStoreImpl::OpenRead(
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

absl::StatusOr<std::unique_ptr<ByteSource>> S3BlobStoreImpl::OpenReadAny(
    const BlobRef& ref) {
  OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(ref));
  if (IsEmptyBlob(ref)) return MakeMemorySource({});
  OVPRESS_RETURN_IF_ERROR(Fresh());
  OVPRESS_ASSIGN_OR_RETURN(const int64_t pin, index_->PinAny(ref));
  return OpenPinned(
      ref, std::make_unique<PinImpl>(index_.get(), std::vector<int64_t>{pin}));
}

absl::StatusOr<std::unique_ptr<ByteSource>> S3BlobStoreImpl::OpenPinned(
    const BlobRef& ref, std::unique_ptr<BlobPin> pin) {
  OVPRESS_ASSIGN_OR_RETURN(BlobObject object, index_->Find(ref));
  auto blob = std::make_shared<Readable>(
      Readable{.ref = ref, .object = std::move(object)});
  // The first block tells at once whether the object is there; most readers
  // begin with it.
  OVPRESS_RETURN_IF_ERROR(GetBlock(*blob, 0).status());
  return std::make_unique<Source>(this, std::move(blob), std::move(pin));
}

absl::StatusOr<std::shared_ptr<const BlockCache::Block>>
S3BlobStoreImpl::GetBlock(const Readable& blob, uint64_t index) {
  const uint64_t size =
      std::min(kBlobBlockBytes, blob.ref.size_bytes - index * kBlobBlockBytes);
  return cache_->Get(
      blob.object.key, index, size,
      [&](std::span<std::byte> out) { return FetchBlock(blob, index, out); });
}

absl::Status S3BlobStoreImpl::FetchBlock(const Readable& blob, uint64_t index,
                                         std::span<std::byte> out) {
  {
    MutexLock lock(&mutex_);
    while (blocks_in_memory_ >= options_.max_blocks_in_memory) {
      if (Patience::Over()) {
        return absl::CancelledError("given up: it is not wanted any more");
      }
      block_freed_.WaitUntil(
          &mutex_, Patience::Next(Patience::Clock::time_point::max()));
    }
    ++blocks_in_memory_;
  }
  const auto fetch = [&]() -> absl::Status {
    if (blob.object.external) return FetchExternal(blob, index, out);
    const std::string expected = blob.object.block_digests.substr(
        index * kBlockDigestBytes, kBlockDigestBytes);
    // Once more if the digest is wrong: TCP's checksum misses some damage.
    for (int attempt = 0; attempt < 2; ++attempt) {
      const absl::Status read = options_.s3->GetRange(
          options_.bucket, blob.object.key, index * kBlobBlockBytes, out,
          {.if_match = blob.object.etag});
      if (absl::IsNotFound(read) || absl::IsFailedPrecondition(read) ||
          absl::IsOutOfRange(read) || absl::IsDataLoss(read)) {
        return Spoil(
            blob.ref, blob.object.key,
            absl::IsNotFound(read) ? "is gone" : "is not what was stored");
      }
      OVPRESS_RETURN_IF_ERROR(read);
      if (BlockDigest(out) == expected) return absl::OkStatus();
    }
    return Spoil(blob.ref, blob.object.key,
                 "does not have its digest any more");
  };
  const absl::Status status = fetch();
  MutexLock lock(&mutex_);
  --blocks_in_memory_;
  block_freed_.Signal();
  return status;
}

absl::Status S3BlobStoreImpl::FetchExternal(const Readable& blob,
                                            uint64_t index,
                                            std::span<std::byte> out) {
  const absl::string_view address = AddressOf(blob.object);
  OVPRESS_ASSIGN_OR_RETURN(const S3Location location, ParseS3Url(address));
  const absl::Status read = options_.s3->GetRange(
      location.bucket, location.key, index * kBlobBlockBytes, out,
      {.if_match = blob.object.etag});
  if (absl::IsFailedPrecondition(read) || absl::IsNotFound(read) ||
      absl::IsOutOfRange(read)) {
    return WithReason(
        absl::FailedPreconditionError(absl::StrCat(
            address, " is not what it was when the job was taken (ETag ",
            blob.object.etag, "): ", read.message(),
            "; submit the job again, and keep the model as it is meanwhile")),
        "MODEL_CHANGED");
  }
  return read;
}

absl::Status S3BlobStoreImpl::Spoil(const BlobRef& ref,
                                    const std::string& object_key,
                                    absl::string_view what) {
  if (options_.observer) options_.observer->OnBlobCorrupt(ref);
  cache_->Forget(object_key);
  OVPRESS_RETURN_IF_ERROR(index_->Drop(ref, object_key));
  return absl::DataLossError(
      absl::StrCat("stored ", BlobName(ref), " ", what,
                   "; it was set aside, upload it again or run its job again"));
}

absl::Status S3BlobStoreImpl::Verify(const BlobRef& ref) {
  if (IsEmptyBlob(ref)) return absl::OkStatus();
  OVPRESS_RETURN_IF_ERROR(Fresh());
  OVPRESS_ASSIGN_OR_RETURN(BlobObject object, index_->Find(ref));
  const Readable blob{.ref = ref, .object = std::move(object)};
  if (blob.object.external) return absl::OkStatus();  // each read is checked
  std::vector<std::byte> block(
      std::min<uint64_t>(kBlobBlockBytes, ref.size_bytes));
  Sha256Hasher hasher;
  for (uint64_t at = 0; at < ref.size_bytes; at += kBlobBlockBytes) {
    const std::span<std::byte> out = std::span(block).first(
        std::min<uint64_t>(kBlobBlockBytes, ref.size_bytes - at));
    OVPRESS_RETURN_IF_ERROR(FetchBlock(blob, at / kBlobBlockBytes, out));
    hasher.Update(out);
  }
  if (hasher.FinishHex() != ref.sha256) {
    return Spoil(ref, blob.object.key, "does not have its digest any more");
  }
  return absl::OkStatus();
}

absl::Status S3BlobStoreImpl::Release(absl::string_view owner,
                                      const BlobRef& ref) {
  OVPRESS_RETURN_IF_ERROR(Fresh());
  return index_->Release(Sha256Hex(owner), ref);
}

absl::StatusOr<bool> S3BlobStoreImpl::IsIntact(const BlobObject& object,
                                               uint64_t size_bytes) {
  const absl::StatusOr<S3Object> head =
      options_.s3->Head(options_.bucket, object.key, {});
  if (absl::IsNotFound(head.status())) return false;
  OVPRESS_RETURN_IF_ERROR(head.status());
  return head->etag == object.etag && head->size_bytes == size_bytes;
}

absl::StatusOr<S3BlobStore::Object> S3BlobStoreImpl::Locate(
    const BlobRef& ref) {
  OVPRESS_ASSIGN_OR_RETURN(BlobObject object, index_->Find(ref));
  return Object{.bucket = options_.bucket,
                .key = std::move(object.key),
                .etag = std::move(object.etag)};
}

absl::StatusOr<BlobStore::OpenedUpload> S3BlobStoreImpl::OpenUpload(
    absl::string_view owner, const UploadName& name) {
  OVPRESS_RETURN_IF_ERROR(ValidateUploadUuid(name.uuid));
  OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(name.ref));
  const StoreLimits& limits = options_.limits;
  const uint64_t size = name.ref.size_bytes;
  if (size > limits.max_blob_bytes) {
    return LimitError("the blob is too large",
                      {.limit = "max_blob_bytes",
                       .subject = "server",
                       .limit_value = limits.max_blob_bytes,
                       .requested = size});
  }
  OpenedUpload result;
  if (IsEmptyBlob(name.ref)) {
    result.already_exists = true;
    return result;
  }
  OVPRESS_RETURN_IF_ERROR(Fresh());
  const std::string hash = Sha256Hex(owner);
  OVPRESS_ASSIGN_OR_RETURN(
      BlobIndex::OpenedUpload opened,
      index_->OpenUpload({.space = {.owner_name = std::string(owner),
                                    .owner = hash,
                                    .size_bytes = size},
                          .name = name,
                          .object_key = NewKey(),
                          .part_bytes = PartBytesFor(size)}));
  if (opened.already_exists) {
    result.already_exists = true;
    return result;
  }
  UploadRow& row = opened.row;
  const BlobIndex::UploadKey key{
      .owner = hash, .uuid = name.uuid, .generation = row.generation};
  const uint64_t tail = row.tail_bytes;
  const bool resumed = row.committed_bytes + tail > 0;
  const auto open = [&]() -> absl::StatusOr<std::unique_ptr<Upload>> {
    ResumableSha256 whole;
    if (row.committed_bytes > 0) {
      OVPRESS_ASSIGN_OR_RETURN(whole, ResumableSha256::Restore(row.midstate));
    }
    OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<SpoolFile> spool,
                             SpoolFile::Create(spool_folder(), size));
    auto writer =
        std::make_unique<Upload>(this, key, row, std::move(spool),
                                 StreamHash(kBlobBlockBytes, std::move(whole)));
    if (tail > 0) OVPRESS_RETURN_IF_ERROR(writer->TakeTail());
    return writer;
  };
  absl::StatusOr<std::unique_ptr<Upload>> writer = open();
  if (!writer.ok()) {
    index_->LeaveUpload(key, "", 0).IgnoreError();
    return writer.status();
  }
  if (resumed && options_.observer) options_.observer->OnUploadResumed();
  result.writer = *std::move(writer);
  return result;
}

absl::StatusOr<UploadStatus> S3BlobStoreImpl::QueryUpload(
    absl::string_view owner, const UploadName& name) {
  OVPRESS_RETURN_IF_ERROR(ValidateUploadUuid(name.uuid));
  OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(name.ref));
  if (IsEmptyBlob(name.ref)) return UploadStatus{.complete = true};
  return index_->QueryUpload(Sha256Hex(owner), name);
}

absl::StatusOr<std::unique_ptr<SpaceReservation>> S3BlobStoreImpl::Reserve(
    absl::string_view owner, uint64_t size_bytes) {
  OVPRESS_RETURN_IF_ERROR(Fresh());
  OVPRESS_ASSIGN_OR_RETURN(const int64_t id,
                           index_->Reserve({.owner_name = std::string(owner),
                                            .owner = Sha256Hex(owner),
                                            .size_bytes = size_bytes}));
  return std::make_unique<ReservationImpl>(index_.get(), id, size_bytes);
}

absl::StatusOr<std::unique_ptr<S3BlobStoreImpl::NewObject>>
S3BlobStoreImpl::BeginObject(absl::string_view owner, uint64_t size_bytes,
                             SpaceReservation* reservation) {
  const std::string hash = Sha256Hex(owner);
  auto* const held = static_cast<ReservationImpl*>(reservation);
  BlobIndex::NewOutput output{.space = {.owner_name = std::string(owner),
                                        .owner = hash,
                                        .size_bytes = size_bytes},
                              .object_key = NewKey()};
  if (held != nullptr) {
    output.reservation = held->id_;
    output.drawn_bytes = std::min<uint64_t>(size_bytes, held->left_);
    held->left_ -= output.drawn_bytes;
  }
  const absl::StatusOr<int64_t> id = index_->BeginOutput(output);
  if (!id.ok()) {
    if (held != nullptr) held->left_ += output.drawn_bytes;
    return id.status();
  }
  return std::make_unique<NewObject>(this, hash, output.object_key, *id);
}

absl::StatusOr<std::unique_ptr<BlobWriter>> S3BlobStoreImpl::CreateOutput(
    absl::string_view owner, uint64_t size_bytes,
    SpaceReservation* reservation) {
  if (size_bytes == 0) return std::make_unique<EmptyWriter>(this);
  OVPRESS_RETURN_IF_ERROR(Fresh());
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<SpoolFile> spool,
                           SpoolFile::Create(spool_folder(), size_bytes));
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<NewObject> object,
                           BeginObject(owner, size_bytes, reservation));
  return std::make_unique<Writer>(this, std::move(object), size_bytes,
                                  std::move(spool));
}

absl::StatusOr<std::unique_ptr<ScratchBlob>> S3BlobStoreImpl::CreateScratch(
    absl::string_view owner, uint64_t size_bytes) {
  OVPRESS_RETURN_IF_ERROR(Fresh());
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<SpoolFile> file,
                           SpoolFile::Create(spool_folder(), size_bytes));
  OVPRESS_ASSIGN_OR_RETURN(const int64_t id,
                           index_->Reserve({.owner_name = std::string(owner),
                                            .owner = Sha256Hex(owner),
                                            .size_bytes = size_bytes}));
  return std::make_unique<Scratch>(index_.get(), id, std::move(file));
}

// --- bytes that lie elsewhere ---

absl::StatusOr<S3Location> S3BlobStoreImpl::CheckAddress(
    absl::string_view owner, absl::string_view address) const {
  OVPRESS_ASSIGN_OR_RETURN(S3Location location, ParseS3Url(address));
  if (location.key.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", absl::CHexEscape(address), "\" names no object"));
  }
  // Stores with folders inside would resolve these to another place than the
  // one that was allowed.
  for (const absl::string_view segment : absl::StrSplit(location.key, '/')) {
    if (segment.empty() || segment == "." || segment == "..") {
      return absl::InvalidArgumentError(
          absl::StrCat("\"", absl::CHexEscape(address),
                       "\" has an empty, \".\" or \"..\" segment"));
    }
  }
  for (const AllowedPrefix& allowed : options_.allowed) {
    if (allowed.owner.has_value() && *allowed.owner != owner) continue;
    if (absl::StartsWith(address, allowed.prefix)) return location;
  }
  return absl::PermissionDeniedError(absl::StrCat(
      "\"", absl::CHexEscape(address),
      "\" is not among the addresses that this server reads and writes for "
      "you (--allow-address)"));
}

absl::StatusOr<BlobRef> S3BlobStoreImpl::Refer(absl::string_view owner,
                                               absl::string_view address) {
  OVPRESS_ASSIGN_OR_RETURN(const S3Location location,
                           CheckAddress(owner, address));
  OVPRESS_RETURN_IF_ERROR(Fresh());
  OVPRESS_ASSIGN_OR_RETURN(
      const S3Object object,
      options_.s3->Head(location.bucket, location.key, {}));
  if (object.etag.empty()) {
    return absl::FailedPreconditionError(absl::StrCat(
        address, " has no ETag: the store cannot tell when it changes"));
  }
  if (object.size_bytes > options_.limits.max_blob_bytes) {
    return LimitError(absl::StrCat(address, " is too large"),
                      {.limit = "max_blob_bytes",
                       .subject = "server",
                       .limit_value = options_.limits.max_blob_bytes,
                       .requested = object.size_bytes});
  }
  if (object.size_bytes == 0) return BlobRefOf("");
  // Nobody outside knows the cluster's id, so nobody can upload bytes that have
  // this name.
  BlobRef ref =
      BlobRefOf(absl::StrCat(cluster_id_, "\n", address, "\n", object.etag));
  ref.size_bytes = object.size_bytes;
  OVPRESS_RETURN_IF_ERROR(index_->AddExternal(
      Sha256Hex(owner), ref,
      {.key = ExternalKey(address, object.etag), .etag = object.etag}));
  return ref;
}

absl::Status S3BlobStoreImpl::CheckExport(absl::string_view owner,
                                          absl::string_view address) {
  return CheckAddress(owner, address).status();
}

absl::Status S3BlobStoreImpl::Export(absl::string_view owner,
                                     const BlobRef& ref,
                                     absl::string_view address) {
  OVPRESS_ASSIGN_OR_RETURN(const S3Location to, CheckAddress(owner, address));
  if (IsEmptyBlob(ref)) {
    return options_.s3->Put(to.bucket, to.key, {}).status();
  }
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<BlobPin> pin,
                           Pin(owner, std::span<const BlobRef>(&ref, 1)));
  OVPRESS_ASSIGN_OR_RETURN(const BlobObject object, index_->Find(ref));
  // The store copies by itself: the bytes do not come here.
  const S3Client::Source from{
      .bucket = options_.bucket, .key = object.key, .if_match = object.etag};
  if (ref.size_bytes <= kMaxCopyBytes) {
    return options_.s3->Copy(to.bucket, to.key, from).status();
  }
  return CopyLarge(ref, from, to);
}

absl::Status S3BlobStoreImpl::CopyLarge(const BlobRef& ref,
                                        const S3Client::Source& from,
                                        const S3Location& to) {
  OVPRESS_ASSIGN_OR_RETURN(const std::string upload_id,
                           options_.s3->CreateMultipart(to.bucket, to.key));
  S3Client::PartOf part{
      .bucket = to.bucket, .key = to.key, .upload_id = upload_id};
  const auto copy = [&]() -> absl::Status {
    std::vector<S3Part> parts;
    for (uint64_t at = 0; at < ref.size_bytes; at += kMaxCopyBytes) {
      part.number = static_cast<int>(parts.size()) + 1;
      OVPRESS_ASSIGN_OR_RETURN(
          S3Part made,
          options_.s3->CopyPart(part, from, at,
                                std::min(kMaxCopyBytes, ref.size_bytes - at)));
      parts.push_back(std::move(made));
    }
    return options_.s3->CompleteMultipart(part, parts).status();
  };
  const absl::Status status = copy();
  if (!status.ok()) options_.s3->AbortMultipart(part).IgnoreError();
  return status;
}

// --- upkeep ---

void S3BlobStoreImpl::Sweep() {
  absl::Status status = Fresh();
  if (status.ok()) {
    const absl::StatusOr<BlobIndex::Swept> swept = index_->Sweep();
    status = swept.status();
    if (swept.ok() && options_.observer) {
      for (int i = 0; i < swept->expired_uploads; ++i) {
        options_.observer->OnUploadExpired();
      }
      for (const uint64_t bytes : swept->evicted_bytes) {
        options_.observer->OnBlobEvicted(bytes);
      }
    }
  }
  if (!status.ok()) {
    Log(Observer::Severity::kWarning,
        absl::StrCat("sweeping the blob index: ", status.message()));
    return;
  }
  CollectGarbage();
  CollectOrphans();
}

void S3BlobStoreImpl::CollectGarbage() {
  for (int batch = 0; batch < kGarbageBatches; ++batch) {
    const absl::StatusOr<std::vector<Garbage>> taken =
        index_->TakeGarbage(kGarbageBatch);
    if (!taken.ok() || taken->empty()) return;
    std::vector<Garbage> gone;
    for (const Garbage& one : *taken) {
      absl::Status status;
      if (!one.s3_upload_id.empty()) {
        status = options_.s3->AbortMultipart(
            PartOf(one.object_key, one.s3_upload_id, 0));
      }
      status.Update(options_.s3->Delete(options_.bucket, one.object_key));
      cache_->Forget(one.object_key);
      if (status.ok()) {
        gone.push_back(one);
      } else {
        Log(Observer::Severity::kWarning,
            absl::StrCat("removing garbage: ", status.message()));
      }
    }
    index_->GarbageGone(gone).IgnoreError();
  }
}

// What a server made and did not live to register, or registered in a database
// that was restored from an older backup since.
void S3BlobStoreImpl::CollectOrphans() {
  const absl::StatusOr<bool> turn =
      index_->TakeTurn("orphans", options_.orphan_interval);
  if (!turn.ok() || !*turn) return;
  const absl::Time oldest = index_->Now() - options_.orphan_age;
  std::string from;
  do {
    const absl::StatusOr<S3Page<S3Object>> page =
        options_.s3->List(options_.bucket, options_.prefix, from);
    if (!page.ok()) return;
    std::vector<std::string> keys;
    for (const S3Object& object : page->items) {
      if (object.modified < oldest &&
          object.key != options_.prefix + kMarkerName) {
        keys.push_back(object.key);
      }
    }
    const absl::StatusOr<std::vector<std::string>> unknown =
        index_->Unknown(keys);
    if (!unknown.ok()) return;
    for (const std::string& key : *unknown) {
      options_.s3->Delete(options_.bucket, key).IgnoreError();
    }
    from = page->next;
  } while (!from.empty());
  do {
    const absl::StatusOr<S3Page<S3Upload>> page =
        options_.s3->ListMultiparts(options_.bucket, options_.prefix, from);
    if (!page.ok()) return;
    std::vector<std::string> keys;
    for (const S3Upload& upload : page->items) {
      if (upload.started < oldest) keys.push_back(upload.key);
    }
    const absl::StatusOr<std::vector<std::string>> unknown =
        index_->Unknown(keys);
    if (!unknown.ok()) return;
    const std::set<std::string> gone(unknown->begin(), unknown->end());
    for (const S3Upload& upload : page->items) {
      if (gone.contains(upload.key)) {
        options_.s3->AbortMultipart(PartOf(upload.key, upload.id, 0))
            .IgnoreError();
      }
    }
    from = page->next;
  } while (!from.empty());
}

BlobStoreStats S3BlobStoreImpl::Stats() {
  const absl::StatusOr<BlobStoreStats> stats = index_->Stats();
  return stats.ok() ? *stats : BlobStoreStats();
}

}  // namespace

absl::StatusOr<std::unique_ptr<S3BlobStore>> S3BlobStore::Open(
    S3BlobStoreOptions options) {
  auto store = std::make_unique<S3BlobStoreImpl>(std::move(options));
  OVPRESS_RETURN_IF_ERROR(store->Start());
  return store;
}

absl::StatusOr<AllowedPrefix> ParseAllowedPrefix(absl::string_view text) {
  AllowedPrefix allowed;
  const size_t scheme = text.find("s3://");
  if (scheme != 0 && scheme != absl::string_view::npos &&
      text[scheme - 1] == '=') {
    allowed.owner = std::string(text.substr(0, scheme - 1));
    text.remove_prefix(scheme);
  }
  OVPRESS_RETURN_IF_ERROR(ParseS3Url(text).status());
  allowed.prefix = std::string(text);
  // Without it "s3://team" would open "s3://team-b" as well.
  if (!absl::EndsWith(allowed.prefix, "/")) allowed.prefix += "/";
  return allowed;
}

uint64_t PartBytesFor(uint64_t size_bytes) {
  constexpr uint64_t kTargetParts = 256;
  constexpr uint64_t kMaxPart = 64ull << 20;
  const auto round_up = [](uint64_t bytes) {
    return std::max<uint64_t>(1,
                              (bytes + kBlobBlockBytes - 1) / kBlobBlockBytes) *
           kBlobBlockBytes;
  };
  return std::max(std::min(round_up(size_bytes / kTargetParts), kMaxPart),
                  round_up(size_bytes / kS3MaxParts + 1));
}

}  // namespace ovpress
