#include "server/jobs/part_crew.h"

#include <algorithm>
#include <chrono>
#include <list>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/mutex.h"
#include "core/base/patience.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

// How often leases are prolonged and progress is told and asked for.
constexpr absl::Duration kUpkeep = absl::Seconds(1);
// A holder without a part to do looks this often whether the others are done.
constexpr std::chrono::milliseconds kLook{200};
// Attempts of the holder itself at a part whose stores cannot be reached: their
// clients try for ten to twenty seconds each time.
constexpr int kMaxOwnAttempts = PartCrew::kMaxHelpers + 4;
// A database that is being restarted is waited for.
constexpr std::chrono::seconds kDatabaseWait{60};

class Crew;

// A part that is being worked on here.
struct Active {
  PartStore::Held held;
  const bool is_help = false;
  std::atomic<uint64_t> done_bytes{0};
  std::atomic<bool> stop{false};  // of help; a holder's part has the job's
  std::atomic<bool> hangs{false};
  // Of the upkeep: how far it was, and since when.
  uint64_t seen_bytes = 0;
  std::chrono::steady_clock::time_point seen = std::chrono::steady_clock::now();
};

// A round that this server waits for.
struct Waited {
  JobHold job;
  Mutex mutex;
  std::function<void(uint64_t)> progress ABSL_GUARDED_BY(mutex);
  // A part that was given back begins anew; what was told stays.
  uint64_t told_bytes ABSL_GUARDED_BY(mutex) = 0;
};

class Crew final : public PartCrew {
 public:
  explicit Crew(PartCrewOptions options) : options_(std::move(options)) {
    upkeep_ = std::thread([this] { Upkeep(); });
  }
  ~Crew() override {
    StopHelping();
    {
      MutexLock lock(&mutex_);
      ending_ = true;
      wake_.SignalAll();
    }
    if (helper_.joinable()) helper_.join();
    upkeep_.join();
  }

  std::unique_ptr<PartBoard> MakeBoard(const JobRecord& job,
                                       const RunContext& context) override;
  absl::StatusOr<bool> Help(uint64_t max_memory_bytes,
                            std::function<void(int64_t)> reserve) override;
  void StopHelping() override {
    MutexLock lock(&mutex_);
    no_more_ = true;
    if (helped_ != nullptr) helped_->stop = true;
  }

 private:
  friend class Board;

  void Upkeep();
  bool StandsStill(Active& active) const;
  void Help(const TakenPart& part, Active* active);
  absl::StatusOr<std::optional<TakenPart>> Take(absl::string_view job_id,
                                                uint64_t max_memory_bytes,
                                                int max_attempts) {
    return options_.parts->Take({.server_id = options_.server_id,
                                 .engine = options_.runner->engine_version(),
                                 .lease = options_.lease,
                                 .job_id = std::string(job_id),
                                 .max_memory_bytes = max_memory_bytes,
                                 .max_attempts = max_attempts});
  }
  // Computes the part and stores its result; `context` is the job's.
  absl::Status WorkOn(const TakenPart& part, RunContext context,
                      Active* active);
  absl::Status StoreResult(const PartStore::Held& held,
                           const std::string& result);
  // True if it was still ours. If the database does not hear of it, the lease
  // ends.
  bool GiveBack(const Active& active, bool counts) {
    return options_.parts->GiveBack(active.held, counts).ok();
  }
  void Log(Observer::Severity severity, absl::string_view job_id,
           absl::string_view text) const {
    if (options_.observer) options_.observer->OnLog(severity, job_id, text);
  }
  void Count(absl::string_view outcome,
             std::chrono::steady_clock::time_point begun) const {
    if (options_.observer == nullptr) return;
    options_.observer->OnPart(
        outcome, absl::FromChrono(std::chrono::steady_clock::now() - begun));
  }

