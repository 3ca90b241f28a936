// One row per job: the record as JSON, beside it the columns that queries look
// at. Each method is one transaction over one connection under one lock; a
// transaction costs one fsync, far below what a job costs.
#include "server/jobs/sqlite_job_store.h"

#include <sqlite3.h>

#include <algorithm>
#include <functional>
#include <limits>
#include <memory>
#include <utility>
#include <variant>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

using Json = nlohmann::json;

int64_t Micros(absl::Time time) {
  if (time == absl::InfinitePast()) return std::numeric_limits<int64_t>::min();
  if (time == absl::InfiniteFuture()) {
    return std::numeric_limits<int64_t>::max();
  }
  return absl::ToUnixMicros(time);
}

absl::Time TimeOf(int64_t micros) {
  if (micros == std::numeric_limits<int64_t>::min()) {
    return absl::InfinitePast();
  }
  if (micros == std::numeric_limits<int64_t>::max()) {
    return absl::InfiniteFuture();
  }
  return absl::FromUnixMicros(micros);
}

Json ToJson(const BlobRef& ref) { return {ref.sha256, ref.size_bytes}; }
BlobRef RefOf(const Json& json) {
  return {json.at(0).get<std::string>(), json.at(1).get<uint64_t>()};
}

std::string RecordToJson(const JobRecord& job) {
  const JobSpec& spec = job.spec;
  Json payloads = Json::object();
  job.error.ForEachPayload(
      [&](absl::string_view url, const absl::Cord& value) {
        payloads[std::string(url)] = absl::Base64Escape(std::string(value));
      });
  Json json = {
      {"spec",
       {{"xml", ToJson(spec.xml)},
        {"bin", ToJson(spec.bin)},
        {"options", spec.options_json},
        {"canonical", spec.canonical_options},
        {"mode", spec.mode},
        {"memory", spec.memory_budget_bytes},
        {"measure", spec.measure_error},
        {"labels", spec.labels},
        {"ttl_us", absl::ToInt64Microseconds(spec.ttl)},
        {"max_run_us", absl::ToInt64Microseconds(spec.max_run_time)},
        {"no_cache", spec.ignore_result_cache},
        {"out_xml", spec.output_xml_address},
        {"out_bin", spec.output_bin_address}}},
      {"cancel", job.cancel_requested},
      {"attempt", job.attempt},
      {"started", Micros(job.started)},
      {"finished", Micros(job.finished)},
      {"memory", job.memory_bytes},
      {"disk", job.disk_bytes},
      {"code", static_cast<int>(job.error.code())},
      {"message", job.error.message()},
      {"payloads", payloads},
      {"token", job.lease.fencing_token}};
  const JobResult& result = job.result;
  if (job.state == JobState::kSucceeded) {
    json["result"] = {{"xml", ToJson(result.xml)},
                      {"bin", ToJson(result.bin)},
                      {"report", ToJson(result.report)},
                      {"before", result.bin_bytes_before},
                      {"after", result.bin_bytes_after},
                      {"elements", result.weight_elements},
                      {"bits", result.bits_per_weight},
                      {"share", result.primary_share},
                      {"hit", result.cache_hit},
                      {"engine", result.engine_version},
                      {"warnings", result.warnings}};
  }
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

// Throws nlohmann::json::exception for what RecordToJson did not make.
void RecordFromJson(const std::string& text, JobRecord* job) {
  const Json json = Json::parse(text);
  const Json& spec = json.at("spec");
  job->spec.xml = RefOf(spec.at("xml"));
  job->spec.bin = RefOf(spec.at("bin"));
  spec.at("options").get_to(job->spec.options_json);
  spec.at("canonical").get_to(job->spec.canonical_options);
  spec.at("mode").get_to(job->spec.mode);
  spec.at("memory").get_to(job->spec.memory_budget_bytes);
  spec.at("measure").get_to(job->spec.measure_error);
  spec.at("labels").get_to(job->spec.labels);
  job->spec.ttl = absl::Microseconds(spec.at("ttl_us").get<int64_t>());
  job->spec.max_run_time =
      absl::Microseconds(spec.at("max_run_us").get<int64_t>());
  spec.at("no_cache").get_to(job->spec.ignore_result_cache);
  // Not in records of version 0.1.
  job->spec.output_xml_address = spec.value("out_xml", "");
  job->spec.output_bin_address = spec.value("out_bin", "");
  json.at("cancel").get_to(job->cancel_requested);
  json.at("attempt").get_to(job->attempt);
  job->started = TimeOf(json.at("started").get<int64_t>());
  job->finished = TimeOf(json.at("finished").get<int64_t>());
  json.at("memory").get_to(job->memory_bytes);
  json.at("disk").get_to(job->disk_bytes);
  const int code = json.at("code").get<int>();
  if (code != 0) {
    job->error = absl::Status(static_cast<absl::StatusCode>(code),
                              json.at("message").get<std::string>());
    for (const auto& [url, value] : json.at("payloads").items()) {
      std::string bytes;
      if (absl::Base64Unescape(value.get<std::string>(), &bytes)) {
        job->error.SetPayload(url, absl::Cord(bytes));
      }
    }
  }
  json.at("token").get_to(job->lease.fencing_token);
  if (job->state == JobState::kSucceeded) {
    const Json& result = json.at("result");
    job->result.xml = RefOf(result.at("xml"));
    job->result.bin = RefOf(result.at("bin"));
    job->result.report = RefOf(result.at("report"));
    result.at("before").get_to(job->result.bin_bytes_before);
    result.at("after").get_to(job->result.bin_bytes_after);
    result.at("elements").get_to(job->result.weight_elements);
    result.at("bits").get_to(job->result.bits_per_weight);
    result.at("share").get_to(job->result.primary_share);
    result.at("hit").get_to(job->result.cache_hit);
    result.at("engine").get_to(job->result.engine_version);
    result.at("warnings").get_to(job->result.warnings);
  }
}

using Value = std::variant<int64_t, std::string>;

class SqliteJobStore final : public JobStore {
 public:
  explicit SqliteJobStore(std::string path) : path_(std::move(path)) {}
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
    return InTransaction([this]() -> absl::Status {
      mutex_.AssertHeld();
      OVPRESS_RETURN_IF_ERROR(Exec(
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
          "CREATE INDEX jobs_expires ON jobs(expires);"));
      return Exec(absl::StrCat("PRAGMA user_version=", kJobSchemaVersion));
    });
  }

  absl::StatusOr<Inserted> Insert(const JobRecord& job) override {
    MutexLock lock(&mutex_);
    Inserted inserted{.job = job};
    OVPRESS_RETURN_IF_ERROR(InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      if (!job.spec.request_id.empty()) {
        OVPRESS_ASSIGN_OR_RETURN(
            const std::vector<JobRecord> found,
            Select("WHERE owner=? AND request_id=?",
                   {job.spec.owner, job.spec.request_id}));
        if (!found.empty()) {
          inserted = {.job = found[0], .existed = true};
          return absl::OkStatus();
        }
      }
      return Query(
          "INSERT INTO jobs(id,owner,request_id,state,cache_key,priority,"
          "created,expires,server_id,lease_expires,record)"
          " VALUES(?,?,?,?,?,?,?,?,?,?,?)",
          {job.id, job.spec.owner, job.spec.request_id,
           static_cast<int64_t>(job.state), job.cache_key,
           static_cast<int64_t>(job.spec.priority), Micros(job.created),
           Micros(job.expires), job.lease.server_id, Micros(job.lease.expires),
           RecordToJson(job)});
    }));
    return inserted;
  }

  absl::StatusOr<JobRecord> Get(absl::string_view id) override {
    MutexLock lock(&mutex_);
    return GetLocked(id);
  }

  absl::StatusOr<std::optional<JobRecord>> FindByRequestId(
      absl::string_view owner, absl::string_view request_id) override {
    MutexLock lock(&mutex_);
    return First(Select("WHERE owner=? AND request_id=?",
                        {std::string(owner), std::string(request_id)}));
  }

  absl::StatusOr<JobPage> List(const JobFilter& filter, int page_size,
                               absl::string_view page_token) override {
    // The token holds where to go on and what it was made for.
    std::string key = filter.owner.has_value() ? "o" + *filter.owner : "a";
    for (const JobState state : filter.states) {
      absl::StrAppend(&key, "|", static_cast<int>(state));
    }
    for (const auto& [name, value] : filter.labels) {
      absl::StrAppend(&key, "|", name, "=", value);
    }
    const std::string mark = Sha256Hex(key).substr(0, 16);
    int64_t before = std::numeric_limits<int64_t>::max();
    if (!page_token.empty()) {
      const std::vector<absl::string_view> parts =
          absl::StrSplit(page_token, '-');
      if (parts.size() != 2 || parts[1] != mark ||
          !absl::SimpleAtoi(parts[0], &before)) {
        return absl::InvalidArgumentError(
            "page_token is not of a page with this filter");
      }
    }
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
    OVPRESS_RETURN_IF_ERROR(Query(
        kColumns + where, values, [&](sqlite3_stmt* row) -> absl::Status {
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
    if (more) page.next_page_token = absl::StrCat(last, "-", mark);
    return page;
  }

  absl::StatusOr<std::optional<JobRecord>> FindResult(
      absl::string_view owner, absl::string_view cache_key,
      absl::Time now) override {
    MutexLock lock(&mutex_);
    return First(Select(
        "WHERE owner=? AND cache_key=? AND state=? AND expires>?"
        " ORDER BY seq DESC LIMIT 1",
        {std::string(owner), std::string(cache_key),
         static_cast<int64_t>(JobState::kSucceeded), Micros(now)}));
  }

  absl::StatusOr<std::vector<JobRecord>> ListClaimable(absl::Time now,
                                                       int limit) override {
    MutexLock lock(&mutex_);
    return Select(
        "WHERE state=1 OR (state=2 AND lease_expires<=?)"
        " ORDER BY priority DESC, seq LIMIT ?",
        {Micros(now), static_cast<int64_t>(limit)});
  }

  absl::StatusOr<JobRecord> Claim(absl::string_view id,
                                  absl::string_view server_id, absl::Time now,
                                  absl::Time lease_expires) override {
    return Change(id, [&](JobRecord& job) -> absl::Status {
      if (job.state != JobState::kQueued &&
          !(job.state == JobState::kRunning && job.lease.expires <= now)) {
        return absl::AbortedError(
            absl::StrCat("job ", id, " is ", JobStateName(job.state)));
      }
      job.state = JobState::kRunning;
      ++job.attempt;
      job.started = now;
      job.lease.server_id = std::string(server_id);
      job.lease.expires = lease_expires;
      ++job.lease.fencing_token;
      return absl::OkStatus();
    });
  }

  absl::StatusOr<Renewed> Renew(absl::string_view id, int64_t fencing_token,
                                absl::Time lease_expires) override {
    OVPRESS_ASSIGN_OR_RETURN(
        const JobRecord job,
        Change(id, [&](JobRecord& held) -> absl::Status {
          OVPRESS_RETURN_IF_ERROR(CheckHeld(held, fencing_token));
          held.lease.expires = lease_expires;
          return absl::OkStatus();
        }));
    return Renewed{.cancel_requested = job.cancel_requested};
  }

  absl::Status Finish(absl::string_view id, int64_t fencing_token,
                      const JobOutcome& outcome) override {
    return Change(id, [&](JobRecord& job) -> absl::Status {
             OVPRESS_RETURN_IF_ERROR(CheckHeld(job, fencing_token));
             End(outcome, &job);
             return absl::OkStatus();
           }).status();
  }

  absl::Status Requeue(absl::string_view id, int64_t fencing_token) override {
    return Change(id, [&](JobRecord& job) -> absl::Status {
             OVPRESS_RETURN_IF_ERROR(CheckHeld(job, fencing_token));
             BackToQueue(&job);
             return absl::OkStatus();
           }).status();
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

  absl::StatusOr<JobRecord> RequestCancel(absl::string_view id, absl::Time now,
                                          absl::Time expires) override {
    return Change(id, [&](JobRecord& job) -> absl::Status {
      if (IsFinal(job.state)) return absl::OkStatus();
      job.cancel_requested = true;
      if (job.state == JobState::kQueued) {
        End({.state = JobState::kCancelled,
             .error = absl::CancelledError("cancelled before it started"),
             .finished = now,
             .expires = expires},
            &job);
      }
      return absl::OkStatus();
    });
  }

  absl::Status FailQueued(absl::string_view id,
                          const JobOutcome& outcome) override {
    return Change(id, [&](JobRecord& job) -> absl::Status {
             if (job.state != JobState::kQueued) {
               return absl::AbortedError(absl::StrCat(
                   "job ", id, " is ", JobStateName(job.state)));
             }
             End(outcome, &job);
             return absl::OkStatus();
           }).status();
  }

  absl::Status Delete(absl::string_view id) override {
    MutexLock lock(&mutex_);
    return InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      OVPRESS_ASSIGN_OR_RETURN(const JobRecord job, GetLocked(id));
      if (!IsFinal(job.state)) {
        return absl::FailedPreconditionError(
            absl::StrCat("job ", id, " is ", JobStateName(job.state),
                         "; cancel it first"));
      }
      return Query("DELETE FROM jobs WHERE id=?", {std::string(id)});
    });
  }

  absl::StatusOr<std::vector<JobRecord>> DeleteExpired(absl::Time now,
                                                       int limit) override {
    MutexLock lock(&mutex_);
    std::vector<JobRecord> jobs;
    OVPRESS_RETURN_IF_ERROR(InTransaction([&]() -> absl::Status {
      mutex_.AssertHeld();
      OVPRESS_ASSIGN_OR_RETURN(
          jobs, Select("WHERE expires<=? AND state>=3 LIMIT ?",
                       {Micros(now), static_cast<int64_t>(limit)}));
      for (const JobRecord& job : jobs) {
        OVPRESS_RETURN_IF_ERROR(
            Query("DELETE FROM jobs WHERE id=?", {job.id}));
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
      "expires,server_id,lease_expires,record FROM jobs ";

  static std::string Text(sqlite3_stmt* row, int column) {
    const void* text = sqlite3_column_blob(row, column);
    return std::string(
        static_cast<const char*>(text),
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
            message, "; it was left as it is: restore a copy, or move it away "
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
    job.created = TimeOf(sqlite3_column_int64(row, 7));
    job.expires = TimeOf(sqlite3_column_int64(row, 8));
    job.lease.server_id = Text(row, 9);
    job.lease.expires = TimeOf(sqlite3_column_int64(row, 10));
    try {
      RecordFromJson(Text(row, 11), &job);
    } catch (const nlohmann::json::exception& error) {
      return absl::DataLossError(absl::StrCat("job database ", path_, ": job ",
                                              job.id, ": ", error.what()));
    }
    return job;
  }

  absl::StatusOr<std::vector<JobRecord>> Select(
      const std::string& where, const std::vector<Value>& values)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::vector<JobRecord> jobs;
    OVPRESS_RETURN_IF_ERROR(Query(
        kColumns + where, values, [&](sqlite3_stmt* row) -> absl::Status {
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

  absl::Status Update(const JobRecord& job)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    return Query(
        "UPDATE jobs SET state=?,expires=?,server_id=?,lease_expires=?,"
        "record=? WHERE id=?",
        {static_cast<int64_t>(job.state), Micros(job.expires),
         job.lease.server_id, Micros(job.lease.expires), RecordToJson(job),
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

  static void End(const JobOutcome& outcome, JobRecord* job) {
    job->state = outcome.state;
    job->error = outcome.error;
    job->result = outcome.result;
    job->finished = outcome.finished;
    job->expires = outcome.expires;
    job->lease.server_id.clear();
    job->lease.expires = absl::InfinitePast();
  }

  static void BackToQueue(JobRecord* job) {
    job->state = JobState::kQueued;
    job->lease.server_id.clear();
    job->lease.expires = absl::InfinitePast();
  }

  const std::string path_;
  Mutex mutex_;
  sqlite3* db_ = nullptr;
};

}  // namespace

absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(
    const SqliteJobStoreOptions& options) {
  auto store = std::make_unique<SqliteJobStore>(options.path);
  OVPRESS_RETURN_IF_ERROR(store->Open(options.busy_timeout));
  return store;
}

}  // namespace ovpress
