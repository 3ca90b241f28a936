// Uploads, downloads and streams that are open: counted against the limits, and
// ended when no byte moved for too long.
#ifndef OVPRESS_SERVER_RPC_TRANSFERS_H_
#define OVPRESS_SERVER_RPC_TRANSFERS_H_

#include <atomic>
#include <chrono>
#include <list>
#include <string>
#include <thread>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/mutex.h"
#include "grpcpp/server_context.h"
#include "server/jobs/limits.h"
#include "server/jobs/quotas.h"
#include "server/rpc/metrics.h"

namespace ovpress {

// Thread-safe. Outlives its handles. Owns a thread that looks for idle ones.
class Transfers {
 public:
  // `quotas` may be null.
  Transfers(const TransferLimits& limits, const QuotaSource* quotas,
            Metrics* metrics);
  ~Transfers();

  class Handle;
  // kResourceExhausted with LimitDetails if the server or `owner` has as many
  // as it may. `context` must outlive the handle.
  absl::StatusOr<Handle> Open(grpc::ServerContext* context,
                              const std::string& owner);

 private:
  struct Entry {
    grpc::ServerContext* context;
    std::string owner;
    std::atomic<std::chrono::steady_clock::rep> last{0};
    std::atomic<bool> expired{false};
    void Touch();
  };
  void Close(std::list<Entry>::iterator entry);
  void Watch();

  const TransferLimits limits_;
  const QuotaSource* const quotas_;
  Metrics* const metrics_;
  Mutex mutex_;
  CondVar wake_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);
  bool exiting_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watchdog_;  // last: it uses the rest
};

// One open transfer; ends the count when destroyed. Thread-safe.
class Transfers::Handle {
 public:
  Handle(Transfers* transfers, std::list<Entry>::iterator entry);
  Handle(Handle&& other) noexcept;
  ~Handle();
  // Bytes moved.
  void Touch() { entry_->Touch(); }
  // What a stream that broke off means: kDeadlineExceeded if it was idle for
  // too long, kCancelled if the client went away.
  absl::Status Broken() const;

 private:
  Transfers* transfers_;
  std::list<Entry>::iterator entry_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_TRANSFERS_H_
