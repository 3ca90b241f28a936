#include "core/engine/weight_reader.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <utility>

#include "core/base/status_macros.h"
#include "core/quant/kernels.h"

namespace ovpress {

BufferPool& BufferPool::Shared() {
  static BufferPool& pool = *new BufferPool();  // never destroyed
  return pool;
}

BufferPool::Buffer BufferPool::Take(size_t size) {
  Buffer buffer;
  {
    std::lock_guard<std::mutex> lock(mutex_);
    // The last one given back that is large enough: it is in a cache still.
    for (size_t i = free_.size(); i-- > 0 && buffer == nullptr;) {
      if (free_[i]->size() < size) continue;
      buffer = std::move(free_[i]);
      free_.erase(free_.begin() + static_cast<ptrdiff_t>(i));
    }
    if (buffer == nullptr && !free_.empty()) {
      buffer = std::move(free_.back());
      free_.pop_back();
    }
    if (buffer != nullptr) free_bytes_ -= buffer->size();
  }
  if (buffer == nullptr) buffer = std::make_unique<std::vector<std::byte>>();
  if (buffer->size() < size) {
    // Not resize(): the old contents need no copy.
    *buffer = std::vector<std::byte>(size);
  }
  return buffer;
}

void BufferPool::Give(Buffer buffer) {
  std::lock_guard<std::mutex> lock(mutex_);
  const size_t size = buffer->size();
  if (size > kFreeBytesMax - free_bytes_) return;
  try {
    free_.push_back(std::move(buffer));
    free_bytes_ += size;
  } catch (const std::bad_alloc&) {
    // Called by destructors: the buffer goes back to the system instead.
  }
}

size_t WeightReader::element_size() const {
  return static_cast<size_t>(BitsPerElement(constant_->type)) / 8;
}

absl::Status WeightReader::Read(uint64_t first, uint64_t count,
                                std::byte* out) const {
  const size_t size = element_size();
  OVPRESS_RETURN_IF_ERROR(
      bin_->ReadAt(constant_->offset_bytes + first * size,
                   std::span<std::byte>(out, count * size)));
  for (const ScaleStep& step : steps_) Apply(step, first, count, out);
  return absl::OkStatus();
}

void WeightReader::Apply(const ScaleStep& step, uint64_t first, uint64_t count,
                         std::byte* data) const {
  // Walks runs along the last axis: within one the factor index advances by the
  // last stride (0 or 1).
  const std::vector<uint64_t>& shape = constant_->shape;
  const size_t rank = shape.size();
  const uint64_t last_dim = rank == 0 ? 1 : shape[rank - 1];
  const uint64_t last_stride = rank == 0 ? 0 : step.strides[rank - 1];
  const size_t size = element_size();
  constexpr uint64_t kBlock = 1024;
  float block[kBlock];
  uint64_t done = 0;
  while (done < count) {
    const uint64_t element = first + done;
    const uint64_t column = element % last_dim;
    uint64_t rest = element / last_dim;
    uint64_t base = 0;
    for (size_t axis = rank; axis-- > 1;) {
      const uint64_t dim = shape[axis - 1];
      base += rest % dim * step.strides[axis - 1];
      rest /= dim;
    }
    const uint64_t run =
        std::min({last_dim - column, count - done, uint64_t{kBlock}});
    std::byte* at = data + done * size;
    const float* factor = step.factors->data() + base + column * last_stride;
    if (step.in_f64 && constant_->type == ElementType::kF64) {
      for (uint64_t i = 0; i < run; ++i) {
        double value = 0;
        std::memcpy(&value, at + i * sizeof(value), sizeof(value));
        value *= static_cast<double>(factor[i * last_stride]);
        std::memcpy(at + i * sizeof(value), &value, sizeof(value));
      }
      done += run;
      continue;
    }
    ToFloat(constant_->type, at, run, block);
    for (uint64_t i = 0; i < run; ++i) block[i] *= factor[i * last_stride];
    FromFloat(constant_->type, block, run, at);
    done += run;
  }
}

}  // namespace ovpress
