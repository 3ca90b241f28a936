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
#include "core/base/status_macros.h"
#include "server/jobs/errors.h"
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

struct Running {
  JobRecord job;
  absl::Time deadline;
  absl::Time renewed;
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
      : options_(std::move(options)), limits_(options_.limits) {}

  ~Manager() override {
    Drain(absl::ZeroDuration());
    {
      MutexLock lock(&mutex_);
      exiting_ = true;
      wake_.SignalAll();
    }
    if (service_.joinable()) service_.join();
  }

  absl::Status Start() {
    OVPRESS_ASSIGN_OR_RETURN(const std::vector<JobRecord> requeued,
                             options_.jobs->RequeueOf(options_.server_id));
    for (const JobRecord& job : requeued) {
      if (options_.observer) options_.observer->OnJobRequeued(job);
      Log(Observer::Severity::kInfo, job.id, "was running; queued again");
    }
    OVPRESS_ASSIGN_OR_RETURN(const std::vector<JobRecord> holders,
                             options_.jobs->ListHolders());
    for (const JobRecord& job : holders) {
      auto pin = options_.blobs->Pin(job.spec.owner, BlobsOf(job));
      if (!pin.ok()) {
        Log(Observer::Severity::kWarning, job.id, pin.status().message());
        continue;
      }
      MutexLock lock(&mutex_);
      pins_[job.id].push_back(*std::move(pin));
    }
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
    const absl::Time now = Now();
    OVPRESS_ASSIGN_OR_RETURN(
        job, options_.jobs->RequestCancel(id, now, now + Ttl(job.spec)));
    if (was_queued && job.state == JobState::kCancelled) {
      if (options_.observer) {
        options_.observer->OnJobFinished(job, absl::ZeroDuration());
      }
      Release(job.id);
    }
    MutexLock lock(&mutex_);
    StopLocked(std::string(id), StopReason::kCancelled);
    wake_.SignalAll();
    changed_.SignalAll();
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
      OVPRESS_ASSIGN_OR_RETURN(JobView view, Get(owner, id));
      if (IsFinal(view.record.state) ||
          std::chrono::steady_clock::now() >= until) {
        return view;
      }
      MutexLock lock(&mutex_);
      // Another server may end the job: look again now and then.
      changed_.WaitUntil(&mutex_,
                         std::min(until, After(absl::Milliseconds(200))));
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
      while ((!running_.empty() || streams_ > 0) &&
             std::chrono::steady_clock::now() < until) {
        changed_.WaitUntil(&mutex_,
                           std::min(until, After(absl::Milliseconds(100))));
      }
      report.finished =
          static_cast<int>(at_start - std::min(at_start, running_.size()));
      report.requeued = static_cast<int>(running_.size());
      stop_streams_ = true;
      for (auto& [id, running] : running_) {
        StopLocked(id, StopReason::kShutdown);
      }
      while (!running_.empty()) {
        changed_.WaitUntil(&mutex_, After(absl::Milliseconds(100)));
      }
    }
    Reap();
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

  static std::vector<BlobRef> BlobsOf(const JobRecord& job) {
    if (job.state == JobState::kSucceeded) {
      return {job.result.xml, job.result.bin, job.result.report};
    }
    return {job.spec.xml, job.spec.bin};
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
    bool known_ = false;
    std::map<std::string, int> by_id_;
  };
  absl::StatusOr<std::vector<WaitingJob>> Waiting(absl::Time now);
  absl::StatusOr<JobView> View(JobRecord job);
  absl::StatusOr<JobView> View(JobRecord job, Positions* positions);
  absl::Status CheckSpec(const JobSpec& spec) const;
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

  void Serve() {
    while (true) {
      Tick();
      MutexLock lock(&mutex_);
      if (exiting_) return;
      wake_.WaitUntil(&mutex_,
                      After(std::min(limits_.tick_interval, absl::Seconds(1))));
    }
  }

  void Reap();
  void CheckRunning(absl::Time now);
  void StartJobs(absl::Time now);
  void StartJob(const JobRecord& waiting, absl::Time now);
  void RunJob(const std::shared_ptr<Running>& running);
  void EndJob(Running& running, absl::StatusOr<RunOutput> output);
  void TellWatchers(absl::Time now);

