#include "server/jobs/job_manager.h"

#include <algorithm>
#include <chrono>
#include <list>
#include <map>
#include <random>
#include <thread>
#include <utility>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/base/mutex.h"
#include "core/base/patience.h"
#include "core/base/status_macros.h"
#include "server/jobs/errors.h"
#include "server/jobs/part_crew.h"
#include "server/jobs/scheduler.h"

namespace ovpress {
namespace {

std::string RandomJobId() {
  std::random_device random;
  std::string bytes;
  for (int i = 0; i < 4; ++i) {
    const uint32_t word = random();
    bytes.append(reinterpret_cast<const char*>(&word), sizeof(word));
  }
  return absl::BytesToHexString(bytes);
}

std::chrono::steady_clock::time_point After(absl::Duration wait) {
  // Beyond a year is for ever; the clock's own range is not to be left.
  return std::chrono::steady_clock::now() +
         absl::ToChronoMilliseconds(std::min(wait, absl::Hours(24 * 365)));
}

absl::Status NoSuchJob(absl::string_view id) {
  return absl::NotFoundError(absl::StrCat("there is no operation operations/",
                                          absl::CHexEscape(id.substr(0, 80))));
}

// Why a running job was told to stop.
enum class StopReason { kNone, kCancelled, kDeadline, kLeaseLost, kShutdown };

// Jobs of a shared store are looked after this often, so that a cancel from
// another server is seen within a second.
constexpr absl::Duration kSharedRenewal = absl::Seconds(1);
// How often a server with free places looks for jobs without being told.
constexpr std::chrono::milliseconds kSharedLook{1000};
// Pauses between looks however much other servers have to tell.
constexpr std::chrono::milliseconds kLeastTickPause{20};
// Places in line may be so old: working them out reads the whole line.
constexpr std::chrono::milliseconds kPositionsAge{1000};
// Per owner and priority, see JobStore::GetLine(); and how many of the best to
// offer for a claim. Both bound what several servers that look at the same
// moment can take side by side.
constexpr int kLookPerRank = 16;
constexpr size_t kOffered = 16;
// A store of blobs that is being restarted is waited for: pauses double from
// half a second to eight, half a minute in all.
constexpr int kUnavailableRuns = 7;

// A job whose servers died so often runs alone: if it is the reason (memory
// runs out, say), it is not to take all that help it with it.
constexpr int kSharedAttempts = 2;

// How long the end of a job waits for a shared database.
constexpr absl::Duration kSharedStoreWait = absl::Minutes(10);
// How long calls to a store that does not answer may hold up a shutdown. What
// they could not tell it shows when the leases end.
constexpr std::chrono::seconds kStopGrace{1};

struct Running {
  JobRecord job;
  absl::Time begun;
  absl::Time deadline;
  // Of the service thread alone. The steady clock, too: a system clock set
  // back by minutes must not cost the lease.
  absl::Time renewed;
  std::chrono::steady_clock::time_point renewed_steady;
  JobProgress told;
  std::atomic<bool> stop{false};
  std::thread thread;
  // Guarded by the manager's mutex.
  StopReason reason = StopReason::kNone;
  JobProgress progress;
  std::string phase;
  absl::Time phase_start;
  bool done = false;
};

struct Watcher {
  std::string id;
  JobManager::WatchCallback callback;
  // Held while the callback runs.
  Mutex calling;
  bool alive ABSL_GUARDED_BY(calling) = true;
  // Of the service thread alone.
  std::string last_seen;
  absl::Time last_told = absl::InfinitePast();
  bool finished = false;
};

class Manager final : public JobManager {
 public:
  explicit Manager(JobManagerOptions options)
      : options_(std::move(options)),
        limits_(options_.limits),
        shared_(options_.jobs->shared()) {}

  ~Manager() override {
    Drain(absl::ZeroDuration());
    options_.jobs->OnChange(nullptr);
    {
      MutexLock lock(&mutex_);
      exiting_ = true;
      WakeLocked();
    }
    if (service_.joinable()) service_.join();
    // Its thread tells us when it ends.
    crew_ = nullptr;
  }

  absl::Status Start() {
    if (options_.jobs->parts() != nullptr &&
        options_.blobs->min_shared_range_bytes() > 0) {
      crew_ = PartCrew::Create(
          {.parts = options_.jobs->parts(),
           .blobs = options_.blobs,
           .runner = options_.runner,
           .executor = options_.executor,
           .observer = options_.observer,
           .server_id = options_.server_id,
           .lease = limits_.lease,
           .default_job_memory_bytes = limits_.default_job_memory_bytes,
           .part_bytes = limits_.share_jobs_above_bytes / 8});
    }
    OVPRESS_ASSIGN_OR_RETURN(const std::vector<JobRecord> requeued,
                             options_.jobs->RequeueOf(options_.server_id));
    for (const JobRecord& job : requeued) {
      if (options_.observer) options_.observer->OnJobRequeued(job);
      Log(Observer::Severity::kInfo, job.id, "was running; queued again");
    }
    std::vector<JobRecord> holders;
    if (!shared_) {
      OVPRESS_ASSIGN_OR_RETURN(holders, options_.jobs->ListHolders());
    }
    for (const JobRecord& job : holders) {
      auto pin = options_.blobs->Pin(job.spec.owner, BlobsHeldBy(job));
      if (!pin.ok()) {
        Log(Observer::Severity::kWarning, job.id, pin.status().message());
        continue;
      }
      MutexLock lock(&mutex_);
      pins_[job.id].push_back(*std::move(pin));
    }
    options_.jobs->OnChange([this] {
      MutexLock lock(&mutex_);
      WakeLocked();
      ChangedLocked();
    });
    service_ = std::thread([this] { Serve(); });
    return absl::OkStatus();
  }

  absl::StatusOr<JobView> Submit(const JobSpec& spec,
                                 bool validate_only) override {
    absl::StatusOr<JobView> view = SubmitChecked(spec, validate_only);
    if (!view.ok() && options_.observer) {
      const auto limit = GetLimitDetails(view.status());
      if (limit.has_value())
        options_.observer->OnAdmissionRejected(limit->limit);
      if (absl::IsUnavailable(view.status())) {
        options_.observer->OnAdmissionRejected("draining");
      }
    }
    return view;
  }

