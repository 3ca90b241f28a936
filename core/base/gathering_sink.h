// Makes few large, aligned writes of many small ones that come in any order.
//
// Why: each write to a file takes its inode's lock, and a page cache made in
// large aligned blocks costs a fraction of one made of odd pieces. Measured in
// docs/performance.md.
#ifndef OVPRESS_CORE_BASE_GATHERING_SINK_H_
#define OVPRESS_CORE_BASE_GATHERING_SINK_H_

#include <cstdint>
#include <map>
#include <memory>
#include <span>
#include <utility>
#include <vector>

#include "absl/base/thread_annotations.h"
#include "absl/status/status.h"
#include "core/base/io.h"
#include "core/base/mutex.h"

namespace ovpress {

// Whole blocks go straight to `to`; the rest waits in memory until its block is
// complete. WriteAt is thread-safe for disjoint ranges, and so must that of
// `to` be. No byte may be written twice. Nothing is written when it is
// destroyed: call Flush().
class GatheringSink final : public ByteSink {
 public:
  static constexpr uint64_t kBlockBytes = 64 << 10;
  // So many incomplete blocks are held (8 MiB); of more, the one that was
  // longest without news is written as it is.
  static constexpr size_t kBlocksMax = 128;

  // `size_bytes`: of the whole output; nothing is written beyond. `to` outlives
  // the sink.
  GatheringSink(ByteSink* to, uint64_t size_bytes)
      : to_(to), size_bytes_(size_bytes) {}

  // kInternal beyond the size; errors of `to`, also those of writing what came
  // with earlier calls.
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override;
  // Writes what is still held. Not while a WriteAt is under way.
  absl::Status Flush();

 private:
  struct Block {
    std::unique_ptr<std::byte[]> bytes;
    // What has come, [begin, end) within the block: sorted, apart.
    std::vector<std::pair<uint32_t, uint32_t>> ranges;
    uint64_t last_use = 0;
  };

  // Bytes within one block.
  absl::Status Keep(uint64_t offset, std::span<const std::byte> bytes);
  uint64_t LengthOf(uint64_t index) const;
  absl::Status WriteOut(uint64_t index, const Block& block);
  void Recycle(Block block);

  ByteSink* const to_;
  const uint64_t size_bytes_;
  Mutex mutex_;
  std::map<uint64_t, Block> blocks_ ABSL_GUARDED_BY(mutex_);  // by index
  std::vector<std::unique_ptr<std::byte[]>> free_ ABSL_GUARDED_BY(mutex_);
  uint64_t uses_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_GATHERING_SINK_H_
