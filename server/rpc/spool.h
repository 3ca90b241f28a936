// Bytes on their way through a CompressStream: those that lie between what was
// dropped and what was written are in memory up to a limit, the rest in a
// scratch file that is made when it is first needed.
#ifndef OVPRESS_SERVER_RPC_SPOOL_H_
#define OVPRESS_SERVER_RPC_SPOOL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/io.h"
#include "core/base/mutex.h"
#include "grpcpp/support/slice.h"
#include "server/jobs/blob_store.h"

namespace ovpress {

// Thread-safe for disjoint ranges, like ByteSink. Each block of 1 MiB is in
// memory or in the file for all of its life.
class Spool final : public ByteSource, public ByteSink {
 public:
  static constexpr uint64_t kBlockBytes = 1 << 20;
  struct Args {
    uint64_t size_bytes = 0;
    // Rounded up to one block.
    uint64_t memory_bytes = 0;
    // Makes the file, of size_bytes; called at most once. REQUIRED.
    std::function<absl::StatusOr<std::unique_ptr<ScratchBlob>>()> make_scratch;
  };
  explicit Spool(Args args);
  ~Spool() override;

  uint64_t size_bytes() const override { return args_.size_bytes; }
  // kInternal below DropBelow(), or where nothing was written.
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override;
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override;
  // The bytes from `offset` to the end of their block, at most `size_max`,
  // without a copy if they are in memory. REQUIRES: they were written and do
  // not change any more.
  absl::StatusOr<grpc::Slice> SliceAt(uint64_t offset, uint64_t size_max);
  // Bytes below `offset` are needed no more.
  void DropBelow(uint64_t offset);
  // The next block that is written to goes to the file.
  bool memory_full();
  // Makes the file now, so that a lack of disk is known early.
  absl::Status ReserveFile();

 private:
  // A block goes back to the pool when its last user, which may be gRPC, lets
  // go of it.
  using Block = std::shared_ptr<std::byte[]>;
  class BlockPool;
  struct Place {
    Block memory;
    bool on_disk = false;
  };
  absl::StatusOr<Place> PlaceOf(uint64_t block, bool make);
  absl::Status MakeFile() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const Args args_;
  const uint64_t memory_blocks_max_;
  const std::shared_ptr<BlockPool> pool_;
  Mutex mutex_;
  std::vector<Place> places_ ABSL_GUARDED_BY(mutex_);
  uint64_t memory_blocks_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t dropped_blocks_ ABSL_GUARDED_BY(mutex_) = 0;
  std::unique_ptr<ScratchBlob> scratch_ ABSL_GUARDED_BY(mutex_);
  ScratchBlob* file_ = nullptr;  // set once, before any block is on disk
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_SPOOL_H_
