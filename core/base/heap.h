// How the process's heap treats buffers that come and go.
#ifndef OVPRESS_CORE_BASE_HEAP_H_
#define OVPRESS_CORE_BASE_HEAP_H_

#include <cstdint>

namespace ovpress {

// For programs that move bulk data in messages of about 1 MiB; called
// before the first of them. By itself glibc gives such buffers back to the
// kernel when they are freed and faults every page in again for the next
// message, which was more than half of what receiving an upload cost. What may
// be kept for it is at most kHeapArenas * kHeapKeptBytes. Larger buffers are
// the kernel's as before. Does nothing with other allocators.
void KeepMessageBuffers();

// What the kernel counts as this process's memory; 0 if it does not tell.
uint64_t ResidentBytes();

// Gives the kernel what was freed and is not soon wanted again, if it is much
// (kIdleHeapBytes beyond what KeepMessageBuffers() keeps): what ten thousand
// connections leave lies between what is in use, and glibc by itself gives back
// only from the end. Takes milliseconds then, microseconds else; call it every
// few seconds, from one thread. True if it gave back something.
bool GiveBackIdleHeap();

inline constexpr uint64_t kIdleHeapBytes = 128ull << 20;
inline constexpr int kHeapArenas = 4;
inline constexpr int kHeapKeptBytes = 16 << 20;
// Above what gRPC reads at once, 4 MiB.
inline constexpr int kHeapMappedBytes = 8 << 20;

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_HEAP_H_
