// Lack of memory as a status: the one exception that can come from anywhere.
#ifndef OVPRESS_CORE_BASE_MEMORY_H_
#define OVPRESS_CORE_BASE_MEMORY_H_

#include <new>

#include "absl/status/status.h"

namespace ovpress {

// Calls `function`, which returns a Status or StatusOr; kResourceExhausted if
// memory ran out in it. What it owns is released on the way, so temporary files
// and reservations are gone, too.
template <typename Function>
auto CatchOutOfMemory(const Function& function) -> decltype(function()) {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    return absl::ResourceExhaustedError(
        "out of memory; use a smaller memory budget or fewer threads");
  }
}

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_MEMORY_H_
