// Reads pieces of one constant, with AWQ's scaling applied where the plan has
// it, always in the constant's own element type.
#ifndef OVPRESS_CORE_ENGINE_WEIGHT_READER_H_
#define OVPRESS_CORE_ENGINE_WEIGHT_READER_H_

#include <cstdint>
#include <memory>
#include <mutex>
#include <vector>

#include "absl/status/status.h"
#include "core/base/io.h"
#include "core/ir/model.h"

namespace ovpress {

// Reusable byte buffers, so that a run allocates only once per thread.
// Thread-safe.
class BufferPool {
 public:
  // What is free of more than this goes back to the system.
  static constexpr size_t kFreeBytesMax = 32 << 20;

  // One for all runs of the process: threads that go from one job to another
  // find buffers that are in their caches.
  static BufferPool& Shared();

  using Buffer = std::unique_ptr<std::vector<std::byte>>;
  // A buffer of at least `size` bytes.
  Buffer Take(size_t size);
  void Give(Buffer buffer);

 private:
  std::mutex mutex_;
  std::vector<Buffer> free_;
  size_t free_bytes_ = 0;
};

// Holds a buffer for the length of a scope.
class ScopedBuffer {
 public:
  ScopedBuffer(BufferPool* pool, size_t size)
      : pool_(pool), buffer_(pool->Take(size)) {}
  ~ScopedBuffer() { pool_->Give(std::move(buffer_)); }
  ScopedBuffer(const ScopedBuffer&) = delete;
  ScopedBuffer& operator=(const ScopedBuffer&) = delete;
  std::byte* data() { return buffer_->data(); }
  template <typename T>
  T* as() {
    return reinterpret_cast<T*>(buffer_->data());
  }

 private:
  BufferPool* const pool_;
  BufferPool::Buffer buffer_;
};

// One multiplication of a weight: w = cast(fl32(w * factor[index]), type). The
// index of an element is the sum over axes of coordinate * stride; a stride of
// 0 broadcasts the axis.
struct ScaleStep {
  const std::vector<float>* factors = nullptr;
  std::vector<uint64_t> strides;  // one per axis
  bool in_f64 = false;  // no fl32: NumPy multiplies an f64 weight in f64
};

// Thread-safe once built.
class WeightReader {
 public:
  WeightReader(ByteSource* bin, const Constant* constant,
               std::vector<ScaleStep> steps)
      : bin_(bin), constant_(constant), steps_(std::move(steps)) {}

  // Bytes of one element; 0 is impossible for the types that are compressed.
  size_t element_size() const;
  // Elements [first, first + count) into out (count * element_size() bytes).
  absl::Status Read(uint64_t first, uint64_t count, std::byte* out) const;

 private:
  void Apply(const ScaleStep& step, uint64_t first, uint64_t count,
             std::byte* data) const;

  ByteSource* bin_;
  const Constant* constant_;
  std::vector<ScaleStep> steps_;
};

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_WEIGHT_READER_H_
