#include "server/rpc/spool.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ovpress {

// Blocks that are free: allocating anew would fault their pages in each time.
class Spool::BlockPool : public std::enable_shared_from_this<BlockPool> {
 public:
  explicit BlockPool(uint64_t blocks_max) : blocks_max_(blocks_max) {}
  Block Take() {
    std::unique_ptr<std::byte[]> block;
    {
      MutexLock lock(&mutex_);
      if (!free_.empty()) {
        block = std::move(free_.back());
        free_.pop_back();
      }
    }
    if (block == nullptr) block.reset(new std::byte[kBlockBytes]);
    return Block(block.release(), [pool = shared_from_this()](std::byte* done) {
      pool->Give(std::unique_ptr<std::byte[]>(done));
    });
  }

 private:
  void Give(std::unique_ptr<std::byte[]> block) {
    MutexLock lock(&mutex_);
    if (free_.size() < blocks_max_) free_.push_back(std::move(block));
  }
  const uint64_t blocks_max_;
  Mutex mutex_;
  std::vector<std::unique_ptr<std::byte[]>> free_ ABSL_GUARDED_BY(mutex_);
};

Spool::Spool(Args args)
    : args_(std::move(args)),
      memory_blocks_max_(
          std::max<uint64_t>(1, args_.memory_bytes / kBlockBytes)),
      pool_(std::make_shared<BlockPool>(memory_blocks_max_)),
      places_((args_.size_bytes + kBlockBytes - 1) / kBlockBytes) {}

Spool::~Spool() = default;

absl::Status Spool::MakeFile() {
  if (scratch_ != nullptr) return absl::OkStatus();
  OVPRESS_ASSIGN_OR_RETURN(scratch_, args_.make_scratch());
  file_ = scratch_.get();
  return absl::OkStatus();
}

absl::Status Spool::ReserveFile() {
  MutexLock lock(&mutex_);
  return MakeFile();
}

bool Spool::memory_full() {
  MutexLock lock(&mutex_);
  return memory_blocks_ >= memory_blocks_max_;
}

absl::StatusOr<Spool::Place> Spool::PlaceOf(uint64_t block, bool make) {
  MutexLock lock(&mutex_);
  if (block < dropped_blocks_ || block >= places_.size()) {
    return absl::InternalError(
        absl::StrCat("block ", block,
                     " of the spool was dropped or is beyond "
                     "its end"));
  }
  Place& place = places_[block];
  if (place.memory != nullptr || place.on_disk) return place;
  if (!make) {
    return absl::InternalError(
        absl::StrCat("block ", block, " of the spool was never written"));
  }
  if (memory_blocks_ < memory_blocks_max_) {
    place.memory = pool_->Take();
    ++memory_blocks_;
  } else {
    OVPRESS_RETURN_IF_ERROR(MakeFile());
    place.on_disk = true;
  }
  return place;
}

absl::Status Spool::ReadAt(uint64_t offset, std::span<std::byte> out) {
  while (!out.empty()) {
    const uint64_t in_block = offset % kBlockBytes;
    const size_t part = static_cast<size_t>(
        std::min<uint64_t>(out.size(), kBlockBytes - in_block));
    OVPRESS_ASSIGN_OR_RETURN(const Place place,
                             PlaceOf(offset / kBlockBytes, /*make=*/false));
    if (place.on_disk) {
      OVPRESS_RETURN_IF_ERROR(file_->ReadAt(offset, out.first(part)));
    } else {
      std::memcpy(out.data(), place.memory.get() + in_block, part);
    }
    offset += part;
    out = out.subspan(part);
  }
  return absl::OkStatus();
}

absl::Status Spool::WriteAt(uint64_t offset, std::span<const std::byte> bytes) {
  while (!bytes.empty()) {
    const uint64_t in_block = offset % kBlockBytes;
    const size_t part = static_cast<size_t>(
        std::min<uint64_t>(bytes.size(), kBlockBytes - in_block));
    OVPRESS_ASSIGN_OR_RETURN(const Place place,
                             PlaceOf(offset / kBlockBytes, /*make=*/true));
    if (place.on_disk) {
      OVPRESS_RETURN_IF_ERROR(file_->WriteAt(offset, bytes.first(part)));
    } else {
      std::memcpy(place.memory.get() + in_block, bytes.data(), part);
    }
    offset += part;
    bytes = bytes.subspan(part);
  }
  return absl::OkStatus();
}

absl::StatusOr<grpc::Slice> Spool::SliceAt(uint64_t offset, uint64_t size_max) {
  const uint64_t in_block = offset % kBlockBytes;
  const size_t size = static_cast<size_t>(
      std::min({size_max, kBlockBytes - in_block, args_.size_bytes - offset}));
  OVPRESS_ASSIGN_OR_RETURN(Place place,
                           PlaceOf(offset / kBlockBytes, /*make=*/false));
  if (place.on_disk) {
    place.memory = pool_->Take();
    OVPRESS_RETURN_IF_ERROR(
        file_->ReadAt(offset, std::span<std::byte>(place.memory.get(), size)));
    offset = 0;
  } else {
    offset = in_block;
  }
  std::byte* const data = place.memory.get() + offset;
  auto* const owner = new Block(std::move(place.memory));
  return grpc::Slice(
      data, size, [](void* block) { delete static_cast<Block*>(block); },
      owner);
}

void Spool::DropBelow(uint64_t offset) {
  MutexLock lock(&mutex_);
  const uint64_t end = std::min<uint64_t>(places_.size(), offset / kBlockBytes);
  for (; dropped_blocks_ < end; ++dropped_blocks_) {
    Place& place = places_[dropped_blocks_];
    if (place.memory == nullptr) continue;
    --memory_blocks_;
    place.memory.reset();
  }
}

}  // namespace ovpress
