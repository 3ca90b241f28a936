#include "server/rpc/transfers.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "grpc/grpc.h"
#include "server/jobs/errors.h"

namespace ovpress {
namespace {

using Steady = std::chrono::steady_clock;

std::string IdleMessage(absl::Duration limit) {
  return absl::StrCat("no byte moved for ", absl::FormatDuration(limit),
                      ", the limit idle_timeout");
}

// Ends a call whose handler is blocked in a read or a write, which then fail.
// ServerContext::TryCancel() does the same but always says CANCELLED to the
// client; what the handler returns afterwards comes too late to be sent.
void EndIdle(grpc::ServerContext* context, absl::Duration limit) {
  grpc_call_cancel_with_status(context->c_call(), GRPC_STATUS_DEADLINE_EXCEEDED,
                               IdleMessage(limit).c_str(), nullptr);
}

}  // namespace

void Transfers::Entry::Touch() {
  last = Steady::now().time_since_epoch().count();
}

Transfers::Transfers(const TransferLimits& limits, const QuotaSource* quotas,
                     Metrics* metrics)
    : limits_(limits),
      quotas_(quotas),
      metrics_(metrics),
      watchdog_([this] { Watch(); }) {}

Transfers::~Transfers() {
  {
    MutexLock lock(&mutex_);
    exiting_ = true;
    wake_.SignalAll();
  }
  watchdog_.join();
}

absl::StatusOr<Transfers::Handle> Transfers::Open(grpc::ServerContext* context,
                                                  const std::string& owner) {
  const OwnerQuota quota =
      quotas_ == nullptr ? OwnerQuota{} : quotas_->QuotaOf(owner);
  const int own_most =
      quota.max_transfers.value_or(limits_.max_transfers_per_owner);
  MutexLock lock(&mutex_);
  const auto of_owner =
      std::count_if(entries_.begin(), entries_.end(),
                    [&](const Entry& entry) { return entry.owner == owner; });
  const bool full =
      entries_.size() >= static_cast<size_t>(limits_.max_transfers);
  if (full || of_owner >= own_most) {
    const LimitDetails details{
        .limit = full ? "max_transfers" : "max_transfers_per_owner",
        .subject = full ? "server" : absl::StrCat("client:", owner),
        .limit_value =
            static_cast<uint64_t>(full ? limits_.max_transfers : own_most),
        .requested =
            full ? entries_.size() + 1 : static_cast<uint64_t>(of_owner) + 1,
        .retry_after = absl::Seconds(2)};
    metrics_->OnAdmissionRejected(details.limit);
    return LimitError("too many transfers at a time", details);
  }
  entries_.emplace_front();
  Entry& entry = entries_.front();
  entry.context = context;
  entry.owner = owner;
  entry.Touch();
  metrics_->OnTransfersActive(1);
  return Handle(this, entries_.begin());
}

void Transfers::Close(std::list<Entry>::iterator entry) {
  MutexLock lock(&mutex_);
  entries_.erase(entry);
  metrics_->OnTransfersActive(-1);
}

void Transfers::Watch() {
  const auto limit = absl::ToChronoNanoseconds(limits_.idle_timeout);
  MutexLock lock(&mutex_);
  while (!exiting_) {
    wake_.WaitUntil(&mutex_, Steady::now() + std::chrono::milliseconds(250));
    const Steady::rep now = Steady::now().time_since_epoch().count();
    for (Entry& entry : entries_) {
      if (Steady::duration(now - entry.last) < limit || entry.expired) {
        continue;
      }
      entry.expired = true;
      EndIdle(entry.context, limits_.idle_timeout);
    }
  }
}

Transfers::Handle::Handle(Transfers* transfers,
                          std::list<Entry>::iterator entry)
    : transfers_(transfers), entry_(entry) {}

Transfers::Handle::Handle(Handle&& other) noexcept
    : transfers_(std::exchange(other.transfers_, nullptr)),
      entry_(other.entry_) {}

Transfers::Handle::~Handle() {
  if (transfers_ != nullptr) transfers_->Close(entry_);
}

absl::Status Transfers::Handle::Broken() const {
  if (entry_->expired) {
    return absl::DeadlineExceededError(
        IdleMessage(transfers_->limits_.idle_timeout));
  }
  return absl::CancelledError("the client went away");
}

}  // namespace ovpress