  const PartCrewOptions options_;
  std::thread upkeep_;
  std::thread helper_;  // of Help()'s caller
  Mutex mutex_;
  CondVar wake_;
  bool ending_ ABSL_GUARDED_BY(mutex_) = false;
  bool no_more_ ABSL_GUARDED_BY(mutex_) = false;
  std::list<std::shared_ptr<Active>> active_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<Active> helped_ ABSL_GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point rest_until_ ABSL_GUARDED_BY(mutex_);
  std::list<std::shared_ptr<Waited>> waited_ ABSL_GUARDED_BY(mutex_);
};

absl::Status Stopped() { return absl::CancelledError("the job was stopped"); }

void Crew::Upkeep() {
  const absl::Duration pause = std::min(options_.lease / 3, kUpkeep);
  MutexLock lock(&mutex_);
  while (true) {
    const auto until =
        std::chrono::steady_clock::now() + absl::ToChronoMilliseconds(pause);
    while (!ending_ && wake_.WaitUntil(&mutex_, until)) {
    }
    if (ending_) return;
    std::vector<std::shared_ptr<Active>> active(active_.begin(), active_.end());
    const std::vector<std::shared_ptr<Waited>> waited(waited_.begin(),
                                                      waited_.end());
    mutex_.Unlock();
    std::erase_if(active,
                  [this](const auto& one) { return StandsStill(*one); });
    std::vector<PartStore::Held> held;
    for (const auto& one : active) {
      held.push_back(one->held);
      held.back().done_bytes = one->done_bytes;
    }
    if (!held.empty()) {
      // If the database is away the work goes on; whether somebody else took
      // it, its end will tell.
      const auto kept = options_.parts->Renew(held, options_.lease);
      for (size_t i = 0; kept.ok() && i < held.size(); ++i) {
        if (!(*kept)[i]) active[i]->stop = true;
      }
    }
    for (const auto& one : waited) {
      const auto look = options_.parts->LookAt(one->job);
      MutexLock telling(&one->mutex);
      if (!look.ok() || !one->progress) continue;
      one->told_bytes = std::max(one->told_bytes, look->done_bytes);
      one->progress(one->told_bytes);
    }
    mutex_.Lock();
  }
}

bool Crew::StandsStill(Active& active) const {
  const auto now = std::chrono::steady_clock::now();
  if (const uint64_t done = active.done_bytes; done != active.seen_bytes) {
    active.seen_bytes = done;
    active.seen = now;
  }
  if (!active.is_help ||
      absl::FromChrono(now - active.seen) < options_.standstill) {
    return false;
  }
  active.stop = true;
  if (!active.hangs.exchange(true)) {
    Log(Observer::Severity::kWarning, active.held.job_id,
        absl::StrCat("part ", active.held.number, " got no further for ",
                     absl::FormatDuration(options_.standstill),
                     "; left to others"));
  }
  return true;
}

absl::Status Crew::StoreResult(const PartStore::Held& held,
                               const std::string& result) {
  const auto until = std::chrono::steady_clock::now() + kDatabaseWait;
  while (true) {
    const absl::Status stored = options_.parts->Finish(held, result);
    if (!absl::IsUnavailable(stored) ||
        std::chrono::steady_clock::now() >= until) {
      return stored;
    }
    Patience::Sleep(kLook);
    if (Patience::Over()) return stored;
  }
}

absl::Status Crew::WorkOn(const TakenPart& part, RunContext context,
                          Active* active) {
  context.progress = [active](const JobProgress& progress) {
    active->done_bytes = progress.bytes_done;
  };
  context.board = nullptr;
  const Patience patience(context.stop);
  OVPRESS_ASSIGN_OR_RETURN(
      const std::string result,
      options_.runner->RunPart(part.spec, part.common, part.order, context));
  return StoreResult(active->held, result);
}

std::shared_ptr<Active> MakeActive(const TakenPart& part, bool is_help) {
  return std::shared_ptr<Active>(new Active{.held = {.job_id = part.job_id,
                                                     .number = part.number,
                                                     .token = part.token},
                                            .is_help = is_help});
}

// --- help for others ---

