#include "core/base/heap.h"

#include <malloc.h>
#include <unistd.h>

#include <fstream>

namespace ovpress {

void KeepMessageBuffers() {
#ifdef __GLIBC__
  // A value that is refused leaves the default: slower, not wrong.
  ::mallopt(M_ARENA_MAX, kHeapArenas);
  ::mallopt(M_TRIM_THRESHOLD, kHeapKeptBytes);
  ::mallopt(M_MMAP_THRESHOLD, kHeapMappedBytes);
#endif
}

uint64_t ResidentBytes() {
  uint64_t pages = 0;
  uint64_t resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  return resident * static_cast<uint64_t>(::getpagesize());
}

bool GiveBackIdleHeap() {
#ifdef __GLIBC__
  const struct mallinfo2 heap = ::mallinfo2();
  // What is free counts as such also where its pages are the kernel's again, so
  // it is the difference that tells.
  const uint64_t wanted = heap.uordblks + heap.hblkhd +
                          uint64_t{kHeapArenas} * kHeapKeptBytes +
                          kIdleHeapBytes;
  return ResidentBytes() > wanted && ::malloc_trim(kHeapKeptBytes) == 1;
#else
  return false;
#endif
}

}  // namespace ovpress