  absl::StatusOr<JobView> Get(const Owner& owner,
                              absl::string_view id) override {
    OVPRESS_ASSIGN_OR_RETURN(JobRecord job, Find(owner, id));
    return View(std::move(job));
  }

  absl::StatusOr<Page> List(const Owner& owner, JobFilter filter, int page_size,
                            absl::string_view page_token) override {
    if (page_size < 0) {
      return absl::InvalidArgumentError("page_size must not be negative");
    }
    filter.owner = owner;
    if (page_size == 0) page_size = limits_.default_page_size;
    OVPRESS_ASSIGN_OR_RETURN(
        JobPage stored,
        options_.jobs->List(filter, std::min(page_size, limits_.max_page_size),
                            page_token));
    Page page;
    page.next_page_token = std::move(stored.next_page_token);
    Positions positions(this);
    for (JobRecord& job : stored.jobs) {
      OVPRESS_ASSIGN_OR_RETURN(JobView view, View(std::move(job), &positions));
      page.jobs.push_back(std::move(view));
    }
    return page;
  }

  absl::Status Cancel(const Owner& owner, absl::string_view id) override {
    OVPRESS_ASSIGN_OR_RETURN(JobRecord job, Find(owner, id));
    const bool was_queued = job.state == JobState::kQueued;
    OVPRESS_ASSIGN_OR_RETURN(job,
                             options_.jobs->RequestCancel(id, Ttl(job.spec)));
    if (was_queued && job.state == JobState::kCancelled) {
      if (options_.observer) {
        options_.observer->OnJobFinished(job, absl::ZeroDuration());
      }
      Release(job.id);
    }
    MutexLock lock(&mutex_);
    StopLocked(std::string(id), StopReason::kCancelled);
    WakeLocked();
    ChangedLocked();
    return absl::OkStatus();
  }

  absl::Status Delete(const Owner& owner, absl::string_view id) override {
    OVPRESS_RETURN_IF_ERROR(Find(owner, id).status());
    OVPRESS_RETURN_IF_ERROR(options_.jobs->Delete(id));
    Release(std::string(id));
    return absl::OkStatus();
  }

  absl::StatusOr<std::unique_ptr<Watch>> Subscribe(
      const Owner& owner, absl::string_view id,
      WatchCallback callback) override;

  absl::StatusOr<JobView> Wait(const Owner& owner, absl::string_view id,
                               absl::Duration timeout) override {
    const auto until = After(timeout);
    while (true) {
      uint64_t seen;
      {
        MutexLock lock(&mutex_);
        seen = changes_;
      }
      OVPRESS_ASSIGN_OR_RETURN(JobView view, Get(owner, id));
      if (IsFinal(view.record.state) ||
          std::chrono::steady_clock::now() >= until) {
        return view;
      }
      MutexLock lock(&mutex_);
      // Another server may end the job: look again now and then. It says so if
      // the queue is shared.
      if (changes_ != seen) continue;
      changed_.WaitUntil(
          &mutex_, std::min(until, After(shared_ ? absl::Seconds(1)
                                                 : absl::Milliseconds(200))));
    }
  }

  absl::StatusOr<std::unique_ptr<StreamSlot>> OpenStream(
      const StreamRequest& request) override;

  void StopAdmitting() override {
    MutexLock lock(&mutex_);
    draining_ = true;
  }

  DrainReport Drain(absl::Duration limit) override {
    StopAdmitting();
    // A start that is under way gets to where it is seen below.
    { MutexLock ticking(&ticking_); }
    DrainReport report;
    const auto until = After(limit);
    {
      MutexLock lock(&mutex_);
      const size_t at_start = running_.size();
      while ((!running_.empty() || streams_ > 0 || helping_ > 0) &&
             std::chrono::steady_clock::now() < until) {
        changed_.WaitUntil(&mutex_,
                           std::min(until, After(absl::Milliseconds(100))));
      }
      report.finished =
          static_cast<int>(at_start - std::min(at_start, running_.size()));
      report.requeued = static_cast<int>(running_.size());
      stopping_ = true;
      for (auto& [id, running] : running_) {
        StopLocked(id, StopReason::kShutdown);
      }
      if (crew_ != nullptr) {
        mutex_.Unlock();
        crew_->StopHelping();
        mutex_.Lock();
      }
      while (!running_.empty() || helping_ > 0) {
        changed_.WaitUntil(&mutex_, After(absl::Milliseconds(100)));
      }
    }
    Reap();
    const Patience patience(&draining_, kStopGrace);
    if (const auto counts = options_.jobs->Count(std::nullopt); counts.ok()) {
      report.queued = counts->queued;
    }
    return report;
  }

  void Tick() override;

  JobManagerStats Stats() override {
    JobManagerStats stats;
    if (const auto counts = options_.jobs->Count(std::nullopt); counts.ok()) {
      stats.queued = counts->queued;
    }
    MutexLock lock(&mutex_);
    stats.running = static_cast<int>(running_.size());
    stats.helping = helping_;
    stats.streams = streams_;
    stats.watchers = static_cast<int>(watchers_.size());
    stats.reserved_memory_bytes = reserved_memory_;
    stats.total_memory_bytes = limits_.total_memory_bytes;
    stats.draining = draining_;
    return stats;
  }

 private:
  class WatchImpl;
  class Slot;

  absl::Time Now() const { return options_.clock->Now(); }
  OwnerQuota QuotaOf(const std::string& owner) const {
    return options_.quotas == nullptr ? OwnerQuota{}
                                      : options_.quotas->QuotaOf(owner);
  }
  absl::Duration Ttl(const JobSpec& spec) const {
    return spec.ttl == absl::ZeroDuration() ? limits_.default_result_ttl
                                            : spec.ttl;
  }
  void Log(Observer::Severity severity, absl::string_view id,
           absl::string_view message) const {
    if (options_.observer) options_.observer->OnLog(severity, id, message);
  }