absl::StatusOr<bool> Crew::Help(uint64_t max_memory_bytes,
                                std::function<void(int64_t)> reserve) {
  {
    MutexLock lock(&mutex_);
    if (no_more_ || helped_ != nullptr ||
        std::chrono::steady_clock::now() < rest_until_) {
      return false;
    }
  }
  if (helper_.joinable()) helper_.join();
  if (max_memory_bytes == 0) return false;
  OVPRESS_ASSIGN_OR_RETURN(std::optional<TakenPart> part,
                           Take("", max_memory_bytes, kMaxHelpers));
  if (!part.has_value()) return false;
  auto active = MakeActive(*part, /*is_help=*/true);
  {
    MutexLock lock(&mutex_);
    if (no_more_) active->stop = true;
    active_.push_back(active);
    helped_ = active;
  }
  const auto memory = static_cast<int64_t>(part->memory_bytes);
  reserve(memory);
  helper_ = std::thread([this, active, memory, part = *std::move(part),
                         reserve = std::move(reserve)] {
    Help(part, active.get());
    {
      MutexLock lock(&mutex_);
      active_.remove(active);
      helped_ = nullptr;
    }
    reserve(-memory);
  });
  return true;
}

void Crew::Help(const TakenPart& part, Active* active) {
  const auto begun = std::chrono::steady_clock::now();
  const std::unique_ptr<Executor> view =
      options_.executor->MakeView(WeightOfPriority(part.spec.priority));
  RunContext context;
  context.executor = view.get();
  context.blobs = options_.blobs;
  context.memory_budget_bytes = part.spec.memory_budget_bytes != 0
                                    ? part.spec.memory_budget_bytes
                                    : options_.default_job_memory_bytes;
  context.stop = &active->stop;
  const absl::Status status = WorkOn(part, context, active);
  if (status.ok()) return Count("done", begun);
  const bool failed = !active->stop || active->hangs;
  if (failed && !absl::IsAborted(status)) {
    MutexLock lock(&mutex_);
    rest_until_ = std::chrono::steady_clock::now() +
                  absl::ToChronoMilliseconds(options_.rest);
  }
  // Also if it seems lost: the output may be, and the part still be ours.
  GiveBack(*active, failed);
  if (absl::IsAborted(status)) return Count("lost", begun);
  Count("released", begun);
  if (!absl::IsCancelled(status)) {
    Log(Observer::Severity::kWarning, part.job_id,
        absl::StrCat("part ", part.number, " given back: ", status.message()));
  }
}

// --- the holder ---

class Board final : public PartBoard {
 public:
  Board(Crew* crew, const JobRecord& job, const RunContext& context)
      : crew_(crew), context_(context), waited_(std::make_shared<Waited>()) {
    waited_->job = {.id = job.id, .fencing_token = job.lease.fencing_token};
    // Not more parts than this of one model.
    constexpr uint64_t kMaxParts = 256;
    part_bytes_ = std::max<uint64_t>(
        {crew->options_.part_bytes, job.spec.bin.size_bytes / kMaxParts, 1});
    MutexLock lock(&crew_->mutex_);
    crew_->waited_.push_back(waited_);
  }
  ~Board() override {
    Tell(nullptr);
    {
      MutexLock lock(&crew_->mutex_);
      crew_->waited_.remove(waited_);
    }
    // If the database does not hear of it: they are as good as gone once the
    // job ends.
    if (put_) crew_->options_.parts->Drop(waited_->job).IgnoreError();
  }

  uint64_t part_bytes() const override { return part_bytes_; }

  absl::StatusOr<std::vector<std::string>> Run(
      const PartRound& round,
      const std::function<void(uint64_t)>& progress) override {
    const Patience patience(context_.stop);
    put_ = true;
    PartStore& parts = *crew_->options_.parts;
    OVPRESS_RETURN_IF_ERROR(parts.Put(
        waited_->job, crew_->options_.runner->engine_version(), round));
    Tell(progress);
    absl::StatusOr<std::vector<std::string>> results = Finish(round);
    Tell(nullptr);
    return results;
  }

