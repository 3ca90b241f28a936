// Blocks of immutable objects on the local disk: what keeps windows of 64 KiB
// from becoming requests. Least recently used ones go when the limit is met.
#ifndef OVPRESS_SERVER_CLUSTER_BLOCK_CACHE_H_
#define OVPRESS_SERVER_CLUSTER_BLOCK_CACHE_H_

#include <cstdint>
#include <functional>
#include <list>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/base/mutex.h"

namespace ovpress {

struct BlockCacheStats {
  uint64_t bytes = 0;
  uint64_t hits = 0;
  uint64_t misses = 0;
};

// Thread-safe.
class BlockCache {
 public:
  // Fills its argument, whose size is the block's.
  using Load = std::function<absl::Status(std::span<std::byte>)>;
  // Bytes of one block; lives on when the block is evicted.
  class Block {
   public:
    virtual ~Block() = default;
    virtual absl::Status Read(uint64_t offset,
                              std::span<std::byte> out) const = 0;
  };

  // All in one temporary file in `folder`, made if missing. Blocks that the
  // disk has no room for stay in memory for as long as somebody reads them.
  // `block_bytes` is the largest block.
  static absl::StatusOr<std::unique_ptr<BlockCache>> Create(
      const std::string& folder, uint64_t limit_bytes, uint64_t block_bytes);
  ~BlockCache();

  // The block, by `load` if it is not there. One load at a time for a block:
  // others wait for it. A failed load is not kept.
  absl::StatusOr<std::shared_ptr<const Block>> Get(absl::string_view object,
                                                   uint64_t index,
                                                   uint64_t size_bytes,
                                                   const Load& load);
  bool Has(absl::string_view object, uint64_t index);
  // Drops the blocks of an object.
  void Forget(absl::string_view object);
  BlockCacheStats Stats();

 private:
  using Key = std::pair<std::string, uint64_t>;
  struct Entry {
    std::shared_ptr<const Block> block;  // null: being loaded
    uint64_t size_bytes = 0;
    std::list<Key>::iterator use;
  };
  class Slots;
  class DiskBlock;
  BlockCache(std::shared_ptr<Slots> slots, uint64_t limit_bytes);
  absl::StatusOr<std::shared_ptr<const Block>> LoadBlock(uint64_t size_bytes,
                                                         const Load& load);
  void Evict() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_);

  const std::shared_ptr<Slots> slots_;
  const uint64_t limit_bytes_;
  Mutex mutex_;
  CondVar loaded_;
  std::map<Key, Entry> entries_ ABSL_GUARDED_BY(mutex_);
  std::list<Key> by_use_ ABSL_GUARDED_BY(mutex_);  // front: longest unused
  BlockCacheStats stats_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_BLOCK_CACHE_H_