  absl::StatusOr<JobRecord> Find(const Owner& owner, absl::string_view id) {
    absl::StatusOr<JobRecord> job = options_.jobs->Get(id);
    if (absl::IsNotFound(job.status()) ||
        (job.ok() && owner.has_value() && job->spec.owner != *owner)) {
      return NoSuchJob(id);
    }
    return job;
  }

  // Places in the line, looked up once for all jobs of an answer and only if
  // one of them waits: each look reads the whole queue.
  class Positions {
   public:
    explicit Positions(Manager* manager) : manager_(manager) {}
    absl::StatusOr<int> Of(const std::string& id);  // 0: not waiting

   private:
    Manager* const manager_;
    std::shared_ptr<const std::map<std::string, int>> by_id_;
  };
  absl::StatusOr<JobView> View(JobRecord job);
  absl::StatusOr<JobView> View(JobRecord job, Positions* positions);
  absl::Status CheckSpec(const JobSpec& spec) const;
  absl::Status QueueFull(JobStore::Full where, const std::string& owner,
                         const JobStore::QueueLimits& line) const;
  absl::StatusOr<JobView> SubmitChecked(const JobSpec& spec,
                                        bool validate_only);

  // A job that ended for good, or was forgotten, holds nothing any more.
  void Release(const std::string& id) {
    std::vector<std::unique_ptr<BlobPin>> pins;
    std::unique_ptr<SpaceReservation> space;
    MutexLock lock(&mutex_);
    if (const auto it = pins_.find(id); it != pins_.end()) {
      pins = std::move(it->second);
      pins_.erase(it);
    }
    if (const auto it = spaces_.find(id); it != spaces_.end()) {
      space = std::move(it->second);
      spaces_.erase(it);
    }
  }

  void StopLocked(const std::string& id, StopReason reason)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const auto it = running_.find(id);
    if (it == running_.end()) return;
    if (it->second->reason == StopReason::kNone) it->second->reason = reason;
    it->second->stop = true;
  }

  void ChangedLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    ++changes_;
    changed_.SignalAll();
  }

  void WakeLocked() ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    wanted_ = true;
    wake_.SignalAll();
  }

  void Serve() {
    bool wanted = true;
    while (true) {
      const auto start = std::chrono::steady_clock::now();
      const Patience patience(&draining_, kStopGrace);
      const bool look = !shared_ || wanted || start - looked_ >= kSharedLook;
      if (look) looked_ = start;
      RunTick(look);
      MutexLock lock(&mutex_);
      const auto until =
          After(std::min(limits_.tick_interval, absl::Seconds(1)));
      while (!exiting_ && !wanted_ && wake_.WaitUntil(&mutex_, until)) {
      }
      // Others may have much to tell.
      const auto pause = start + kLeastTickPause;
      while (shared_ && !exiting_ && std::chrono::steady_clock::now() < pause) {
        wake_.WaitUntil(&mutex_, pause);
      }
      if (exiting_) return;
      wanted = std::exchange(wanted_, false);
    }
  }

  // `look`: for jobs to start.
  void RunTick(bool look);
  void Reap();
  void CheckRunning(absl::Time now);
  void StartJobs();
  // Works on a part of another server's job, if there is room.
  void HelpOthers();
  void StartJob(JobRecord claimed);
  // What RunJob does once; kUnavailable if it may be tried again.
  absl::StatusOr<RunOutput> RunOnce(const std::shared_ptr<Running>& running);
  void RunJob(const std::shared_ptr<Running>& running);
  void EndJob(Running& running, absl::StatusOr<RunOutput> output);
  absl::Status StoreEnd(const JobRecord& job, const JobOutcome& outcome);
  void TellWatchers(absl::Time now);

  const JobManagerOptions options_;
  const JobLimits limits_;
  const bool shared_;
  std::unique_ptr<PartCrew> crew_;  // null: jobs are not shared out
  std::thread service_;
  // Of the service thread alone.
  std::chrono::steady_clock::time_point looked_;
  Mutex ticking_;  // one Tick at a time
  absl::Time last_sweep_ ABSL_GUARDED_BY(ticking_) = absl::InfinitePast();

  Mutex mutex_;
  CondVar wake_;     // the service thread
  CondVar changed_;  // Wait and Drain
  std::map<std::string, std::shared_ptr<Running>> running_
      ABSL_GUARDED_BY(mutex_);
  std::vector<std::thread> ended_ ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::vector<std::unique_ptr<BlobPin>>> pins_
      ABSL_GUARDED_BY(mutex_);
  std::map<std::string, std::unique_ptr<SpaceReservation>> spaces_
      ABSL_GUARDED_BY(mutex_);
  std::list<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mutex_);
  std::shared_ptr<const std::map<std::string, int>> positions_
      ABSL_GUARDED_BY(mutex_);
  std::chrono::steady_clock::time_point positions_made_ ABSL_GUARDED_BY(mutex_);
  uint64_t changes_ ABSL_GUARDED_BY(mutex_) = 0;  // calls of ChangedLocked
  bool wanted_ ABSL_GUARDED_BY(mutex_) = false;
  uint64_t reserved_memory_ ABSL_GUARDED_BY(mutex_) = 0;
  int helping_ ABSL_GUARDED_BY(mutex_) = 0;
  int streams_ ABSL_GUARDED_BY(mutex_) = 0;
  bool exiting_ ABSL_GUARDED_BY(mutex_) = false;
  // Set under the mutex; who waits looks at them without it.
  std::atomic<bool> draining_{false};
  std::atomic<bool> stopping_{false};  // the time to drain is over
};

// --- submission ---