 private:
  void Tell(std::function<void(uint64_t)> progress) {
    MutexLock lock(&waited_->mutex);
    waited_->progress = std::move(progress);
    waited_->told_bytes = 0;
  }

  absl::StatusOr<std::vector<std::string>> Finish(const PartRound& round) {
    auto reached = std::chrono::steady_clock::now();
    std::vector<std::string> results;
    while (true) {
      if (Patience::Over()) return Stopped();
      const absl::StatusOr<bool> done = Step(round, &results);
      if (done.ok()) {
        if (*done) return results;
        reached = std::chrono::steady_clock::now();
      } else if (gave_up_ || !absl::IsUnavailable(done.status()) ||
                 std::chrono::steady_clock::now() - reached > kDatabaseWait) {
        return done.status();
      } else {
        Patience::Sleep(kLook);
      }
    }
  }

  // True if all parts are done: their results. Does one, if there is one to do,
  // or waits a little.
  absl::StatusOr<bool> Step(const PartRound& round,
                            std::vector<std::string>* results) {
    PartStore& parts = *crew_->options_.parts;
    OVPRESS_ASSIGN_OR_RETURN(const PartStore::Look look,
                             parts.LookAt(waited_->job));
    if (look.parts != static_cast<int>(round.tasks.size())) {
      return absl::AbortedError("the job is held by another server");
    }
    if (look.done == look.parts) {
      OVPRESS_ASSIGN_OR_RETURN(*results, parts.Results(waited_->job));
      return true;
    }
    if (look.done + look.taken < look.parts) {
      OVPRESS_ASSIGN_OR_RETURN(const std::optional<TakenPart> part,
                               crew_->Take(waited_->job.id, 0, 0));
      if (part.has_value()) {
        const absl::Status status = Do(*part);
        gave_up_ = !status.ok();
        OVPRESS_RETURN_IF_ERROR(status);
        return false;
      }
    }
    Patience::Sleep(kLook);
    return false;
  }

  absl::Status Do(const TakenPart& part) {
    const auto begun = std::chrono::steady_clock::now();
    const auto active = MakeActive(part, /*is_help=*/false);
    {
      MutexLock lock(&crew_->mutex_);
      crew_->active_.push_back(active);
    }
    const absl::Status status = crew_->WorkOn(part, context_, active.get());
    {
      MutexLock lock(&crew_->mutex_);
      crew_->active_.remove(active);
    }
    if (status.ok()) {
      crew_->Count("done", begun);
      return status;
    }
    if (absl::IsAborted(status)) {
      // Somebody else had it meanwhile, or the job; the next look tells. If it
      // is still ours the output is gone: the run needs another one.
      crew_->Count("lost", begun);
      return crew_->GiveBack(*active, true)
                 ? absl::UnavailableError(status.message())
                 : absl::OkStatus();
    }
    crew_->Count("released", begun);
    crew_->GiveBack(*active, true);
    if (!absl::IsUnavailable(status) || part.attempt >= kMaxOwnAttempts) {
      return status;
    }
    crew_->Log(Observer::Severity::kWarning, part.job_id, status.message());
    Patience::Sleep(std::chrono::milliseconds(500));
    return Patience::Over() ? Stopped() : absl::OkStatus();
  }

  Crew* const crew_;
  const RunContext& context_;
  const std::shared_ptr<Waited> waited_;
  uint64_t part_bytes_ = 0;
  bool put_ = false;
  bool gave_up_ = false;  // on a part
};

std::unique_ptr<PartBoard> Crew::MakeBoard(const JobRecord& job,
                                           const RunContext& context) {
  return std::make_unique<Board>(this, job, context);
}

}  // namespace

std::unique_ptr<PartCrew> PartCrew::Create(PartCrewOptions options) {
  return std::make_unique<Crew>(std::move(options));
}

}  // namespace ovpress
