// Assertions about our own code. What a client or a file can cause is a
// status, never one of these.
#ifndef OVPRESS_CORE_BASE_CHECK_H_
#define OVPRESS_CORE_BASE_CHECK_H_

#include <cstdio>
#include <cstdlib>

#define OVPRESS_CHECK(condition)                                            \
  do {                                                                      \
    if (!(condition)) [[unlikely]] {                                        \
      std::fprintf(stderr, "%s:%d: check failed: %s\n", __FILE__, __LINE__, \
                   #condition);                                             \
      std::abort();                                                         \
    }                                                                       \
  } while (false)

#ifdef NDEBUG
#define OVPRESS_DCHECK(condition) \
  do {                            \
    if (false && (condition)) {   \
    }                             \
  } while (false)
#else
#define OVPRESS_DCHECK(condition) OVPRESS_CHECK(condition)
#endif

#endif  // OVPRESS_CORE_BASE_CHECK_H_