absl::Status Manager::CheckSpec(const JobSpec& spec) const {
  OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(spec.xml));
  OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(spec.bin));
  const auto bad = [](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat(parts...));
  };
  if (spec.request_id.size() >
          static_cast<size_t>(limits_.max_request_id_bytes) ||
      !std::all_of(spec.request_id.begin(), spec.request_id.end(), [](char c) {
        return absl::ascii_isalnum(static_cast<unsigned char>(c)) || c == '.' ||
               c == '_' || c == '-';
      })) {
    return bad("request_id must be at most ", limits_.max_request_id_bytes,
               " of [A-Za-z0-9._-]");
  }
  if (spec.priority < limits_.min_priority ||
      spec.priority > limits_.max_priority) {
    return bad("priority ", spec.priority, " must be from ",
               limits_.min_priority, " to ", limits_.max_priority);
  }
  if (spec.labels.size() > static_cast<size_t>(limits_.max_labels)) {
    return bad(spec.labels.size(), " labels, at most ", limits_.max_labels);
  }
  for (const auto& [key, value] : spec.labels) {
    const bool key_ok =
        !key.empty() &&
        key.size() <= static_cast<size_t>(limits_.max_label_key_bytes) &&
        std::all_of(key.begin(), key.end(), [](char c) {
          return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '.' ||
                 c == '_' || c == '-';
        });
    if (!key_ok ||
        value.size() > static_cast<size_t>(limits_.max_label_value_bytes)) {
      return bad("label '", absl::CHexEscape(key.substr(0, 80)),
                 "': keys are 1 to ", limits_.max_label_key_bytes,
                 " of [a-z0-9._-], values at most ",
                 limits_.max_label_value_bytes, " bytes");
    }
  }
  if (spec.ttl < absl::ZeroDuration() || spec.ttl > limits_.max_result_ttl) {
    return bad("ttl ", absl::FormatDuration(spec.ttl), " must be at most ",
               absl::FormatDuration(limits_.max_result_ttl));
  }
  if (spec.max_run_time < absl::ZeroDuration()) {
    return bad("max_run_time must not be negative");
  }
  if (spec.memory_budget_bytes != 0 &&
      (spec.memory_budget_bytes < limits_.min_job_memory_bytes ||
       spec.memory_budget_bytes > limits_.total_memory_bytes)) {
    return bad("memory_budget_bytes ", spec.memory_budget_bytes,
               " must be from ", limits_.min_job_memory_bytes, " to ",
               limits_.total_memory_bytes);
  }
  if (spec.options_json.size() > limits_.max_options_bytes) {
    return bad("options of ", spec.options_json.size(), " bytes, at most ",
               limits_.max_options_bytes);
  }
  if (spec.xml.size_bytes > limits_.max_xml_bytes) {
    return LimitError("the .xml is too large",
                      {.limit = "max_xml_bytes",
                       .subject = "server",
                       .limit_value = limits_.max_xml_bytes,
                       .requested = spec.xml.size_bytes});
  }
  return absl::OkStatus();
}

absl::Status Manager::QueueFull(JobStore::Full where, const std::string& owner,
                                const JobStore::QueueLimits& line) const {
  const bool all = where == JobStore::Full::kAll;
  const uint64_t limit = static_cast<uint64_t>(all ? line.all : line.owner);
  return LimitError("the queue is full",
                    {.limit = all ? "max_queued" : "max_queued_per_owner",
                     .subject = all ? "server" : absl::StrCat("client:", owner),
                     .limit_value = limit,
                     .requested = limit + 1,
                     .retry_after = limits_.default_retry_after});
}

absl::StatusOr<JobView> Manager::SubmitChecked(const JobSpec& spec,
                                               bool validate_only) {
  {
    MutexLock lock(&mutex_);
    if (draining_) return DrainingError(limits_.default_retry_after);
  }
  OVPRESS_RETURN_IF_ERROR(CheckSpec(spec));
  const auto replay = [&](JobRecord earlier) -> absl::StatusOr<JobView> {
    if (earlier.spec != spec) {
      return absl::AlreadyExistsError(absl::StrCat(
          "request_id ", spec.request_id,
          " was used with other arguments for operations/", earlier.id));
    }
    return View(std::move(earlier));
  };
  if (!spec.request_id.empty()) {
    OVPRESS_ASSIGN_OR_RETURN(
        std::optional<JobRecord> earlier,
        options_.jobs->FindByRequestId(spec.owner, spec.request_id));
    if (earlier.has_value()) return replay(*std::move(earlier));
  }
  const BlobRef inputs[] = {spec.xml, spec.bin};
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<BlobPin> pin,
                           options_.blobs->Pin(spec.owner, inputs));
  JobRecord job;
  job.id = RandomJobId();
  job.spec = spec;
  job.cache_key = ResultCacheKey(spec, options_.runner->engine_version());
  if (!spec.ignore_result_cache) {
    OVPRESS_ASSIGN_OR_RETURN(
        const std::optional<JobRecord> earlier,
        options_.jobs->FindResult(spec.owner, job.cache_key));
    if (earlier.has_value()) {
      auto outputs = options_.blobs->Pin(spec.owner, BlobsHeldBy(*earlier));
      if (outputs.ok()) {
        if (options_.observer) options_.observer->OnResultCache(true);
        job.state = JobState::kSucceeded;
        job.result = earlier->result;
        job.result.cache_hit = true;
        pin = *std::move(outputs);
      }
    }
    if (job.state == JobState::kQueued && options_.observer) {
      options_.observer->OnResultCache(false);
    }
  }
  std::unique_ptr<SpaceReservation> space;
  const JobStore::QueueLimits line{
      .all = limits_.max_queued,
      .owner = QuotaOf(spec.owner)
                   .max_queued.value_or(limits_.max_queued_per_owner)};
  if (job.state == JobState::kQueued) {
    OVPRESS_ASSIGN_OR_RETURN(const JobEstimate estimate,
                             options_.runner->Estimate(options_.blobs, spec));
    job.memory_bytes = estimate.memory_bytes;
    job.disk_bytes = estimate.output_bytes;
    if (job.memory_bytes > limits_.total_memory_bytes) {
      return LimitError("the job needs more memory than the server gives",
                        {.limit = "total_memory_bytes",
                         .subject = "server",
                         .limit_value = limits_.total_memory_bytes,
                         .requested = job.memory_bytes});
    }
    // Before space is made for it; Insert() looks once more.
    OVPRESS_ASSIGN_OR_RETURN(const JobStore::Full full,
                             options_.jobs->FindPlace(spec.owner, line));
    if (full != JobStore::Full::kNo) return QueueFull(full, spec.owner, line);
    OVPRESS_ASSIGN_OR_RETURN(
        space, options_.blobs->Reserve(spec.owner, job.disk_bytes));
  }
  if (validate_only) {
    job.id.clear();
    return JobView{.record = std::move(job)};
  }
  if (!shared_) {
    // Before the job can be seen and started. A shared store keeps the blobs,
    // and whoever will run the job sets space aside then.
    MutexLock lock(&mutex_);
    pins_[job.id].push_back(std::move(pin));
    if (space != nullptr) spaces_[job.id] = std::move(space);
  }
  absl::StatusOr<JobStore::Inserted> inserted =
      options_.jobs->Insert(job, Ttl(spec), line);
  if (!inserted.ok() || inserted->existed ||
      inserted->full != JobStore::Full::kNo) {
    Release(job.id);
    OVPRESS_RETURN_IF_ERROR(inserted.status());
    if (inserted->existed) return replay(std::move(inserted->job));
    return QueueFull(inserted->full, spec.owner, line);
  }
  job = std::move(inserted->job);
  if (options_.observer) {
    options_.observer->OnJobSubmitted(job);
    if (IsFinal(job.state)) {
      options_.observer->OnJobFinished(job, absl::ZeroDuration());
    }
  }
  {
    MutexLock lock(&mutex_);
    positions_ = nullptr;
    WakeLocked();
  }
  return View(std::move(job));
}

