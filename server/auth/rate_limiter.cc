#include "server/auth/rate_limiter.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "server/jobs/errors.h"

namespace ovpress {

void RateLimiter::Refill(Bucket& bucket, absl::Time now) {
  // A clock that was set back adds nothing.
  const double seconds = std::max(0.0, absl::ToDoubleSeconds(now - bucket.at));
  bucket.tokens =
      std::min(bucket.burst, bucket.tokens + seconds * bucket.per_second);
  bucket.at = now;
}

absl::Status RateLimiter::Admit(absl::string_view identity, double per_second,
                                absl::Time now) {
  const auto refuse = [&](absl::Duration wait) {
    return LimitError(
        "too many requests",
        {.limit = "max_requests_per_second",
         .subject = absl::StrCat("client:", identity),
         .limit_value = static_cast<uint64_t>(std::ceil(per_second)),
         .retry_after = wait});
  };
  const double burst = std::max(1.0, 2 * per_second);
  MutexLock lock(&mutex_);
  auto it = buckets_.find(identity);
  if (it == buckets_.end()) {
    if (buckets_.size() >= buckets_max_) {
      for (auto at = buckets_.begin(); at != buckets_.end();) {
        Refill(at->second, now);
        if (at->second.tokens >= at->second.burst) {
          buckets_.erase(at++);
        } else {
          ++at;
        }
      }
    }
    if (buckets_.size() >= buckets_max_) return refuse(absl::Seconds(1));
    it = buckets_
             .emplace(identity, Bucket{.tokens = burst,
                                       .burst = burst,
                                       .per_second = per_second,
                                       .at = now})
             .first;
  }
  Bucket& bucket = it->second;
  Refill(bucket, now);
  // The limit may have changed since.
  bucket.per_second = per_second;
  bucket.burst = burst;
  bucket.tokens = std::min(bucket.tokens, burst);
  if (per_second <= 0) return refuse(absl::Minutes(1));
  if (bucket.tokens < 1) {
    // Rounded up to a millisecond, so that whoever waits so long is served.
    return refuse(
        absl::Milliseconds(std::ceil((1 - bucket.tokens) / per_second * 1000)));
  }
  bucket.tokens -= 1;
  return absl::OkStatus();
}

}  // namespace ovpress