  const JobManagerOptions options_;
  const JobLimits limits_;
  std::thread service_;
  Mutex ticking_;    // one Tick at a time
  Mutex admitting_;  // one job at a time, once its estimate is known
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
  std::map<std::string, OwnerUse> owners_ ABSL_GUARDED_BY(mutex_);
  std::list<std::shared_ptr<Watcher>> watchers_ ABSL_GUARDED_BY(mutex_);
  int64_t starts_ ABSL_GUARDED_BY(mutex_) = 0;
  uint64_t reserved_memory_ ABSL_GUARDED_BY(mutex_) = 0;
  int streams_ ABSL_GUARDED_BY(mutex_) = 0;
  bool draining_ ABSL_GUARDED_BY(mutex_) = false;
  bool exiting_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> stop_streams_{false};
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
  const absl::Time now = Now();
  JobRecord job;
  job.id = RandomJobId();
  job.spec = spec;
  job.created = now;
  job.cache_key = ResultCacheKey(spec, options_.runner->engine_version());
  if (!spec.ignore_result_cache) {
    OVPRESS_ASSIGN_OR_RETURN(
        const std::optional<JobRecord> earlier,
        options_.jobs->FindResult(spec.owner, job.cache_key, now));
    if (earlier.has_value()) {
      auto outputs = options_.blobs->Pin(spec.owner, BlobsOf(*earlier));
      if (outputs.ok()) {
        if (options_.observer) options_.observer->OnResultCache(true);
        job.state = JobState::kSucceeded;
        job.result = earlier->result;
        job.result.cache_hit = true;
        job.started = job.finished = now;
        job.expires = now + Ttl(spec);
        pin = *std::move(outputs);
      }
    }
    if (job.state == JobState::kQueued && options_.observer) {
      options_.observer->OnResultCache(false);
    }
  }
  std::unique_ptr<SpaceReservation> space;
  // From the count of queued jobs to the insertion of one more, so that calls
  // at the same time cannot pass the limit together.
  std::optional<MutexLock> admitting;
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
    admitting.emplace(&admitting_);
    OVPRESS_ASSIGN_OR_RETURN(const JobStore::Counts all,
                             options_.jobs->Count(std::nullopt));
    OVPRESS_ASSIGN_OR_RETURN(const JobStore::Counts own,
                             options_.jobs->Count(spec.owner));
    const bool full = all.queued >= limits_.max_queued;
    const int own_most =
        QuotaOf(spec.owner).max_queued.value_or(limits_.max_queued_per_owner);
    if (full || own.queued >= own_most) {
      return LimitError(
          "the queue is full",
          {.limit = full ? "max_queued" : "max_queued_per_owner",
           .subject = full ? "server" : absl::StrCat("client:", spec.owner),
           .limit_value =
               static_cast<uint64_t>(full ? limits_.max_queued : own_most),
           .requested =
               static_cast<uint64_t>(full ? all.queued : own.queued) + 1,
           .retry_after = limits_.default_retry_after});
    }
    OVPRESS_ASSIGN_OR_RETURN(
        space, options_.blobs->Reserve(spec.owner, job.disk_bytes));
  }
  if (validate_only) {
    job.id.clear();
    return JobView{.record = std::move(job)};
  }
  {
    // Before the job can be seen and started.
    MutexLock lock(&mutex_);
    pins_[job.id].push_back(std::move(pin));
    if (space != nullptr) spaces_[job.id] = std::move(space);
  }
  absl::StatusOr<JobStore::Inserted> inserted = options_.jobs->Insert(job);
  if (!inserted.ok() || inserted->existed) {
    Release(job.id);
    OVPRESS_RETURN_IF_ERROR(inserted.status());
    return replay(std::move(inserted->job));
  }
  admitting.reset();
  if (options_.observer) {
    options_.observer->OnJobSubmitted(job);
    if (IsFinal(job.state)) {
      options_.observer->OnJobFinished(job, absl::ZeroDuration());
    }
  }
  {
    MutexLock lock(&mutex_);
    wake_.SignalAll();
  }
  return View(std::move(job));
}

absl::StatusOr<int> Manager::Positions::Of(const std::string& id) {
  if (!known_) {
    OVPRESS_ASSIGN_OR_RETURN(const std::vector<WaitingJob> waiting,
                             manager_->Waiting(manager_->Now()));
    SchedulerState state;
    {
      MutexLock lock(&manager_->mutex_);
      state.owners = manager_->owners_;
    }
    int position = 0;
    for (const size_t index :
         QueueOrder(waiting, state, manager_->Now(), manager_->limits_)) {
      by_id_[waiting[index].id] = ++position;
    }
    known_ = true;
  }
  const auto it = by_id_.find(id);
  return it == by_id_.end() ? 0 : it->second;
}

absl::StatusOr<std::vector<WaitingJob>> Manager::Waiting(absl::Time now) {
  OVPRESS_ASSIGN_OR_RETURN(
      const std::vector<JobRecord> claimable,
      options_.jobs->ListClaimable(now, limits_.max_queued));
  std::vector<WaitingJob> waiting;
  waiting.reserve(claimable.size());
  for (const JobRecord& job : claimable) {
    waiting.push_back({job.id, job.spec.owner, job.spec.priority,
                       job.memory_bytes, job.created});
  }
  return waiting;
}