absl::StatusOr<int> Manager::Positions::Of(const std::string& id) {
  if (by_id_ == nullptr && manager_->shared_) {
    MutexLock lock(&manager_->mutex_);
    if (std::chrono::steady_clock::now() - manager_->positions_made_ <
        kPositionsAge) {
      by_id_ = manager_->positions_;
    }
  }
  if (by_id_ == nullptr) {
    OVPRESS_ASSIGN_OR_RETURN(const JobStore::Line line,
                             manager_->options_.jobs->GetLine(0));
    const SchedulerState state{.owners = line.owners};
    auto by_id = std::make_shared<std::map<std::string, int>>();
    int position = 0;
    for (const size_t index :
         QueueOrder(line.waiting, state, line.now, manager_->limits_)) {
      (*by_id)[line.waiting[index].id] = ++position;
    }
    by_id_ = by_id;
    MutexLock lock(&manager_->mutex_);
    manager_->positions_ = by_id;
    manager_->positions_made_ = std::chrono::steady_clock::now();
  }
  const auto it = by_id_->find(id);
  return it == by_id_->end() ? 0 : it->second;
}

absl::StatusOr<JobView> Manager::View(JobRecord job) {
  Positions positions(this);
  return View(std::move(job), &positions);
}

absl::StatusOr<JobView> Manager::View(JobRecord job, Positions* positions) {
  JobView view;
  if (job.state == JobState::kRunning) {
    view.progress = job.progress;  // if another server runs it
    {
      MutexLock lock(&mutex_);
      const auto it = running_.find(job.id);
      if (it != running_.end() &&
          it->second->job.lease.fencing_token == job.lease.fencing_token) {
        view.progress = it->second->progress;
        view.progress.phase_elapsed = Now() - it->second->phase_start;
      }
    }
    if (view.progress.bytes_total > 0 && view.progress.bytes_done > 0 &&
        view.progress.bytes_done * 20 >= view.progress.bytes_total) {
      const double left = static_cast<double>(view.progress.bytes_total -
                                              view.progress.bytes_done) /
                          static_cast<double>(view.progress.bytes_done);
      view.eta = view.progress.phase_elapsed * left;
    }
  } else if (job.state == JobState::kQueued) {
    OVPRESS_ASSIGN_OR_RETURN(view.queue_position, positions->Of(job.id));
  }
  view.record = std::move(job);
  return view;
}

// --- running ---

void Manager::Tick() { RunTick(true); }

void Manager::RunTick(bool look) {
  MutexLock ticking(&ticking_);
  const absl::Time now = Now();
  Reap();
  CheckRunning(now);
  if (look) StartJobs();
  TellWatchers(now);
  if (now - last_sweep_ < limits_.sweep_interval) return;
  last_sweep_ = now;
  const auto expired = options_.jobs->DeleteExpired(1000);
  if (expired.ok()) {
    for (const JobRecord& job : *expired) {
      Release(job.id);
      if (options_.observer) options_.observer->OnJobExpired(job);
    }
  }
  options_.blobs->Sweep();
}

void Manager::Reap() {
  std::vector<std::thread> ended;
  {
    MutexLock lock(&mutex_);
    ended.swap(ended_);
  }
  for (std::thread& thread : ended) thread.join();
}

void Manager::CheckRunning(absl::Time now) {
  const auto steady = std::chrono::steady_clock::now();
  const absl::Duration pause =
      shared_ ? std::min(limits_.lease / 3, kSharedRenewal) : limits_.lease / 3;
  std::vector<std::shared_ptr<Running>> jobs;
  std::vector<JobStore::Held> held;
  {
    MutexLock lock(&mutex_);
    for (const auto& [id, running] : running_) {
      if (now >= running->deadline) StopLocked(id, StopReason::kDeadline);
      const absl::Duration since =
          std::max(now - running->renewed,
                   absl::FromChrono(steady - running->renewed_steady));
      // Others' watchers are told as often as ours.
      const bool news = shared_ && running->progress != running->told;
      if (since < pause && !(news && since >= limits_.watch_interval)) continue;
      running->renewed = now;
      running->renewed_steady = steady;
      jobs.push_back(running);
      held.push_back(
          {.id = id, .fencing_token = running->job.lease.fencing_token});
      if (!news) continue;
      running->told = running->progress;
      held.back().progress = running->progress;
      held.back().progress->phase_elapsed = now - running->phase_start;
    }
  }
  if (held.empty()) return;
  const auto renewed = options_.jobs->Renew(held, limits_.lease);
  if (!renewed.ok()) {
    // The jobs go on. If the store is back before the leases end nothing was
    // lost; if not, their ends will find out whether somebody took them.
    Log(Observer::Severity::kWarning, "", renewed.status().message());
    return;
  }
  MutexLock lock(&mutex_);
  for (size_t i = 0; i < jobs.size(); ++i) {
    const auto it = running_.find(held[i].id);
    if (it == running_.end() || it->second != jobs[i]) continue;
    if ((*renewed)[i].lost) {
      StopLocked(held[i].id, StopReason::kLeaseLost);
    } else if ((*renewed)[i].cancel_requested) {
      StopLocked(held[i].id, StopReason::kCancelled);
    }
  }
}

