#include "core/base/gathering_sink.h"

#include <algorithm>
#include <cstring>
#include <optional>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

using Ranges = std::vector<std::pair<uint32_t, uint32_t>>;

// Adds [begin, end), which overlaps none of them.
void AddRange(uint32_t begin, uint32_t end, Ranges* ranges) {
  auto after = std::lower_bound(ranges->begin(), ranges->end(),
                                std::make_pair(begin, end));
  if (after != ranges->end() && after->first == end) {
    after->first = begin;
  } else {
    after = ranges->insert(after, {begin, end});
  }
  if (after == ranges->begin()) return;
  const auto before = after - 1;
  if (before->second != begin) return;
  before->second = after->second;
  ranges->erase(after);
}

}  // namespace

uint64_t GatheringSink::LengthOf(uint64_t index) const {
  return std::min(kBlockBytes, size_bytes_ - index * kBlockBytes);
}

absl::Status GatheringSink::WriteAt(uint64_t offset,
                                    std::span<const std::byte> bytes) {
  if (offset > size_bytes_ || bytes.size() > size_bytes_ - offset) {
    return absl::InternalError(absl::StrCat("output bytes ", offset, " to ",
                                            offset + bytes.size(),
                                            " leave the output of ",
                                            size_bytes_));
  }
  const uint64_t end = offset + bytes.size();
  const uint64_t whole_begin =
      (offset + kBlockBytes - 1) / kBlockBytes * kBlockBytes;
  // The last block may be short.
  const uint64_t whole_end =
      end == size_bytes_ ? end : end / kBlockBytes * kBlockBytes;
  if (whole_begin >= whole_end) {
    // At most one boundary is within.
    const uint64_t cut = std::min(end, whole_begin);
    OVPRESS_RETURN_IF_ERROR(Keep(offset, bytes.first(cut - offset)));
    return Keep(cut, bytes.subspan(cut - offset));
  }
  OVPRESS_RETURN_IF_ERROR(Keep(offset, bytes.first(whole_begin - offset)));
  OVPRESS_RETURN_IF_ERROR(to_->WriteAt(
      whole_begin, bytes.subspan(whole_begin - offset, whole_end - whole_begin)));
  return Keep(whole_end, bytes.subspan(whole_end - offset));
}

absl::Status GatheringSink::Keep(uint64_t offset,
                                 std::span<const std::byte> bytes) {
  if (bytes.empty()) return absl::OkStatus();
  const uint64_t index = offset / kBlockBytes;
  const auto begin = static_cast<uint32_t>(offset % kBlockBytes);
  const auto end = static_cast<uint32_t>(begin + bytes.size());
  // Taken out of the map to be written without the lock.
  std::optional<std::pair<uint64_t, Block>> full;
  std::optional<std::pair<uint64_t, Block>> evicted;
  {
    MutexLock lock(&mutex_);
    auto found = blocks_.find(index);
    if (found == blocks_.end()) {
      if (blocks_.size() >= kBlocksMax) {
        const auto oldest = std::min_element(
            blocks_.begin(), blocks_.end(), [](const auto& a, const auto& b) {
              return a.second.last_use < b.second.last_use;
            });
        evicted.emplace(oldest->first, std::move(oldest->second));
        blocks_.erase(oldest);
      }
      Block block;
      if (free_.empty()) {
        block.bytes = std::make_unique_for_overwrite<std::byte[]>(kBlockBytes);
      } else {
        block.bytes = std::move(free_.back());
        free_.pop_back();
      }
      found = blocks_.emplace(index, std::move(block)).first;
    }
    Block& block = found->second;
    std::memcpy(block.bytes.get() + begin, bytes.data(), bytes.size());
    AddRange(begin, end, &block.ranges);
    block.last_use = ++uses_;
    if (block.ranges.size() == 1 && block.ranges[0].first == 0 &&
        block.ranges[0].second == LengthOf(index)) {
      full.emplace(index, std::move(block));
      blocks_.erase(found);
    }
  }
  absl::Status status;
  for (auto* out : {&evicted, &full}) {
    if (!out->has_value()) continue;
    status.Update(WriteOut((*out)->first, (*out)->second));
    Recycle(std::move((*out)->second));
  }
  return status;
}

absl::Status GatheringSink::WriteOut(uint64_t index, const Block& block) {
  for (const auto& [begin, end] : block.ranges) {
    OVPRESS_RETURN_IF_ERROR(to_->WriteAt(
        index * kBlockBytes + begin,
        std::span<const std::byte>(block.bytes.get() + begin, end - begin)));
  }
  return absl::OkStatus();
}

void GatheringSink::Recycle(Block block) {
  MutexLock lock(&mutex_);
  free_.push_back(std::move(block.bytes));
}

absl::Status GatheringSink::Flush() {
  std::map<uint64_t, Block> blocks;
  {
    MutexLock lock(&mutex_);
    blocks.swap(blocks_);
    free_.clear();
  }
  for (const auto& [index, block] : blocks) {
    OVPRESS_RETURN_IF_ERROR(WriteOut(index, block));
  }
  return absl::OkStatus();
}

}  // namespace ovpress
