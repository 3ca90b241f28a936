// Limits of single owners, where they differ from those of limits.h.
#ifndef OVPRESS_SERVER_JOBS_QUOTAS_H_
#define OVPRESS_SERVER_JOBS_QUOTAS_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace ovpress {

// What is not set is as limits.h says; 0 means no limit for max_bytes and
// max_running, and none at all for the rest.
struct OwnerQuota {
  std::optional<uint64_t> max_bytes;   // StoreLimits::max_owner_bytes
  std::optional<int> max_uploads;      // StoreLimits::max_owner_uploads
  std::optional<int> max_queued;       // JobLimits::max_queued_per_owner
  std::optional<int> max_running;      // JobLimits::max_running_per_owner
  std::optional<int> max_transfers;    // TransferLimits
  std::optional<int> max_watchers;     // TransferLimits
  std::optional<double> max_requests;  // a second

  friend bool operator==(const OwnerQuota&, const OwnerQuota&) = default;
};

// Thread-safe. Called under locks of the caller: quick, and without calling
// back. The answer may change while the server runs.
class QuotaSource {
 public:
  virtual ~QuotaSource() = default;
  virtual OwnerQuota QuotaOf(absl::string_view owner) const = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_QUOTAS_H_