void Manager::StartJobs() {
  while (true) {
    SchedulerState state;
    {
      MutexLock lock(&mutex_);
      if (draining_) return;
      state.running = static_cast<int>(running_.size()) + helping_;
      if (state.running >= limits_.max_running) return;
      state.free_memory_bytes =
          limits_.total_memory_bytes -
          std::min(limits_.total_memory_bytes, reserved_memory_);
    }
    const absl::StatusOr<JobStore::Line> line =
        options_.jobs->GetLine(kLookPerRank);
    if (!line.ok()) {
      Log(Observer::Severity::kError, "", line.status().message());
      return;
    }
    state.owners = line->owners;
    for (auto& [owner, use] : state.owners) {
      use.max_running = QuotaOf(owner).max_running;
    }
    JobStore::ClaimRequest request{.server_id = options_.server_id,
                                   .lease = limits_.lease};
    bool failed = false;
    for (const size_t index :
         PickNext(line->waiting, state, line->now, limits_, kOffered)) {
      const WaitingJob& job = line->waiting[index];
      if (job.attempt < limits_.max_attempts) {
        // One whose lease ended while the database was away still runs here,
        // and its token is good as long as nobody else takes it.
        MutexLock lock(&mutex_);
        if (running_.count(job.id) == 0) {
          request.offers.push_back(
              {job.id, state.owners[job.owner].max_running.value_or(
                           limits_.max_running_per_owner)});
        }
        continue;
      }
      failed = true;
      const absl::Status error = absl::InternalError(
          absl::StrCat("the server stopped ", job.attempt,
                       " times while it ran this job; the job may be the "
                       "reason"));
      Log(Observer::Severity::kError, job.id, error.message());
      const absl::Status stored = options_.jobs->FailWaiting(
          job.id, {.state = JobState::kFailed,
                   .error = error,
                   .ttl = limits_.default_result_ttl});
      if (!stored.ok() && !absl::IsAborted(stored)) return;
      Release(job.id);
    }
    if (request.offers.empty()) {
      if (failed) continue;
      if (line->open_parts &&
          !JobsWait(line->waiting, state, line->now, limits_)) {
        HelpOthers();
      }
      return;
    }
    absl::StatusOr<std::optional<JobRecord>> claimed =
        options_.jobs->Claim(request);
    if (!claimed.ok()) {
      Log(Observer::Severity::kError, "", claimed.status().message());
      return;
    }
    // Others were faster; they are told of what is left as we are.
    if (!claimed->has_value()) return;
    StartJob(**std::move(claimed));
  }
}

void Manager::HelpOthers() {
  if (crew_ == nullptr) return;
  uint64_t free_memory = 0;
  {
    MutexLock lock(&mutex_);
    free_memory = limits_.total_memory_bytes -
                  std::min(limits_.total_memory_bytes, reserved_memory_);
  }
  const absl::StatusOr<bool> begun =
      crew_->Help(free_memory, [this](int64_t bytes) {
        MutexLock lock(&mutex_);
        reserved_memory_ += static_cast<uint64_t>(bytes);
        helping_ += bytes > 0 ? 1 : -1;
        if (bytes > 0) return;
        WakeLocked();
        ChangedLocked();
      });
  if (!begun.ok()) {
    Log(Observer::Severity::kWarning, "", begun.status().message());
  }
}

void Manager::StartJob(JobRecord claimed) {
  const absl::Time now = Now();
  auto running = std::make_shared<Running>();
  running->job = std::move(claimed);
  const JobRecord& job = running->job;
  running->deadline =
      now + (job.spec.max_run_time == absl::ZeroDuration()
                 ? limits_.max_run_time
                 : std::min(job.spec.max_run_time, limits_.max_run_time));
  running->begun = running->renewed = now;
  running->renewed_steady = std::chrono::steady_clock::now();
  running->phase_start = now;
  if (options_.observer) {
    options_.observer->OnJobStarted(job, job.started - job.created);
  }
  MutexLock lock(&mutex_);
  if (job.cancel_requested) {
    // Its server died before it saw that.
    running->reason = StopReason::kCancelled;
    running->stop = true;
  }
  positions_ = nullptr;
  reserved_memory_ += job.memory_bytes;
  running_[job.id] = running;
  running->thread = std::thread([this, running] { RunJob(running); });
}

void Manager::RunJob(const std::shared_ptr<Running>& running) {
  const JobRecord& job = running->job;
  absl::StatusOr<RunOutput> output = RunOnce(running);
  for (int run = 1; shared_ && run < kUnavailableRuns && !running->stop &&
                    absl::IsUnavailable(output.status());
       ++run) {
    Log(Observer::Severity::kWarning, job.id, output.status().message());
    const Patience patience(&running->stop);
    Patience::Sleep(std::chrono::milliseconds(250) * (1 << std::min(run, 5)));
    output = RunOnce(running);
  }
  if (running->stop && absl::IsUnavailable(output.status())) {
    output = absl::CancelledError(output.status().message());
  }
  EndJob(*running, std::move(output));
  MutexLock lock(&mutex_);
  reserved_memory_ -= job.memory_bytes;
  ended_.push_back(std::move(running->thread));
  running_.erase(job.id);
  WakeLocked();
  ChangedLocked();
}

