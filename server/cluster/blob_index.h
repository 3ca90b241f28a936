// What the servers know together about the blobs in the object store: which
// object holds which bytes, who owns them, who uses them, what is on its way
// and what is to be thrown away. In PostgreSQL; every method is one transaction
// or statement, none does anything slow.
//
// An object exists for the index before it exists in the store: whoever makes
// one registers its key first. A server that dies leaves rows behind whose
// session ends; the others turn them into garbage and remove the objects. The
// row is the fencing token, too: publishing takes it away, and who finds it
// gone (frozen for too long) publishes nothing.
#ifndef OVPRESS_SERVER_CLUSTER_BLOB_INDEX_H_
#define OVPRESS_SERVER_CLUSTER_BLOB_INDEX_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/cluster/pg.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/limits.h"
#include "server/jobs/quotas.h"

namespace ovpress {

struct BlobIndexOptions {
  PgPool* pool = nullptr;  // REQUIRED; outlives the index
  StoreLimits limits;
  const QuotaSource* quotas = nullptr;  // may be null; outlives the index
  // A server that did not renew its session for so long has lost its pins,
  // reservations and unfinished outputs.
  absl::Duration session_lease = absl::Seconds(60);
  // What time it is; the same for all servers that share the index. Null: the
  // database's clock, asked at each renewal. For tests.
  std::function<absl::Time()> now;
};

// One object with a blob's bytes.
struct BlobObject {
  std::string key;
  std::string etag;
  // Of each block (kBlobBlockBytes) the first 16 bytes of its SHA-256, one
  // behind the other.
  std::string block_digests;
  // Not ours: `key` is "s3://bucket/key#version", there are no digests.
  bool external = false;
};

struct UploadRow {
  BlobRef ref;
  std::string object_key;
  std::string s3_upload_id;  // "": no part yet
  uint64_t part_bytes = 0;
  uint64_t committed_bytes = 0;  // in parts
  std::string midstate;          // of SHA-256 at committed_bytes; "" at 0
  uint64_t tail_bytes = 0;       // behind them, in an object of their own:
  std::string tail_key;
  int64_t generation = 0;
};

struct UploadPartRow {
  int number = 0;
  std::string etag;
  uint64_t size_bytes = 0;
  std::string block_digests;
};

// Something in the object store to be removed.
struct Garbage {
  std::string object_key;
  std::string s3_upload_id;
};

// Thread-safe.
class BlobIndex {
 public:
  // Brings the schema up to date and begins a session.
  static absl::StatusOr<std::unique_ptr<BlobIndex>> Open(
      BlobIndexOptions options);
  ~BlobIndex();

  absl::Time Now() const;
  // Which session this is; changes when one was lost.
  std::string session() const;

  // --- blobs; `owner` is a hash everywhere but in names for messages ---

  // Those of `refs` that are missing, each once.
  absl::StatusOr<std::vector<BlobRef>> FindMissing(
      const std::string& owner, std::span<const BlobRef> refs);
  // Ids of the pins; kFailedPrecondition with the missing ones.
  absl::StatusOr<std::vector<int64_t>> Pin(const std::string& owner,
                                           std::span<const BlobRef> refs);
  // Whoever owns it; kNotFound.
  absl::StatusOr<int64_t> PinAny(const BlobRef& ref);
  // Never fails: what the database does not take now goes with a later renewal,
  // or with the session.
  void Unpin(const std::vector<int64_t>& pins);
  absl::StatusOr<BlobObject> Find(const BlobRef& ref);  // kNotFound
  absl::Status Release(const std::string& owner, const BlobRef& ref);
  // Bytes of somebody else as a blob of `owner`; counts in no limit.
  absl::Status AddExternal(const std::string& owner, const BlobRef& ref,
                           const BlobObject& object);
  // Removes a blob that is damaged, whoever owns it, if that object still is
  // its.
  absl::Status Drop(const BlobRef& ref, const std::string& object_key);

  // --- space ---

  struct Space {
    std::string owner_name;  // for messages
    std::string owner;
    uint64_t size_bytes = 0;
  };
  absl::StatusOr<int64_t> Reserve(const Space& space);
  void Unreserve(int64_t id);

  // --- outputs ---

