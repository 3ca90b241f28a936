// One row per job; what no query looks at is JSON. Each method is one
// transaction over one connection under one lock; a transaction costs one
// fsync, far below what a job costs.
#include "server/jobs/sqlite_job_store.h"

#include <sqlite3.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <variant>

#include "absl/strings/str_cat.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "server/jobs/job_json.h"

namespace ovpress {
namespace {

using Value = std::variant<int64_t, std::string>;

class SqliteJobStore final : public JobStore {
 public:
  SqliteJobStore(std::string path, Clock* clock)
      : path_(std::move(path)), clock_(clock) {}
  ~SqliteJobStore() override { sqlite3_close_v2(db_); }

  absl::Status Open(absl::Duration busy_timeout) {
    MutexLock lock(&mutex_);
    const int code = sqlite3_open_v2(
        path_.c_str(), &db_,
        SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE | SQLITE_OPEN_NOMUTEX,
        nullptr);
    if (code != SQLITE_OK) return Error("cannot open", code);
    sqlite3_extended_result_codes(db_, 1);
    sqlite3_busy_timeout(
        db_, static_cast<int>(absl::ToInt64Milliseconds(busy_timeout)));
    OVPRESS_RETURN_IF_ERROR(Exec("PRAGMA journal_mode=WAL"));
    OVPRESS_RETURN_IF_ERROR(Exec("PRAGMA synchronous=FULL"));
    std::string check;
    OVPRESS_RETURN_IF_ERROR(
        Query("PRAGMA quick_check(1)", {}, [&check](sqlite3_stmt* row) {
          check = Text(row, 0);
          return absl::OkStatus();
        }));
    if (check != "ok") {
      // One line for the log.
      std::replace(check.begin(), check.end(), '\n', ' ');
      return absl::DataLossError(
          absl::StrCat("the job database ", path_, " is damaged (", check,
                       "); it was left as it is: restore a copy, or move it "
                       "away to start without the old jobs"));
    }
    int64_t version = 0;
    OVPRESS_RETURN_IF_ERROR(
        Query("PRAGMA user_version", {}, [&version](sqlite3_stmt* row) {
          version = sqlite3_column_int64(row, 0);
          return absl::OkStatus();
        }));
    if (version > kJobSchemaVersion) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the job database ", path_, " has schema ", version,
          ", this program knows ", kJobSchemaVersion,
          ": a newer ovpress wrote it; run that one, or another --data-dir"));
    }
    if (version == kJobSchemaVersion) return absl::OkStatus();
    return InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      for (int64_t step = version; step < kJobSchemaVersion; ++step) {
        OVPRESS_RETURN_IF_ERROR(Exec(kSteps[step]));
      }
      return Exec(absl::StrCat("PRAGMA user_version=", kJobSchemaVersion));
    });
  }

  bool shared() const override { return false; }
  void OnChange(std::function<void()>) override {}

  absl::StatusOr<Inserted> Insert(const JobRecord& given, absl::Duration ttl,
                                  const QueueLimits& limits) override {
    MutexLock lock(&mutex_);
    JobRecord job = given;
    job.created = clock_->Now();
    if (IsFinal(job.state)) {
      job.started = job.finished = job.created;
      job.expires = job.created + ttl;
    }
    Inserted inserted{.job = job};
    OVPRESS_RETURN_IF_ERROR(InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      if (!job.spec.request_id.empty()) {
        OVPRESS_ASSIGN_OR_RETURN(std::vector<JobRecord> found,
                                 Select("WHERE owner=? AND request_id=?",
                                        {job.spec.owner, job.spec.request_id}));
        if (!found.empty()) {
          inserted = {.job = std::move(found[0]), .existed = true};
          return absl::OkStatus();
        }
      }
      if (job.state == JobState::kQueued) {
        OVPRESS_ASSIGN_OR_RETURN(inserted.full,
                                 FullFor(job.spec.owner, limits));
        if (inserted.full != Full::kNo) return absl::OkStatus();
      }
      OVPRESS_RETURN_IF_ERROR(
          Query("INSERT INTO jobs(id,owner,request_id,state,cache_key,priority,"
                "created,expires,server_id,lease_expires,memory,disk,spec)"
                " VALUES(?,?,?,?,?,?,?,?,?,?,?,?,?)",
                {job.id, job.spec.owner, job.spec.request_id,
                 static_cast<int64_t>(job.state), job.cache_key,
                 static_cast<int64_t>(job.spec.priority),
                 ToStoredMicros(job.created), ToStoredMicros(job.expires),
                 job.lease.server_id, ToStoredMicros(job.lease.expires),
                 static_cast<int64_t>(job.memory_bytes),
                 static_cast<int64_t>(job.disk_bytes), SpecToJson(job.spec)}));
      return Update(job);
    }));
    return inserted;
  }

  absl::StatusOr<Full> FindPlace(const std::string& owner,
                                 const QueueLimits& limits) override {
    MutexLock lock(&mutex_);
    return FullFor(owner, limits);
  }

  absl::StatusOr<JobRecord> Get(absl::string_view id) override {
    MutexLock lock(&mutex_);
    return GetLocked(id);
  }

  absl::StatusOr<std::vector<JobRecord>> GetAll(
      const std::vector<std::string>& ids) override {
    MutexLock lock(&mutex_);
    std::vector<JobRecord> jobs;
    for (const std::string& id : ids) {
      OVPRESS_ASSIGN_OR_RETURN(std::vector<JobRecord> found,
                               Select("WHERE id=?", {id}));
      for (JobRecord& job : found) jobs.push_back(std::move(job));
    }
    return jobs;
  }

  absl::StatusOr<std::optional<JobRecord>> FindByRequestId(
      absl::string_view owner, absl::string_view request_id) override {
    MutexLock lock(&mutex_);
    return First(Select("WHERE owner=? AND request_id=?",
                        {std::string(owner), std::string(request_id)}));
  }

  absl::StatusOr<JobPage> List(const JobFilter& filter, int page_size,
                               absl::string_view page_token) override {
    OVPRESS_ASSIGN_OR_RETURN(const int64_t before,
                             ReadPageToken(filter, page_token));
    MutexLock lock(&mutex_);
    JobPage page;
    std::string where = "WHERE seq<?";
    std::vector<Value> values = {before};
    if (filter.owner.has_value()) {
      where += " AND owner=?";
      values.emplace_back(*filter.owner);
    }
    where += " ORDER BY seq DESC";
    int64_t last = 0;
    bool more = false;
    OVPRESS_RETURN_IF_ERROR(
        Query(kColumns + where, values, [&](sqlite3_stmt* row) -> absl::Status {
          OVPRESS_ASSIGN_OR_RETURN(JobRecord job, RecordOf(row));
          if (!filter.states.empty() &&
              std::find(filter.states.begin(), filter.states.end(),
                        job.state) == filter.states.end()) {
            return absl::OkStatus();
          }
          for (const auto& [name, value] : filter.labels) {
            const auto it = job.spec.labels.find(name);
            if (it == job.spec.labels.end() || it->second != value) {
              return absl::OkStatus();
            }
          }
          if (page.jobs.size() == static_cast<size_t>(page_size)) {
            more = true;
            return absl::CancelledError();  // enough
          }
          last = sqlite3_column_int64(row, 0);
          page.jobs.push_back(std::move(job));
          return absl::OkStatus();
        }));
    if (more) page.next_page_token = MakePageToken(filter, last);
    return page;
  }

  absl::StatusOr<std::optional<JobRecord>> FindResult(
      absl::string_view owner, absl::string_view cache_key) override {
    MutexLock lock(&mutex_);
    return First(
        Select("WHERE owner=? AND cache_key=? AND state=? AND expires>?"
               " ORDER BY seq DESC LIMIT 1",
               {std::string(owner), std::string(cache_key),
                static_cast<int64_t>(JobState::kSucceeded),
                ToStoredMicros(clock_->Now())}));
  }

  absl::StatusOr<Line> GetLine(int per_rank) override {
    MutexLock lock(&mutex_);
    Line line{.now = clock_->Now()};
    const int64_t now = ToStoredMicros(line.now);
    OVPRESS_RETURN_IF_ERROR(
        Query("SELECT id,owner,priority,memory,created,attempt FROM"
              " (SELECT *, ROW_NUMBER() OVER (PARTITION BY owner, priority"
              "   ORDER BY created, id) AS rank FROM jobs WHERE state=1)"
              " WHERE ?1<=0 OR rank<=?1"
              " UNION ALL SELECT id,owner,priority,memory,created,attempt"
              " FROM jobs WHERE state=2 AND lease_expires<=?2",
              {static_cast<int64_t>(per_rank), now}, [&](sqlite3_stmt* row) {
                line.waiting.push_back(
                    {.id = Text(row, 0),
                     .owner = Text(row, 1),
                     .priority = sqlite3_column_int(row, 2),
                     .memory_bytes =
                         static_cast<uint64_t>(sqlite3_column_int64(row, 3)),
                     .created = FromStoredMicros(sqlite3_column_int64(row, 4)),
                     .attempt = sqlite3_column_int(row, 5)});
                return absl::OkStatus();
              }));
    for (const WaitingJob& job : line.waiting) {
      const auto [use, fresh] = line.owners.try_emplace(job.owner);
      if (!fresh) continue;
      OVPRESS_RETURN_IF_ERROR(Query(
          "SELECT (SELECT COUNT(*) FROM jobs WHERE owner=?1 AND state=2 AND"
          " lease_expires>?2), (SELECT MAX(started) FROM jobs WHERE owner=?1)",
          {job.owner, now}, [&, &stored = use->second](sqlite3_stmt* row) {
            stored.running = sqlite3_column_int(row, 0);
            stored.last_start = sqlite3_column_int64(row, 1);
            return absl::OkStatus();
          }));
    }
    return line;
  }

  absl::StatusOr<std::optional<JobRecord>> Claim(
      const ClaimRequest& request) override {
    MutexLock lock(&mutex_);
    std::optional<JobRecord> claimed;
    OVPRESS_RETURN_IF_ERROR(InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      const absl::Time now = clock_->Now();
      for (const Offer& offer : request.offers) {
        OVPRESS_ASSIGN_OR_RETURN(std::vector<JobRecord> found,
                                 Select("WHERE id=?", {offer.id}));
        if (found.empty() || !Claimable(found[0], now)) continue;
        JobRecord& job = found[0];
        int running = 0;
        OVPRESS_RETURN_IF_ERROR(
            Query("SELECT COUNT(*) FROM jobs WHERE owner=? AND state=2 AND"
                  " lease_expires>?",
                  {job.spec.owner, ToStoredMicros(now)},
                  [&running](sqlite3_stmt* row) {
                    running = sqlite3_column_int(row, 0);
                    return absl::OkStatus();
                  }));
        if (offer.owner_limit > 0 && running >= offer.owner_limit) continue;
        job.state = JobState::kRunning;
        ++job.attempt;
        job.started = now;
        job.progress = {};
        job.lease.server_id = request.server_id;
        job.lease.expires = now + request.lease;
        ++job.lease.fencing_token;
        claimed = std::move(job);
        return Update(*claimed);
      }
      return absl::OkStatus();
    }));
    return claimed;
  }

  absl::StatusOr<std::vector<Renewed>> Renew(const std::vector<Held>& held,
                                             absl::Duration lease) override {
    MutexLock lock(&mutex_);
    std::vector<Renewed> renewed(held.size());
    OVPRESS_RETURN_IF_ERROR(InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      const absl::Time until = clock_->Now() + lease;
      for (size_t i = 0; i < held.size(); ++i) {
        OVPRESS_ASSIGN_OR_RETURN(std::vector<JobRecord> found,
                                 Select("WHERE id=?", {held[i].id}));
        if (found.empty() || !CheckHeld(found[0], held[i].fencing_token).ok()) {
          renewed[i].lost = true;
          continue;
        }
        renewed[i].cancel_requested = found[0].cancel_requested;
        found[0].lease.expires = until;
        if (held[i].progress.has_value()) {
          found[0].progress = *held[i].progress;
        }
        OVPRESS_RETURN_IF_ERROR(Update(found[0]));
      }
      return absl::OkStatus();
    }));
    return renewed;
  }

  absl::Status Finish(absl::string_view id, int64_t fencing_token,
                      const JobOutcome& outcome) override {
    return Change(id,
                  [&](JobRecord& job) -> absl::Status {
                    // Only Finish ends a job and leaves its token as it was.
                    if (IsFinal(job.state) && job.state == outcome.state &&
                        job.lease.fencing_token == fencing_token) {
                      return absl::OkStatus();
                    }
                    OVPRESS_RETURN_IF_ERROR(CheckHeld(job, fencing_token));
                    End(outcome, &job);
                    return absl::OkStatus();
                  })
        .status();
  }

  absl::Status Requeue(absl::string_view id, int64_t fencing_token) override {
    return Change(id,
                  [&](JobRecord& job) -> absl::Status {
                    OVPRESS_RETURN_IF_ERROR(CheckHeld(job, fencing_token));
                    BackToQueue(&job);
                    --job.attempt;
                    return absl::OkStatus();
                  })
        .status();
  }

  absl::StatusOr<std::vector<JobRecord>> RequeueOf(
      absl::string_view server_id) override {
    MutexLock lock(&mutex_);
    std::vector<JobRecord> jobs;
    OVPRESS_RETURN_IF_ERROR(InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      OVPRESS_ASSIGN_OR_RETURN(jobs, Select("WHERE state=2 AND server_id=?",
                                            {std::string(server_id)}));
      for (JobRecord& job : jobs) {
        BackToQueue(&job);
        OVPRESS_RETURN_IF_ERROR(Update(job));
      }
      return absl::OkStatus();
    }));
    return jobs;
  }

  absl::StatusOr<JobRecord> RequestCancel(absl::string_view id,
                                          absl::Duration ttl) override {
    return Change(id, [&](JobRecord& job) -> absl::Status {
      if (IsFinal(job.state)) return absl::OkStatus();
      job.cancel_requested = true;
      if (Claimable(job, clock_->Now())) {
        End({.state = JobState::kCancelled,
             .error = absl::CancelledError("cancelled before it started"),
             .ttl = ttl},
            &job);
        ++job.lease.fencing_token;
      }
      return absl::OkStatus();
    });
  }

  absl::Status FailWaiting(absl::string_view id,
                           const JobOutcome& outcome) override {
    return Change(id,
                  [&](JobRecord& job) -> absl::Status {
                    if (!Claimable(job, clock_->Now())) {
                      return absl::AbortedError(absl::StrCat(
                          "job ", id, " is ", JobStateName(job.state)));
                    }
                    End(outcome, &job);
                    ++job.lease.fencing_token;
                    return absl::OkStatus();
                  })
        .status();
  }

  absl::Status Delete(absl::string_view id) override {
    MutexLock lock(&mutex_);
    return InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      OVPRESS_ASSIGN_OR_RETURN(const JobRecord job, GetLocked(id));
      if (!IsFinal(job.state)) {
        return absl::FailedPreconditionError(absl::StrCat(
            "job ", id, " is ", JobStateName(job.state), "; cancel it first"));
      }
      return Query("DELETE FROM jobs WHERE id=?", {std::string(id)});
    });
  }

  absl::StatusOr<std::vector<JobRecord>> DeleteExpired(int limit) override {
    MutexLock lock(&mutex_);
    std::vector<JobRecord> jobs;
    OVPRESS_RETURN_IF_ERROR(InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      OVPRESS_ASSIGN_OR_RETURN(
          jobs,
          Select("WHERE expires<=? AND state>=3 LIMIT ?",
                 {ToStoredMicros(clock_->Now()), static_cast<int64_t>(limit)}));
      for (const JobRecord& job : jobs) {
        OVPRESS_RETURN_IF_ERROR(Query("DELETE FROM jobs WHERE id=?", {job.id}));
      }
      return absl::OkStatus();
    }));
    return jobs;
  }

  absl::StatusOr<std::vector<JobRecord>> ListHolders() override {
    MutexLock lock(&mutex_);
    return Select("WHERE state<=3 ORDER BY seq", {});
  }

  absl::StatusOr<Counts> Count(std::optional<std::string> owner) override {
    MutexLock lock(&mutex_);
    Counts counts;
    std::string sql = "SELECT state, COUNT(*) FROM jobs WHERE state<=2";
    std::vector<Value> values;
    if (owner.has_value()) {
      sql += " AND owner=?";
      values.emplace_back(*owner);
    }
    OVPRESS_RETURN_IF_ERROR(
        Query(sql + " GROUP BY state", values, [&](sqlite3_stmt* row) {
          (sqlite3_column_int(row, 0) == 1 ? counts.queued : counts.running) =
              sqlite3_column_int(row, 1);
          return absl::OkStatus();
        }));
    return counts;
  }

 private:
  using RowFunction = std::function<absl::Status(sqlite3_stmt*)>;
  inline static const std::string kColumns =
      "SELECT seq,id,owner,request_id,state,cache_key,priority,created,"
      "expires,server_id,lease_expires,started,finished,cancel,attempt,memory,"
      "disk,token,spec,ending,progress FROM jobs ";
  // Step i leads to schema i + 1. Steps that were released are never edited.
  inline static const char* const kSteps[kJobSchemaVersion] = {
      "CREATE TABLE jobs(seq INTEGER PRIMARY KEY AUTOINCREMENT,"
      " id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,"
      " request_id TEXT NOT NULL, state INTEGER NOT NULL,"
      " cache_key TEXT NOT NULL, priority INTEGER NOT NULL,"
      " created INTEGER NOT NULL, expires INTEGER NOT NULL,"
      " server_id TEXT NOT NULL, lease_expires INTEGER NOT NULL,"
      " record TEXT NOT NULL);"
      "CREATE UNIQUE INDEX jobs_request ON jobs(owner, request_id)"
      " WHERE request_id <> '';"
      "CREATE INDEX jobs_state ON jobs(state, priority, created);"
      "CREATE INDEX jobs_result ON jobs(owner, cache_key, state);"
      "CREATE INDEX jobs_expires ON jobs(expires);",
      // The record's JSON becomes columns: those that the scheduler asks for
      // of all owners, and those that change while the rest does not.
      "ALTER TABLE jobs ADD COLUMN started INTEGER NOT NULL"
      " DEFAULT -9223372036854775808;"
      "ALTER TABLE jobs ADD COLUMN finished INTEGER NOT NULL"
      " DEFAULT -9223372036854775808;"
      "ALTER TABLE jobs ADD COLUMN cancel INTEGER NOT NULL DEFAULT 0;"
      "ALTER TABLE jobs ADD COLUMN attempt INTEGER NOT NULL DEFAULT 0;"
      "ALTER TABLE jobs ADD COLUMN memory INTEGER NOT NULL DEFAULT 0;"
      "ALTER TABLE jobs ADD COLUMN disk INTEGER NOT NULL DEFAULT 0;"
      "ALTER TABLE jobs ADD COLUMN token INTEGER NOT NULL DEFAULT 0;"
      "ALTER TABLE jobs ADD COLUMN spec TEXT NOT NULL DEFAULT '';"
      "ALTER TABLE jobs ADD COLUMN ending TEXT NOT NULL DEFAULT '';"
      "ALTER TABLE jobs ADD COLUMN progress TEXT NOT NULL DEFAULT '';"
      "UPDATE jobs SET"
      " started=CAST(json_extract(record,'$.started') AS INTEGER),"
      " finished=CAST(json_extract(record,'$.finished') AS INTEGER),"
      " cancel=json_extract(record,'$.cancel'),"
      " attempt=json_extract(record,'$.attempt'),"
      " memory=json_extract(record,'$.memory'),"
      " disk=json_extract(record,'$.disk'),"
      " token=json_extract(record,'$.token'),"
      " spec=json_extract(record,'$.spec'),"
      " ending=json_remove(record,'$.spec');"
      "ALTER TABLE jobs DROP COLUMN record;"
      "CREATE INDEX jobs_started ON jobs(owner, started);"
      "CREATE INDEX jobs_line ON jobs(state, owner, priority, created, id);",
  };

  static std::string Text(sqlite3_stmt* row, int column) {
    const void* text = sqlite3_column_blob(row, column);
    return std::string(static_cast<const char*>(text),
                       static_cast<size_t>(sqlite3_column_bytes(row, column)));
  }

  absl::Status Error(absl::string_view what, int code) const {
    const std::string message =
        absl::StrCat("job database ", path_, ": ", what, ": ",
                     db_ != nullptr ? sqlite3_errmsg(db_) : "out of memory");
    switch (code & 0xff) {
      case SQLITE_FULL:
        return absl::ResourceExhaustedError(message);
      case SQLITE_CORRUPT:
      case SQLITE_NOTADB:
        return absl::DataLossError(absl::StrCat(
            message,
            "; it was left as it is: restore a copy, or move it away "
            "to start without the old jobs"));
      case SQLITE_PERM:
      case SQLITE_READONLY:
        return absl::PermissionDeniedError(message);
      default:
        return absl::UnavailableError(message);
    }
  }

  absl::Status Exec(const std::string& sql)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const int code = sqlite3_exec(db_, sql.c_str(), nullptr, nullptr, nullptr);
    return code == SQLITE_OK ? absl::OkStatus() : Error("statement", code);
  }

  // `on_row` ends the query early with kCancelled, which is no error.
  absl::Status Query(const std::string& sql, const std::vector<Value>& values,
                     const RowFunction& on_row = nullptr)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    sqlite3_stmt* raw = nullptr;
    int code = sqlite3_prepare_v2(db_, sql.c_str(), -1, &raw, nullptr);
    if (code != SQLITE_OK) return Error("statement", code);
    const std::unique_ptr<sqlite3_stmt, int (*)(sqlite3_stmt*)> statement(
        raw, sqlite3_finalize);
    for (size_t i = 0; i < values.size(); ++i) {
      const int index = static_cast<int>(i) + 1;
      if (const auto* number = std::get_if<int64_t>(&values[i])) {
        sqlite3_bind_int64(raw, index, *number);
      } else {
        const auto& text = std::get<std::string>(values[i]);
        sqlite3_bind_text(raw, index, text.data(),
                          static_cast<int>(text.size()), SQLITE_TRANSIENT);
      }
    }
    while ((code = sqlite3_step(raw)) == SQLITE_ROW) {
      if (!on_row) continue;
      const absl::Status status = on_row(raw);
      if (absl::IsCancelled(status)) return absl::OkStatus();
      OVPRESS_RETURN_IF_ERROR(status);
    }
    return code == SQLITE_DONE ? absl::OkStatus() : Error("query", code);
  }

  absl::Status InTransaction(const std::function<absl::Status()>& body)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    OVPRESS_RETURN_IF_ERROR(Exec("BEGIN IMMEDIATE"));
    absl::Status status = body();
    if (status.ok()) status = Exec("COMMIT");
    if (!status.ok()) Exec("ROLLBACK").IgnoreError();
    return status;
  }

  absl::StatusOr<JobRecord> RecordOf(sqlite3_stmt* row) const {
    JobRecord job;
    job.id = Text(row, 1);
    job.spec.owner = Text(row, 2);
    job.spec.request_id = Text(row, 3);
    job.state = static_cast<JobState>(sqlite3_column_int(row, 4));
    job.cache_key = Text(row, 5);
    job.spec.priority = sqlite3_column_int(row, 6);
    job.created = FromStoredMicros(sqlite3_column_int64(row, 7));
    job.expires = FromStoredMicros(sqlite3_column_int64(row, 8));
    job.lease.server_id = Text(row, 9);
    job.lease.expires = FromStoredMicros(sqlite3_column_int64(row, 10));
    job.started = FromStoredMicros(sqlite3_column_int64(row, 11));
    job.finished = FromStoredMicros(sqlite3_column_int64(row, 12));
    job.cancel_requested = sqlite3_column_int(row, 13) != 0;
    job.attempt = sqlite3_column_int(row, 14);
    job.memory_bytes = static_cast<uint64_t>(sqlite3_column_int64(row, 15));
    job.disk_bytes = static_cast<uint64_t>(sqlite3_column_int64(row, 16));
    job.lease.fencing_token = sqlite3_column_int64(row, 17);
    absl::Status read = SpecFromJson(Text(row, 18), &job.spec);
    const std::string ending = Text(row, 19);
    if (read.ok() && !ending.empty()) read = EndFromJson(ending, &job);
    const std::string progress = Text(row, 20);
    if (read.ok() && !progress.empty()) {
      read = ProgressFromJson(progress, &job.progress);
    }
    if (!read.ok()) {
      return absl::DataLossError(absl::StrCat("job database ", path_, ": job ",
                                              job.id, ": ", read.message()));
    }
    return job;
  }

  absl::StatusOr<std::vector<JobRecord>> Select(
      const std::string& where, const std::vector<Value>& values)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<JobRecord> jobs;
    OVPRESS_RETURN_IF_ERROR(
        Query(kColumns + where, values, [&](sqlite3_stmt* row) -> absl::Status {
          OVPRESS_ASSIGN_OR_RETURN(JobRecord job, RecordOf(row));
          jobs.push_back(std::move(job));
          return absl::OkStatus();
        }));
    return jobs;
  }

  static absl::StatusOr<std::optional<JobRecord>> First(
      absl::StatusOr<std::vector<JobRecord>> jobs) {
    OVPRESS_RETURN_IF_ERROR(jobs.status());
    if (jobs->empty()) return std::optional<JobRecord>();
    return std::optional<JobRecord>(std::move(jobs->front()));
  }

  absl::StatusOr<JobRecord> GetLocked(absl::string_view id)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    OVPRESS_ASSIGN_OR_RETURN(std::vector<JobRecord> jobs,
                             Select("WHERE id=?", {std::string(id)}));
    if (jobs.empty()) {
      return absl::NotFoundError(absl::StrCat("there is no job ", id));
    }
    return std::move(jobs.front());
  }

  absl::StatusOr<Full> FullFor(const std::string& owner,
                               const QueueLimits& limits)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    Full full = Full::kNo;
    OVPRESS_RETURN_IF_ERROR(
        Query("SELECT (SELECT COUNT(*) FROM jobs WHERE state=1),"
              " (SELECT COUNT(*) FROM jobs WHERE state=1 AND owner=?)",
              {owner}, [&](sqlite3_stmt* row) {
                if (sqlite3_column_int(row, 0) >= limits.all) {
                  full = Full::kAll;
                } else if (sqlite3_column_int(row, 1) >= limits.owner) {
                  full = Full::kOwner;
                }
                return absl::OkStatus();
              }));
    return full;
  }

  absl::Status Update(const JobRecord& job)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return Query(
        "UPDATE jobs SET state=?,expires=?,server_id=?,lease_expires=?,"
        "started=?,finished=?,cancel=?,attempt=?,token=?,ending=?,progress=?"
        " WHERE id=?",
        {static_cast<int64_t>(job.state), ToStoredMicros(job.expires),
         job.lease.server_id, ToStoredMicros(job.lease.expires),
         ToStoredMicros(job.started), ToStoredMicros(job.finished),
         static_cast<int64_t>(job.cancel_requested),
         static_cast<int64_t>(job.attempt), job.lease.fencing_token,
         IsFinal(job.state) ? EndToJson(job) : std::string(),
         job.state == JobState::kRunning ? ProgressToJson(job.progress)
                                         : std::string(),
         job.id});
  }

  absl::StatusOr<JobRecord> Change(
      absl::string_view id,
      const std::function<absl::Status(JobRecord&)>& change) {
    MutexLock lock(&mutex_);
    JobRecord changed;
    OVPRESS_RETURN_IF_ERROR(InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      OVPRESS_ASSIGN_OR_RETURN(changed, GetLocked(id));
      OVPRESS_RETURN_IF_ERROR(change(changed));
      return Update(changed);
    }));
    return changed;
  }

  static absl::Status CheckHeld(const JobRecord& job, int64_t token) {
    if (job.state == JobState::kRunning && job.lease.fencing_token == token) {
      return absl::OkStatus();
    }
    return absl::AbortedError(
        absl::StrCat("job ", job.id, " is no longer held with token ", token));
  }

  static bool Claimable(const JobRecord& job, absl::Time now) {
    return job.state == JobState::kQueued ||
           (job.state == JobState::kRunning && job.lease.expires <= now);
  }

  void End(const JobOutcome& outcome, JobRecord* job) const {
    job->state = outcome.state;
    job->error = outcome.error;
    job->result = outcome.result;
    job->finished = clock_->Now();
    job->expires = job->finished + outcome.ttl;
    job->lease.server_id.clear();
    job->lease.expires = absl::InfinitePast();
  }

  static void BackToQueue(JobRecord* job) {
    job->state = JobState::kQueued;
    job->lease.server_id.clear();
    job->lease.expires = absl::InfinitePast();
    // Whoever ran it, if it still does, has lost it.
    ++job->lease.fencing_token;
  }

  const std::string path_;
  Clock* const clock_;
  Mutex mutex_;
  sqlite3* db_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(
    const SqliteJobStoreOptions& options) {
  static SystemClock* const system_clock = new SystemClock;
  auto store = std::make_unique<SqliteJobStore>(
      options.path, options.clock != nullptr ? options.clock : system_clock);
  OVPRESS_RETURN_IF_ERROR(store->Open(options.busy_timeout));
  return store;
}

}  // namespace ovpress