absl::StatusOr<JobView> Manager::View(JobRecord job) {
  Positions positions(this);
  return View(std::move(job), &positions);
}

absl::StatusOr<JobView> Manager::View(JobRecord job, Positions* positions) {
  JobView view;
  if (job.state == JobState::kRunning) {
    MutexLock lock(&mutex_);
    const auto it = running_.find(job.id);
    if (it != running_.end()) {
      view.progress = it->second->progress;
      const absl::Duration spent = Now() - it->second->phase_start;
      if (view.progress.bytes_total > 0 &&
          view.progress.bytes_done * 20 >= view.progress.bytes_total) {
        const double left = static_cast<double>(view.progress.bytes_total -
                                                view.progress.bytes_done) /
                            static_cast<double>(view.progress.bytes_done);
        view.eta = spent * left;
      }
    }
  } else if (job.state == JobState::kQueued) {
    OVPRESS_ASSIGN_OR_RETURN(view.queue_position, positions->Of(job.id));
  }
  view.record = std::move(job);
  return view;
}

// --- running ---

void Manager::Tick() {
  MutexLock ticking(&ticking_);
  const absl::Time now = Now();
  Reap();
  CheckRunning(now);
  StartJobs(now);
  TellWatchers(now);
  if (now - last_sweep_ < limits_.sweep_interval) return;
  last_sweep_ = now;
  const auto expired = options_.jobs->DeleteExpired(now, 1000);
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
  std::vector<std::shared_ptr<Running>> jobs;
  {
    MutexLock lock(&mutex_);
    for (const auto& [id, running] : running_) {
      if (now >= running->deadline) StopLocked(id, StopReason::kDeadline);
      if (now - running->renewed >= limits_.lease / 3) {
        running->renewed = now;
        jobs.push_back(running);
      }
    }
  }
  for (const auto& running : jobs) {
    const auto renewed = options_.jobs->Renew(
        running->job.id, running->job.lease.fencing_token, now + limits_.lease);
    MutexLock lock(&mutex_);
    if (absl::IsAborted(renewed.status()) ||
        absl::IsNotFound(renewed.status())) {
      StopLocked(running->job.id, StopReason::kLeaseLost);
    } else if (renewed.ok() && renewed->cancel_requested) {
      StopLocked(running->job.id, StopReason::kCancelled);
    }
  }
}

void Manager::StartJobs(absl::Time now) {
  while (true) {
    SchedulerState state;
    {
      MutexLock lock(&mutex_);
      if (draining_) return;
      state.running = static_cast<int>(running_.size());
      if (state.running >= limits_.max_running) return;
      state.free_memory_bytes =
          limits_.total_memory_bytes -
          std::min(limits_.total_memory_bytes, reserved_memory_);
      state.owners = owners_;
    }
    for (auto& [owner, use] : state.owners) {
      use.max_running = QuotaOf(owner).max_running;
    }
    const auto waiting = Waiting(now);
    if (!waiting.ok()) {
      Log(Observer::Severity::kError, "", waiting.status().message());
      return;
    }
    const std::optional<size_t> next = PickNext(*waiting, state, now, limits_);
    if (!next.has_value()) return;
    const auto job = options_.jobs->Get((*waiting)[*next].id);
    if (!job.ok()) {
      Log(Observer::Severity::kError, (*waiting)[*next].id,
          job.status().message());
      return;
    }
    StartJob(*job, now);
  }
}

void Manager::StartJob(const JobRecord& waiting, absl::Time now) {
  const auto fail = [&](absl::Status error) {
    Log(Observer::Severity::kError, waiting.id, error.message());
    options_.jobs
        ->FailQueued(waiting.id, {.state = JobState::kFailed,
                                  .error = std::move(error),
                                  .finished = now,
                                  .expires = now + Ttl(waiting.spec)})
        .IgnoreError();
    Release(waiting.id);
  };
  if (waiting.attempt >= limits_.max_attempts) {
    return fail(absl::InternalError(absl::StrCat(
        "the server stopped ", waiting.attempt,
        " times while it ran this job; the job may be the reason")));
  }
  std::vector<std::unique_ptr<BlobPin>> pins;
  const BlobRef inputs[] = {waiting.spec.xml, waiting.spec.bin};
  auto pin = options_.blobs->Pin(waiting.spec.owner, inputs);
  if (!pin.ok()) return fail(pin.status());
  auto claimed = options_.jobs->Claim(waiting.id, options_.server_id, now,
                                      now + limits_.lease);
  if (!claimed.ok()) {
    Log(Observer::Severity::kInfo, waiting.id, claimed.status().message());
    return;
  }
  auto running = std::make_shared<Running>();
  running->job = *std::move(claimed);
  const JobSpec& spec = running->job.spec;
  running->deadline =
      now + (spec.max_run_time == absl::ZeroDuration()
                 ? limits_.max_run_time
                 : std::min(spec.max_run_time, limits_.max_run_time));
  running->renewed = now;
  running->phase_start = now;
  if (options_.observer) {
    options_.observer->OnJobStarted(running->job, now - waiting.created);
  }
  MutexLock lock(&mutex_);
  pins_[waiting.id].push_back(*std::move(pin));
  reserved_memory_ += running->job.memory_bytes;
  OwnerUse& use = owners_[spec.owner];
  ++use.running;
  use.last_start = ++starts_;
  running_[waiting.id] = running;
  running->thread = std::thread([this, running] { RunJob(running); });
}

