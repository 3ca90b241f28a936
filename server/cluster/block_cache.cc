#include "server/cluster/block_cache.h"

#include <filesystem>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/patience.h"
#include "core/base/status_macros.h"
#include "server/cluster/spool_file.h"

namespace ovpress {

// The file, in places of one block each. A place is free again when the last
// reader of its block is gone, which may be after its eviction.
class BlockCache::Slots {
 public:
  Slots(std::unique_ptr<SpoolFile> file, uint64_t slot_bytes)
      : file_(std::move(file)), slot_bytes_(slot_bytes) {}
  uint64_t Take() {
    MutexLock lock(&mutex_);
    if (free_.empty()) return next_++;
    const uint64_t slot = free_.back();
    free_.pop_back();
    return slot;
  }
  void GiveBack(uint64_t slot) {
    file_->Discard(slot * slot_bytes_, slot_bytes_);
    MutexLock lock(&mutex_);
    free_.push_back(slot);
  }
  SpoolFile& file() { return *file_; }
  uint64_t slot_bytes() const { return slot_bytes_; }

 private:
  const std::unique_ptr<SpoolFile> file_;
  const uint64_t slot_bytes_;
  Mutex mutex_;
  std::vector<uint64_t> free_ ABSL_GUARDED_BY(mutex_);
  uint64_t next_ ABSL_GUARDED_BY(mutex_) = 0;
};

class BlockCache::DiskBlock final : public BlockCache::Block {
 public:
  explicit DiskBlock(std::shared_ptr<Slots> slots)
      : slots_(std::move(slots)), slot_(slots_->Take()) {}
  ~DiskBlock() override { slots_->GiveBack(slot_); }
  absl::Status Write(std::span<const std::byte> bytes) {
    return slots_->file().WriteAt(slot_ * slots_->slot_bytes(), bytes);
  }
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const override {
    return slots_->file().ReadAt(slot_ * slots_->slot_bytes() + offset, out);
  }

 private:
  const std::shared_ptr<Slots> slots_;
  const uint64_t slot_;
};

namespace {

class MemoryBlock final : public BlockCache::Block {
 public:
  explicit MemoryBlock(std::vector<std::byte> bytes)
      : bytes_(std::move(bytes)), source_(MakeMemorySource(bytes_)) {}
  absl::Status Read(uint64_t offset, std::span<std::byte> out) const override {
    return source_->ReadAt(offset, out);
  }

 private:
  const std::vector<std::byte> bytes_;
  const std::unique_ptr<ByteSource> source_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<BlockCache>> BlockCache::Create(
    const std::string& folder, uint64_t limit_bytes, uint64_t block_bytes) {
  std::error_code error;
  std::filesystem::create_directories(folder, error);
  if (error) {
    return ErrnoToStatus(error.value(), absl::StrCat("cannot make ", folder));
  }
  // Room beyond the limit: evicted blocks that are still read.
  constexpr uint64_t kSlackBytes = 16ull << 30;
  OVPRESS_ASSIGN_OR_RETURN(
      std::unique_ptr<SpoolFile> file,
      SpoolFile::Create(folder, limit_bytes + kSlackBytes));
  return std::unique_ptr<BlockCache>(new BlockCache(
      std::make_shared<Slots>(std::move(file), block_bytes), limit_bytes));
}

BlockCache::BlockCache(std::shared_ptr<Slots> slots, uint64_t limit_bytes)
    : slots_(std::move(slots)), limit_bytes_(limit_bytes) {}
BlockCache::~BlockCache() = default;

absl::StatusOr<std::shared_ptr<const BlockCache::Block>> BlockCache::LoadBlock(
    uint64_t size_bytes, const Load& load) {
  std::vector<std::byte> bytes(size_bytes);
  OVPRESS_RETURN_IF_ERROR(load(bytes));
  auto block = std::make_shared<DiskBlock>(slots_);
  if (block->Write(bytes).ok()) return block;
  return std::make_shared<MemoryBlock>(std::move(bytes));
}

absl::StatusOr<std::shared_ptr<const BlockCache::Block>> BlockCache::Get(
    absl::string_view object, uint64_t index, uint64_t size_bytes,
    const Load& load) {
  const Key key(object, index);
  {
    MutexLock lock(&mutex_);
    for (;;) {
      const auto it = entries_.find(key);
      if (it == entries_.end()) break;
      if (it->second.block != nullptr) {
        ++stats_.hits;
        by_use_.splice(by_use_.end(), by_use_, it->second.use);
        return it->second.block;
      }
      if (Patience::Over()) {
        return absl::CancelledError("given up: it is not wanted any more");
      }
      loaded_.WaitUntil(&mutex_,
                        Patience::Next(Patience::Clock::time_point::max()));
    }
    ++stats_.misses;
    entries_[key] = {.size_bytes = size_bytes,
                     .use = by_use_.insert(by_use_.end(), key)};
    stats_.bytes += size_bytes;
    Evict();
  }
  absl::StatusOr<std::shared_ptr<const Block>> block =
      LoadBlock(size_bytes, load);
  MutexLock lock(&mutex_);
  const auto it = entries_.find(key);
  // In memory only, it must not stay: the limit is one of the disk.
  const bool keep =
      block.ok() && dynamic_cast<const DiskBlock*>(block->get()) != nullptr;
  if (it != entries_.end() && it->second.block == nullptr) {
    if (keep) {
      it->second.block = *block;
    } else {
      stats_.bytes -= it->second.size_bytes;
      by_use_.erase(it->second.use);
      entries_.erase(it);
    }
  }
  Evict();  // those that were on their way could not go before
  loaded_.SignalAll();
  return block;
}

bool BlockCache::Has(absl::string_view object, uint64_t index) {
  MutexLock lock(&mutex_);
  return entries_.count(Key(object, index)) != 0;
}

void BlockCache::Evict() {
  auto next = by_use_.begin();
  while (stats_.bytes > limit_bytes_ && next != by_use_.end()) {
    const auto it = entries_.find(*next);
    if (it->second.block == nullptr) {  // on its way: somebody waits for it
      ++next;
      continue;
    }
    stats_.bytes -= it->second.size_bytes;
    entries_.erase(it);
    next = by_use_.erase(next);
  }
}

void BlockCache::Forget(absl::string_view object) {
  MutexLock lock(&mutex_);
  auto it = entries_.lower_bound(Key(object, 0));
  while (it != entries_.end() && it->first.first == object) {
    if (it->second.block == nullptr) {
      ++it;
      continue;
    }
    stats_.bytes -= it->second.size_bytes;
    by_use_.erase(it->second.use);
    it = entries_.erase(it);
  }
}

BlockCacheStats BlockCache::Stats() {
  MutexLock lock(&mutex_);
  return stats_;
}

}  // namespace ovpress
