#include "core/base/heap.h"

#include <malloc.h>

namespace ovpress {

void KeepMessageBuffers() {
#ifdef __GLIBC__
  // A value that is refused leaves the default: slower, not wrong.
  ::mallopt(M_ARENA_MAX, kHeapArenas);
  ::mallopt(M_TRIM_THRESHOLD, kHeapKeptBytes);
  ::mallopt(M_MMAP_THRESHOLD, kHeapMappedBytes);
#endif
}

}  // namespace ovpress
