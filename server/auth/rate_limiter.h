// Requests per second, one token bucket for each identity.
#ifndef OVPRESS_SERVER_AUTH_RATE_LIMITER_H_
#define OVPRESS_SERVER_AUTH_RATE_LIMITER_H_

#include <string>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "core/base/mutex.h"

namespace ovpress {

// Thread-safe.
class RateLimiter {
 public:
  // Buckets kept at a time. Beyond it those that are full again go; if none is,
  // identities without a bucket must wait.
  explicit RateLimiter(size_t buckets_max = 65'536)
      : buckets_max_(buckets_max) {}

  // Takes one request of `identity`, which may make `per_second` of them, and
  // twice as many (at least one) at once after a pause. kResourceExhausted with
  // LimitDetails and the time until the next one is allowed. `per_second` 0:
  // none at all is allowed.
  absl::Status Admit(absl::string_view identity, double per_second,
                     absl::Time now);

 private:
  struct Bucket {
    double tokens = 0;
    double burst = 0;
    double per_second = 0;
    absl::Time at;
  };
  static void Refill(Bucket& bucket, absl::Time now);

  const size_t buckets_max_;
  Mutex mutex_;
  absl::flat_hash_map<std::string, Bucket> buckets_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_RATE_LIMITER_H_
