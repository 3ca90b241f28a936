#include "server/rpc/watchers.h"

#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "server/jobs/errors.h"

namespace ovpress {

Watchers::Handle::Handle(Handle&& other) noexcept
    : watchers_(std::exchange(other.watchers_, nullptr)),
      count_(other.count_) {}

Watchers::Handle::~Handle() {
  if (watchers_ == nullptr) return;
  MutexLock lock(&watchers_->mutex_);
  if (--count_->second == 0) watchers_->counts_.erase(count_);
}

absl::StatusOr<Watchers::Handle> Watchers::Open(const std::string& owner) {
  const OwnerQuota quota =
      quotas_ == nullptr ? OwnerQuota{} : quotas_->QuotaOf(owner);
  const int most = quota.max_watchers.value_or(limits_.max_watchers_per_owner);
  MutexLock lock(&mutex_);
  const auto it = counts_.find(owner);
  const int open = it == counts_.end() ? 0 : it->second;
  if (open >= most) {
    metrics_->OnAdmissionRejected("max_watchers_per_owner");
    return LimitError("too many calls that wait for a job",
                      {.limit = "max_watchers_per_owner",
                       .subject = absl::StrCat("client:", owner),
                       .limit_value = static_cast<uint64_t>(most),
                       .requested = static_cast<uint64_t>(open) + 1,
                       .retry_after = absl::Seconds(5)});
  }
  const auto count = counts_.try_emplace(owner, 0).first;
  ++count->second;
  return Handle(this, count);
}

}  // namespace ovpress