void Manager::RunJob(const std::shared_ptr<Running>& running) {
  const JobRecord& job = running->job;
  std::unique_ptr<SpaceReservation> space;
  {
    MutexLock lock(&mutex_);
    if (const auto it = spaces_.find(job.id); it != spaces_.end()) {
      space = std::move(it->second);
      spaces_.erase(it);
    }
  }
  absl::StatusOr<RunOutput> output = absl::UnknownError("did not run");
  if (space == nullptr) {  // after a restart
    auto reserved = options_.blobs->Reserve(job.spec.owner, job.disk_bytes);
    if (reserved.ok()) {
      space = *std::move(reserved);
    } else {
      output = reserved.status();
    }
  }
  if (space != nullptr) {
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
    output = options_.runner->Run(job.spec, context);
  }
  space.reset();
  EndJob(*running, std::move(output));
  MutexLock lock(&mutex_);
  reserved_memory_ -= job.memory_bytes;
  --owners_[job.spec.owner].running;
  ended_.push_back(std::move(running->thread));
  running_.erase(job.id);
  wake_.SignalAll();
  changed_.SignalAll();
}

void Manager::EndJob(Running& running, absl::StatusOr<RunOutput> output) {
  const JobRecord& job = running.job;
  StopReason reason;
  {
    MutexLock lock(&mutex_);
    reason = running.reason;
  }
  const absl::Time now = Now();
  JobOutcome outcome{.finished = now, .expires = now + Ttl(job.spec)};
  if (output.ok()) {
    outcome.state = JobState::kSucceeded;
    outcome.result = std::move(output->result);
  } else if (reason == StopReason::kShutdown &&
             absl::IsCancelled(output.status())) {
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
    outcome.error = absl::DeadlineExceededError(
        absl::StrCat("the job ran longer than its max_run_time, ",
                     absl::FormatDuration(running.deadline - job.started)));
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
  absl::Status stored;
  for (int attempt = 0; attempt < 10; ++attempt) {
    stored = options_.jobs->Finish(job.id, job.lease.fencing_token, outcome);
    if (!absl::IsUnavailable(stored) && !absl::IsResourceExhausted(stored)) {
      break;
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
  }
  if (!stored.ok()) {
    Log(Observer::Severity::kError, job.id,
        absl::StrCat("the end could not be stored: ", stored.message()));
    return;
  }
  JobRecord ended = job;
  ended.state = outcome.state;
  ended.error = outcome.error;
  ended.result = outcome.result;
  ended.finished = outcome.finished;
  if (options_.observer)
    options_.observer->OnJobFinished(ended, now - job.started);
  Log(outcome.state == JobState::kFailed ? Observer::Severity::kWarning
                                         : Observer::Severity::kInfo,
      job.id, outcome.error.ok() ? "done" : outcome.error.message());
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
  wake_.SignalAll();
  return std::make_unique<WatchImpl>(this, watcher);
}

void Manager::TellWatchers(absl::Time now) {
  std::vector<std::shared_ptr<Watcher>> watchers;
  {
    MutexLock lock(&mutex_);
    watchers.assign(watchers_.begin(), watchers_.end());
  }
  Positions positions(this);
  for (const auto& watcher : watchers) {
    if (watcher->finished) continue;
    absl::StatusOr<JobView> view = absl::UnknownError("not looked up");
    if (absl::StatusOr<JobRecord> job = Find(std::nullopt, watcher->id);
        job.ok()) {
      view = View(*std::move(job), &positions);
    } else {
      view = job.status();
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
    manager_->wake_.SignalAll();
  }
  Executor* executor() override { return executor_.get(); }
  const std::atomic<bool>* stop() const override {
    return &manager_->stop_streams_;
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