  // Registers a new object and reserves space for it, `drawn_bytes` of which
  // come from `reservation`. Returns the id of the object's own reservation.
  struct NewOutput {
    Space space;
    std::string object_key;
    int64_t reservation = 0;
    uint64_t drawn_bytes = 0;
  };
  absl::StatusOr<int64_t> BeginOutput(const NewOutput& output);
  // kAborted if the object is no longer registered: the session was lost.
  absl::Status SetUploadId(const std::string& object_key,
                           const std::string& s3_upload_id);
  // Makes the registered object a blob of `owner` and pins it. If the blob is
  // there already in an object other than `replaces`, that one stays and ours
  // becomes garbage. kAborted as above.
  struct NewBlob {
    std::string owner;
    BlobRef ref;
    BlobObject object;
    std::string replaces;  // object key of a damaged one; "": none
  };
  absl::StatusOr<int64_t> Publish(const NewBlob& blob);
  // As Publish for a blob that is there; kNotFound if it is not any more.
  absl::StatusOr<int64_t> Adopt(const std::string& owner, const BlobRef& ref);
  // The registered object is not wanted.
  void Abandon(const std::string& object_key);

  // --- uploads ---

  struct OpenedUpload {
    bool already_exists = false;
    UploadRow row;
  };
  // As BlobStore::OpenUpload, but for the bytes. `object_key` and `part_bytes`
  // are for a new one.
  struct NewUpload {
    Space space;
    UploadName name;
    std::string object_key;
    uint64_t part_bytes = 0;
  };
  absl::StatusOr<OpenedUpload> OpenUpload(const NewUpload& upload);
  absl::StatusOr<UploadStatus> QueryUpload(const std::string& owner,
                                           const UploadName& name);
  // The rest is for the writer of `generation`: kAborted for others.
  struct UploadKey {
    std::string owner;
    std::string uuid;
    int64_t generation = 0;
  };
  absl::Status TouchUpload(const UploadKey& key);
  absl::Status SetUploadId(const UploadKey& key,
                           const std::string& s3_upload_id);
  struct CommittedPart {
    UploadPartRow part;
    uint64_t committed_bytes = 0;
    std::string midstate;
  };
  absl::Status CommitPart(const UploadKey& key, const std::string& object_key,
                          const CommittedPart& part);
  absl::StatusOr<std::vector<UploadPartRow>> UploadParts(
      const std::string& object_key);
  // Lets go of the upload. With a `tail_key` so many bytes behind the last
  // committed part lie in that object now; without, what was known of the tail
  // stays.
  absl::Status LeaveUpload(const UploadKey& key, const std::string& tail_key,
                           uint64_t tail_bytes);
  // The upload becomes a blob; `object.key` is the upload's.
  absl::Status PublishUpload(const UploadKey& key, const NewBlob& blob);
  absl::Status DropUpload(const UploadKey& key);

  // --- upkeep ---

  // Renews the session (or begins a new one: then false, and all pins and
  // unfinished outputs of before are void).
  absl::StatusOr<bool> Renew();
  struct Swept {
    int expired_uploads = 0;
    std::vector<uint64_t> evicted_bytes;
  };
  // Expires uploads and sessions, evicts down to the limit.
  absl::StatusOr<Swept> Sweep();
  // Some of the garbage, for the caller to remove; others do not get it for a
  // minute.
  absl::StatusOr<std::vector<Garbage>> TakeGarbage(int limit);
  absl::Status GarbageGone(const std::vector<Garbage>& garbage);
  // Those of `keys` that the index knows nothing of.
  absl::StatusOr<std::vector<std::string>> Unknown(
      const std::vector<std::string>& keys);
  // True for one caller in `interval`, over all servers.
  absl::StatusOr<bool> TakeTurn(const std::string& what,
                                absl::Duration interval);
  // A name for this index, made once.
  absl::StatusOr<std::string> ClusterId();
  absl::StatusOr<BlobStoreStats> Stats();

 private:
  explicit BlobIndex(BlobIndexOptions options);
  int64_t NowMicros() const { return absl::ToUnixMicros(Now()); }
  absl::Status MakeRoom(PgSession& session, const Space& space,
                        std::vector<uint64_t>* evicted);
  absl::Status MakeOwnRoom(PgSession& session, const Space& space,
                           uint64_t most, std::vector<uint64_t>* evicted);
  // Bytes that the store, or the owner's share, has more now; nullopt: none.
  absl::StatusOr<std::optional<uint64_t>> EvictOne(PgSession& session);
  absl::StatusOr<std::optional<uint64_t>> EvictOneOf(
      PgSession& session, const std::string& owner,
      std::vector<uint64_t>* evicted);
  OwnerQuota QuotaOf(const Space& space) const;
  absl::Status PutBlob(PgSession& session, const NewBlob& blob, bool* is_new);
  absl::StatusOr<int64_t> AddPin(PgSession& session, const BlobRef& ref);

  const BlobIndexOptions options_;
  // Condition of SQL: nobody uses blob b.
  std::string not_used_;
  // Of the database's clock against ours.
  std::atomic<int64_t> skew_micros_{0};

  struct State;
  const std::unique_ptr<State> state_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_BLOB_INDEX_H_