absl::StatusOr<RunOutput> Manager::RunOnce(
    const std::shared_ptr<Running>& running) {
  const JobRecord& job = running->job;
  if (running->stop) return absl::CancelledError("stopped before it began");
  const Patience patience(&running->stop);
  const BlobRef inputs[] = {job.spec.xml, job.spec.bin};
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<BlobPin> pin,
                           options_.blobs->Pin(job.spec.owner, inputs));
  std::unique_ptr<SpaceReservation> space;
  {
    MutexLock lock(&mutex_);
    if (const auto it = spaces_.find(job.id); it != spaces_.end()) {
      space = std::move(it->second);
      spaces_.erase(it);
    }
  }
  if (space == nullptr) {  // after a restart, or submitted elsewhere
    OVPRESS_ASSIGN_OR_RETURN(
        space, options_.blobs->Reserve(job.spec.owner, job.disk_bytes));
  }
  const std::unique_ptr<Executor> view =
      options_.executor->MakeView(WeightOfPriority(job.spec.priority));
  RunContext context;
  context.executor = view.get();
  context.blobs = options_.blobs;
  context.space = space.get();
  context.memory_budget_bytes = job.spec.memory_budget_bytes != 0
                                    ? job.spec.memory_budget_bytes
                                    : limits_.default_job_memory_bytes;
  context.stop = &running->stop;
  context.progress = [this, &running](const JobProgress& progress) {
    MutexLock lock(&mutex_);
    if (progress.phase != running->phase) {
      const absl::Time now = Now();
      if (options_.observer && !running->phase.empty()) {
        options_.observer->OnPhaseDone(running->job, running->phase,
                                       now - running->phase_start);
      }
      running->phase = progress.phase;
      running->phase_start = now;
    }
    running->progress = progress;
  };
  std::unique_ptr<PartBoard> board;
  if (crew_ != nullptr && limits_.share_jobs_above_bytes > 0 &&
      job.attempt <= kSharedAttempts &&
      job.spec.bin.size_bytes >= limits_.share_jobs_above_bytes) {
    board = crew_->MakeBoard(job, context);
    context.board = board.get();
  }
  return options_.runner->Run(job.spec, context);
}

void Manager::EndJob(Running& running, absl::StatusOr<RunOutput> output) {
  const JobRecord& job = running.job;
  StopReason reason;
  {
    MutexLock lock(&mutex_);
    reason = running.reason;
  }
  JobOutcome outcome{.ttl = Ttl(job.spec)};
  if (output.ok()) {
    outcome.state = JobState::kSucceeded;
    outcome.result = std::move(output->result);
  } else if (reason == StopReason::kShutdown &&
             absl::IsCancelled(output.status())) {
    const Patience patience(&stopping_, kStopGrace);
    const absl::Status status =
        options_.jobs->Requeue(job.id, job.lease.fencing_token);
    Log(Observer::Severity::kInfo, job.id,
        status.ok() ? "handed back to the queue" : status.message());
    if (options_.observer) options_.observer->OnJobRequeued(job);
    return;
  } else if (reason == StopReason::kLeaseLost) {
    Log(Observer::Severity::kWarning, job.id, "lost to another server");
    return;
  } else if (reason == StopReason::kCancelled &&
             absl::IsCancelled(output.status())) {
    outcome.state = JobState::kCancelled;
    outcome.error = absl::CancelledError("cancelled by request");
  } else if (reason == StopReason::kDeadline &&
             absl::IsCancelled(output.status())) {
    outcome.error = absl::DeadlineExceededError(absl::StrCat(
        "the job ran longer than its max_run_time, ",
        absl::FormatDuration(
            job.spec.max_run_time == absl::ZeroDuration()
                ? limits_.max_run_time
                : std::min(job.spec.max_run_time, limits_.max_run_time))));
  } else {
    outcome.error = output.status();
  }
  // The result pins first: once the end is stored the result must be there.
  std::vector<std::unique_ptr<BlobPin>> inputs;
  {
    MutexLock lock(&mutex_);
    inputs = std::move(pins_[job.id]);
    pins_.erase(job.id);
    if (output.ok()) pins_[job.id] = std::move(output->pins);
  }
  const absl::Status stored = StoreEnd(job, outcome);
  if (!stored.ok()) {
    // What it made is dropped: whoever runs the job next makes it again.
    {
      MutexLock lock(&mutex_);
      std::swap(pins_[job.id], inputs);
    }
    Log(Observer::Severity::kError, job.id,
        absl::StrCat("the end could not be stored: ", stored.message()));
    if (shared_) Release(job.id);
    return;
  }
  // From here on a shared store keeps the result.
  if (shared_) Release(job.id);
  JobRecord ended = job;
  ended.state = outcome.state;
  ended.error = outcome.error;
  ended.result = outcome.result;
  if (options_.observer) {
    options_.observer->OnJobFinished(ended, Now() - running.begun);
  }
  Log(outcome.state == JobState::kFailed ? Observer::Severity::kWarning
                                         : Observer::Severity::kInfo,
      job.id, outcome.error.ok() ? "done" : outcome.error.message());
}

