// Calls that stay open to wait for a job: WatchOperation and WaitOperation.
// Each holds a thread, so each client has so many at a time.
#ifndef OVPRESS_SERVER_RPC_WATCHERS_H_
#define OVPRESS_SERVER_RPC_WATCHERS_H_

#include <map>
#include <string>

#include "absl/status/statusor.h"
#include "core/base/mutex.h"
#include "server/jobs/limits.h"
#include "server/jobs/quotas.h"
#include "server/rpc/metrics.h"

namespace ovpress {

// Thread-safe. Outlives its handles.
class Watchers {
 public:
  // `quotas` may be null.
  Watchers(const TransferLimits& limits, const QuotaSource* quotas,
           Metrics* metrics)
      : limits_(limits), quotas_(quotas), metrics_(metrics) {}

  // Ends the count when destroyed.
  class Handle {
   public:
    Handle(Watchers* watchers, std::map<std::string, int>::iterator count)
        : watchers_(watchers), count_(count) {}
    Handle(Handle&& other) noexcept;
    ~Handle();

   private:
    Watchers* watchers_;
    std::map<std::string, int>::iterator count_;
  };

  // kResourceExhausted with LimitDetails if `owner` has as many as it may.
  absl::StatusOr<Handle> Open(const std::string& owner);

 private:
  const TransferLimits limits_;
  const QuotaSource* const quotas_;
  Metrics* const metrics_;
  Mutex mutex_;
  // Owners without any are not in it.
  std::map<std::string, int> counts_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_WATCHERS_H_
