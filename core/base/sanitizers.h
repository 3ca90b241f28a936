// What the code must know of the sanitizers that it is built for.
#ifndef OVPRESS_CORE_BASE_SANITIZERS_H_
#define OVPRESS_CORE_BASE_SANITIZERS_H_

namespace ovpress {

// True under ThreadSanitizer. The packaged oneTBB is not built for it: what
// TBB orders looks like a race, so plain threads take its place there.
#if defined(__SANITIZE_THREAD__)
inline constexpr bool kThreadSanitizer = true;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer)
inline constexpr bool kThreadSanitizer = true;
#else
inline constexpr bool kThreadSanitizer = false;
#endif
#else
inline constexpr bool kThreadSanitizer = false;
#endif

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_SANITIZERS_H_