absl::Status Manager::StoreEnd(const JobRecord& job,
                               const JobOutcome& outcome) {
  // A full disk or a busy file seldom mends itself: two seconds. A shared
  // database that is restarted comes back, and as long as it is away nobody
  // else can take the job: the work of hours is worth the wait.
  const auto until = After(shared_ ? kSharedStoreWait : absl::Seconds(2));
  const Patience patience(&stopping_, kStopGrace);
  while (true) {
    const absl::Status stored =
        options_.jobs->Finish(job.id, job.lease.fencing_token, outcome);
    if (!absl::IsUnavailable(stored) && !absl::IsResourceExhausted(stored)) {
      return stored;
    }
    if (std::chrono::steady_clock::now() >= until) return stored;
    if (stopping_) return stored;
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
}

// --- watching ---

class Manager::WatchImpl final : public Watch {
 public:
  WatchImpl(Manager* manager, std::shared_ptr<Watcher> watcher)
      : manager_(manager), watcher_(std::move(watcher)) {}
  ~WatchImpl() override {
    {
      MutexLock lock(&manager_->mutex_);
      manager_->watchers_.remove(watcher_);
    }
    if (std::this_thread::get_id() == manager_->service_.get_id()) return;
    MutexLock calling(&watcher_->calling);
    watcher_->alive = false;
  }

 private:
  Manager* const manager_;
  const std::shared_ptr<Watcher> watcher_;
};

absl::StatusOr<std::unique_ptr<Watch>> Manager::Subscribe(
    const Owner& owner, absl::string_view id, WatchCallback callback) {
  OVPRESS_RETURN_IF_ERROR(Find(owner, id).status());
  auto watcher = std::make_shared<Watcher>();
  watcher->id = std::string(id);
  watcher->callback = std::move(callback);
  MutexLock lock(&mutex_);
  watchers_.push_back(watcher);
  WakeLocked();
  return std::make_unique<WatchImpl>(this, watcher);
}

void Manager::TellWatchers(absl::Time now) {
  std::vector<std::shared_ptr<Watcher>> watchers;
  {
    MutexLock lock(&mutex_);
    watchers.assign(watchers_.begin(), watchers_.end());
  }
  std::vector<std::string> ids;
  for (const auto& watcher : watchers) {
    if (!watcher->finished) ids.push_back(watcher->id);
  }
  std::sort(ids.begin(), ids.end());
  ids.erase(std::unique(ids.begin(), ids.end()), ids.end());
  if (ids.empty()) return;
  auto stored = options_.jobs->GetAll(ids);
  // Nothing is known now: the watchers wait with us.
  if (absl::IsUnavailable(stored.status())) return;
  std::map<std::string, JobRecord> jobs;
  if (stored.ok()) {
    for (JobRecord& job : *stored) {
      std::string id = job.id;
      jobs[std::move(id)] = std::move(job);
    }
  }
  Positions positions(this);
  for (const auto& watcher : watchers) {
    if (watcher->finished) continue;
    absl::StatusOr<JobView> view = NoSuchJob(watcher->id);
    if (!stored.ok()) view = stored.status();
    if (const auto it = jobs.find(watcher->id); it != jobs.end()) {
      view = View(it->second, &positions);
      if (absl::IsUnavailable(view.status())) return;
    }
    const bool final = !view.ok() || IsFinal(view->record.state);
    std::string seen = "gone";
    if (view.ok()) {
      seen = absl::StrCat(view->record.state, "|", view->record.attempt, "|",
                          view->queue_position, "|", view->progress.phase, "|",
                          view->progress.bytes_done);
    }
    if (!final && (seen == watcher->last_seen ||
                   now - watcher->last_told < limits_.watch_interval)) {
      continue;
    }
    watcher->last_seen = seen;
    watcher->last_told = now;
    watcher->finished = final;
    MutexLock calling(&watcher->calling);
    if (watcher->alive) watcher->callback(view);
  }
}

// --- streams ---

class Manager::Slot final : public StreamSlot {
 public:
  Slot(Manager* manager, uint64_t memory, std::unique_ptr<Executor> executor)
      : manager_(manager), memory_(memory), executor_(std::move(executor)) {}
  ~Slot() override {
    MutexLock lock(&manager_->mutex_);
    --manager_->streams_;
    manager_->reserved_memory_ -= memory_;
    manager_->changed_.SignalAll();
    manager_->WakeLocked();
  }
  Executor* executor() override { return executor_.get(); }
  const std::atomic<bool>* stop() const override {
    return &manager_->stopping_;
  }
  uint64_t memory_budget_bytes() const override { return memory_; }

 private:
  Manager* const manager_;
  const uint64_t memory_;
  const std::unique_ptr<Executor> executor_;
};

absl::StatusOr<std::unique_ptr<StreamSlot>> Manager::OpenStream(
    const StreamRequest& request) {
  const uint64_t memory = request.memory_budget_bytes != 0
                              ? request.memory_budget_bytes
                              : limits_.default_job_memory_bytes;
  if (memory < limits_.min_job_memory_bytes ||
      memory > limits_.total_memory_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "memory_budget_bytes ", memory, " must be from ",
        limits_.min_job_memory_bytes, " to ", limits_.total_memory_bytes));
  }
  {
    MutexLock lock(&mutex_);
    if (draining_) return DrainingError(limits_.default_retry_after);
    const bool full = streams_ >= limits_.max_streams;
    if (full || reserved_memory_ + memory > limits_.total_memory_bytes) {
      const LimitDetails details{
          .limit = full ? "max_streams" : "total_memory_bytes",
          .subject = "server",
          .limit_value = full ? static_cast<uint64_t>(limits_.max_streams)
                              : limits_.total_memory_bytes,
          .requested = full ? static_cast<uint64_t>(streams_) + 1
                            : reserved_memory_ + memory,
          .retry_after = limits_.default_retry_after};
      if (options_.observer) {
        options_.observer->OnAdmissionRejected(details.limit);
      }
      return LimitError("no room for another stream", details);
    }
    ++streams_;
    reserved_memory_ += memory;
  }
  return std::make_unique<Slot>(
      this, memory,
      options_.executor->MakeView(WeightOfPriority(request.priority)));
}

}  // namespace

absl::StatusOr<std::unique_ptr<JobManager>> JobManager::Create(
    JobManagerOptions options) {
  auto manager = std::make_unique<Manager>(std::move(options));
  OVPRESS_RETURN_IF_ERROR(manager->Start());
  return manager;
}

std::string ResultCacheKey(const JobSpec& spec,
                           absl::string_view engine_version) {
  return Sha256Hex(absl::StrCat(BlobName(spec.xml), "\n", BlobName(spec.bin),
                                "\n", engine_version, "\n", spec.measure_error,
                                "\n", spec.canonical_options));
}

}  // namespace ovpress
