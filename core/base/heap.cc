#include "core/base/heap.h"

#include <malloc.h>
#include <unistd.h>

#include <cstddef>
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

bool GiveBackIdleHeap() {
#ifdef __GLIBC__
  size_t pages = 0;
  size_t resident = 0;
  std::ifstream("/proc/self/statm") >> pages >> resident;
  resident *= static_cast<size_t>(::getpagesize());
  const struct mallinfo2 heap = ::mallinfo2();
  // What is free counts as such also where its pages are the kernel's again, so
  // it is the difference that tells.
  const size_t wanted = heap.uordblks + heap.hblkhd +
                        size_t{kHeapArenas} * kHeapKeptBytes + kIdleHeapBytes;
  return resident > wanted && ::malloc_trim(kHeapKeptBytes) == 1;
#else
  return false;
#endif
}

}  // namespace ovpress
