#include "server/cluster/postgres_job_store.h"

#include <chrono>
#include <limits>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/base/mutex.h"
#include "core/base/patience.h"
#include "core/base/status_macros.h"
#include "server/cluster/postgres_part_store.h"
#include "server/cluster/queue_places.h"
#include "server/jobs/errors.h"
#include "server/jobs/job_json.h"

namespace ovpress {
namespace {

constexpr char kChannel[] = "ovpress_jobs";
// News are gathered for so long before the others are told: PostgreSQL lets
// only one transaction at a time commit notifications.
constexpr std::chrono::milliseconds kGatherNews{10};
// Claims with a limit per owner count and take under one lock.
constexpr int64_t kClaimLock = 0x6f76707265737301;

// Step i leads to version i + 1; see PgMigrations.
constexpr const char* kSteps[] = {
    R"(CREATE FUNCTION ovpress_now() RETURNS bigint LANGUAGE sql STABLE AS
  $$ SELECT (extract(epoch FROM now()) * 1000000)::bigint $$;
CREATE TABLE jobs(
  seq bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  id text COLLATE "C" NOT NULL UNIQUE,
  owner text COLLATE "C" NOT NULL,
  request_id text COLLATE "C" NOT NULL,
  state smallint NOT NULL,
  cache_key text COLLATE "C" NOT NULL,
  priority integer NOT NULL,
  created bigint NOT NULL,
  started bigint NOT NULL,
  finished bigint NOT NULL,
  expires bigint NOT NULL,
  server_id text NOT NULL DEFAULT '',
  lease_expires bigint NOT NULL DEFAULT -9223372036854775808,
  token bigint NOT NULL DEFAULT 0,
  cancel boolean NOT NULL DEFAULT false,
  attempt integer NOT NULL DEFAULT 0,
  memory bigint NOT NULL,
  disk bigint NOT NULL,
  labels text[] NOT NULL,
  spec text NOT NULL,
  ending text NOT NULL DEFAULT '',
  progress text NOT NULL DEFAULT ''
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02,
        autovacuum_analyze_scale_factor = 0.02);
CREATE UNIQUE INDEX jobs_request ON jobs(owner, request_id)
  WHERE request_id <> '';
CREATE INDEX jobs_waiting ON jobs(owner, priority, created, id)
  WHERE state = 1;
CREATE INDEX jobs_running ON jobs(owner) WHERE state = 2;
CREATE INDEX jobs_started ON jobs(owner, started);
CREATE INDEX jobs_result ON jobs(owner, cache_key, seq) WHERE state = 3;
CREATE INDEX jobs_expires ON jobs(expires) WHERE state >= 3;
CREATE INDEX jobs_owner ON jobs(owner, seq);
CREATE TABLE job_blobs(
  seq bigint NOT NULL REFERENCES jobs ON DELETE CASCADE,
  owner text COLLATE "C" NOT NULL,
  sha256 text COLLATE "C" NOT NULL,
  size_bytes bigint NOT NULL);
CREATE INDEX job_blobs_seq ON job_blobs(seq);
CREATE INDEX job_blobs_blob ON job_blobs(sha256, size_bytes);)",
    // Parts: state 1 is open, 2 taken, 3 done.
    R"(CREATE SEQUENCE job_part_tokens;
CREATE TABLE job_rounds(
  seq bigint PRIMARY KEY REFERENCES jobs ON DELETE CASCADE,
  common text NOT NULL);
CREATE TABLE job_parts(
  seq bigint NOT NULL REFERENCES jobs ON DELETE CASCADE,
  number integer NOT NULL,
  job_token bigint NOT NULL,
  engine text NOT NULL,
  state smallint NOT NULL DEFAULT 1,
  attempt integer NOT NULL DEFAULT 0,
  server_id text NOT NULL DEFAULT '',
  lease_expires bigint NOT NULL DEFAULT -9223372036854775808,
  token bigint NOT NULL DEFAULT 0,
  cost bigint NOT NULL,
  done bigint NOT NULL DEFAULT 0,
  orders text NOT NULL,
  result text NOT NULL DEFAULT '',
  PRIMARY KEY (seq, number)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0.02);
CREATE INDEX job_parts_open ON job_parts(seq, number) WHERE state <= 2;)",
};

constexpr char kColumns[] =
    " jobs.seq, jobs.id, jobs.owner, jobs.request_id, jobs.state,"
    " jobs.cache_key, jobs.priority, jobs.created, jobs.expires,"
    " jobs.server_id, jobs.lease_expires, jobs.started, jobs.finished,"
    " jobs.cancel, jobs.attempt, jobs.memory, jobs.disk, jobs.token,"
    " jobs.spec, jobs.ending, jobs.progress ";
// A job that someone may take.
constexpr char kClaimable[] =
    " (jobs.state = 1 OR"
    "  (jobs.state = 2 AND jobs.lease_expires <= ovpress_now())) ";

std::string Sql(absl::string_view a, absl::string_view b = "",
                absl::string_view c = "", absl::string_view d = "",
                absl::string_view e = "") {
  return absl::StrCat(a, b, c, d, e);
}

// "key=value" of each label; escaped, for a value may hold a NUL.
std::vector<std::string> LabelTexts(
    const std::map<std::string, std::string>& labels) {
  std::vector<std::string> texts;
  for (const auto& [key, value] : labels) {
    texts.push_back(absl::CHexEscape(absl::StrCat(key, "=", value)));
  }
  return texts;
}

struct BlobColumns {
  std::vector<std::string> digests;
  std::vector<int64_t> sizes;
};
BlobColumns ColumnsOf(const std::vector<BlobRef>& blobs) {
  BlobColumns columns;
  for (const BlobRef& blob : blobs) {
    columns.digests.push_back(blob.sha256);
    columns.sizes.push_back(static_cast<int64_t>(blob.size_bytes));
  }
  return columns;
}

absl::StatusOr<JobRecord> RecordOf(const PgRows& rows, int row) {
  JobRecord job;
  job.id = std::string(rows.Text(row, 1));
  job.spec.owner = std::string(rows.Text(row, 2));
  job.spec.request_id = std::string(rows.Text(row, 3));
  job.state = static_cast<JobState>(rows.Int(row, 4));
  job.cache_key = std::string(rows.Text(row, 5));
  job.spec.priority = static_cast<int>(rows.Int(row, 6));
  job.created = FromStoredMicros(rows.Int(row, 7));
  job.expires = FromStoredMicros(rows.Int(row, 8));
  job.lease.server_id = std::string(rows.Text(row, 9));
  job.lease.expires = FromStoredMicros(rows.Int(row, 10));
  job.started = FromStoredMicros(rows.Int(row, 11));
  job.finished = FromStoredMicros(rows.Int(row, 12));
  job.cancel_requested = rows.Bool(row, 13);
  job.attempt = static_cast<int>(rows.Int(row, 14));
  job.memory_bytes = static_cast<uint64_t>(rows.Int(row, 15));
  job.disk_bytes = static_cast<uint64_t>(rows.Int(row, 16));
  job.lease.fencing_token = rows.Int(row, 17);
  OVPRESS_RETURN_IF_ERROR(SpecFromJson(rows.Text(row, 18), &job.spec));
  if (!rows.Text(row, 19).empty()) {
    OVPRESS_RETURN_IF_ERROR(EndFromJson(rows.Text(row, 19), &job));
  }
  if (!rows.Text(row, 20).empty()) {
    OVPRESS_RETURN_IF_ERROR(
        ProgressFromJson(rows.Text(row, 20), &job.progress));
  }
  return job;
}

absl::StatusOr<std::vector<JobRecord>> RecordsOf(
    const absl::StatusOr<PgRows>& rows) {
  OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
  std::vector<JobRecord> jobs;
  for (int row = 0; row < rows->size(); ++row) {
    OVPRESS_ASSIGN_OR_RETURN(JobRecord job, RecordOf(*rows, row));
    jobs.push_back(std::move(job));
  }
  return jobs;
}

absl::StatusOr<std::optional<JobRecord>> FirstOf(
    const absl::StatusOr<PgRows>& rows) {
  OVPRESS_ASSIGN_OR_RETURN(std::vector<JobRecord> jobs, RecordsOf(rows));
  if (jobs.empty()) return std::optional<JobRecord>();
  return std::optional<JobRecord>(std::move(jobs.front()));
}

absl::Status NoJob(absl::string_view id) {
  return absl::NotFoundError(absl::StrCat("there is no job ", id));
}

class PostgresJobStore final : public JobStore {
 public:
  explicit PostgresJobStore(PgPool* pool)
      : pool_(pool),
        instance_(
            absl::StrCat(absl::Hex(std::random_device{}(), absl::kZeroPad8),
                         absl::Hex(std::random_device{}(), absl::kZeroPad8))) {}
  ~PostgresJobStore() override {
    listener_.reset();
    {
      MutexLock lock(&mutex_);
      exiting_ = true;
      closing_ = true;
      wake_.SignalAll();
    }
    if (teller_.joinable()) teller_.join();
  }

  absl::Status Open() {
    OVPRESS_RETURN_IF_ERROR(PgMigrate(pool_, JobMigrations()));
    OVPRESS_RETURN_IF_ERROR(PgMigrate(pool_, QueuePlaceMigrations()));
    OVPRESS_ASSIGN_OR_RETURN(
        listener_, PgListener::Create({.connection = pool_->options(),
                                       .channels = {kChannel},
                                       .on_notify =
                                           [this](absl::string_view,
                                                  absl::string_view payload) {
                                             if (payload != instance_)
                                               Changed();
                                           },
                                       .on_connected = [this] { Changed(); }}));
    teller_ = std::thread([this] { TellOthers(); });
    return absl::OkStatus();
  }

  bool shared() const override { return true; }
  PartStore* parts() override { return parts_.get(); }

  void OnChange(std::function<void()> callback) override {
    MutexLock lock(&callback_mutex_);
    callback_ = std::move(callback);
  }

  absl::StatusOr<Inserted> Insert(const JobRecord& job, absl::Duration ttl,
                                  const QueueLimits& limits) override {
    const QueueLimits none;
    const bool limited = !IsFinal(job.state) &&
                         (limits.all != none.all || limits.owner != none.owner);
    // The job of the same request may be deleted between the two looks.
    for (int attempt = 0; attempt < 5; ++attempt) {
      Full full = Full::kNo;
      OVPRESS_ASSIGN_OR_RETURN(
          std::optional<JobRecord> made,
          FirstOf(limited ? InsertLimited(job, ttl, limits, &full)
                          : pool_->Query(InsertSql(), InsertValues(job, ttl),
                                         PgPool::Repeat::kRepeatable)));
      if (made.has_value()) {
        Tell();
        return Inserted{.job = *std::move(made)};
      }
      // Ours, if an answer was lost: ids are random.
      OVPRESS_ASSIGN_OR_RETURN(made,
                               FirstOf(Select("WHERE id = $1", {job.id})));
      if (made.has_value()) {
        Tell();
        return Inserted{.job = *std::move(made)};
      }
      OVPRESS_ASSIGN_OR_RETURN(
          made, FindByRequestId(job.spec.owner, job.spec.request_id));
      if (made.has_value()) {
        return Inserted{.job = *std::move(made), .existed = true};
      }
      if (full != Full::kNo) return Inserted{.job = job, .full = full};
    }
    return PgHinted(absl::UnavailableError(
        "jobs with this request_id come and go; try again"));
  }

  absl::StatusOr<Full> FindPlace(const std::string& owner,
                                 const QueueLimits& limits) override {
    absl::StatusOr<Full> full = LookForQueuePlace(pool_, owner, limits);
    OVPRESS_RETURN_IF_ERROR(PgHinted(full.status()));
    return full;
  }

  absl::StatusOr<JobRecord> Get(absl::string_view id) override {
    OVPRESS_ASSIGN_OR_RETURN(std::optional<JobRecord> job,
                             FirstOf(Select("WHERE id = $1", {id})));
    if (!job.has_value()) return NoJob(id);
    return *std::move(job);
  }

  absl::StatusOr<std::vector<JobRecord>> GetAll(
      const std::vector<std::string>& ids) override {
    return RecordsOf(
        Select("WHERE id = ANY($1::text[])", {PgValue::Array(ids)}));
  }

  absl::StatusOr<std::optional<JobRecord>> FindByRequestId(
      absl::string_view owner, absl::string_view request_id) override {
    if (request_id.empty()) return std::optional<JobRecord>();
    // The literal condition lets the planner use the partial index.
    return FirstOf(
        Select("WHERE owner = $1 AND request_id = $2 AND request_id <> ''",
               {owner, request_id}));
  }

  absl::StatusOr<JobPage> List(const JobFilter& filter, int page_size,
                               absl::string_view page_token) override {
    OVPRESS_ASSIGN_OR_RETURN(const int64_t before,
                             ReadPageToken(filter, page_token));
    std::vector<int64_t> states;
    for (const JobState state : filter.states) {
      states.push_back(static_cast<int>(state));
    }
    const absl::StatusOr<PgRows> rows = Select(
        "WHERE seq < $1 AND ($2::text IS NULL OR owner = $2)"
        " AND ($3::bigint[] = '{}' OR state = ANY($3::bigint[]))"
        " AND labels @> $4::text[] ORDER BY seq DESC LIMIT $5",
        {before,
         filter.owner.has_value() ? PgValue(*filter.owner) : PgValue::Null(),
         PgValue::Array(states), PgValue::Array(LabelTexts(filter.labels)),
         int64_t{page_size} + 1});
    OVPRESS_ASSIGN_OR_RETURN(std::vector<JobRecord> jobs, RecordsOf(rows));
    JobPage page{.jobs = std::move(jobs)};
    if (page.jobs.size() > static_cast<size_t>(page_size)) {
      page.jobs.pop_back();
      page.next_page_token = MakePageToken(filter, rows->Int(page_size - 1, 0));
    }
    return page;
  }

  absl::StatusOr<std::optional<JobRecord>> FindResult(
      absl::string_view owner, absl::string_view cache_key) override {
    return FirstOf(
        Select("WHERE owner = $1 AND cache_key = $2 AND state = 3"
               " AND expires > ovpress_now() ORDER BY seq DESC LIMIT 1",
               {owner, cache_key}));
  }

  absl::StatusOr<Line> GetLine(int per_rank) override {
    // Goes from one (owner, priority) to the next on the index instead of
    // reading all jobs in line.
    const absl::StatusOr<PgRows> rows = pool_->Read(
        "WITH RECURSIVE ranks AS ("
        " (SELECT owner, priority FROM jobs WHERE state = 1"
        "  ORDER BY owner, priority LIMIT 1)"
        " UNION ALL"
        " SELECT n.owner, n.priority FROM ranks r CROSS JOIN LATERAL"
        "  (SELECT owner, priority FROM jobs WHERE state = 1"
        "    AND (owner, priority) > (r.owner, r.priority)"
        "   ORDER BY owner, priority LIMIT 1) n),"
        "waiting AS ("
        " SELECT w.* FROM ranks r CROSS JOIN LATERAL"
        "  (SELECT id, owner, priority, memory, created, attempt FROM jobs"
        "   WHERE state = 1 AND owner = r.owner AND priority = r.priority"
        "   ORDER BY owner, priority, created, id LIMIT $1::bigint) w"
        " UNION ALL"
        " SELECT id, owner, priority, memory, created, attempt FROM jobs"
        " WHERE state = 2 AND lease_expires <= ovpress_now())"
        "SELECT 0, id, owner, priority, memory, created, attempt FROM waiting"
        " UNION ALL"
        " SELECT 1, '', o.owner, 0,"
        "  (SELECT count(*) FROM jobs WHERE state = 2 AND owner = o.owner"
        "   AND lease_expires > ovpress_now()),"
        "  (SELECT max(started) FROM jobs WHERE owner = o.owner), 0"
        " FROM (SELECT DISTINCT owner FROM waiting) o"
        " UNION ALL SELECT 2, '', '', 0, 0, ovpress_now(),"
        "  (EXISTS(SELECT FROM job_parts p, jobs WHERE" +
            std::string(kPgPartIsOpen) + "))::integer",
        {per_rank > 0 ? PgValue(per_rank) : PgValue::Null()});
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    Line line;
    for (int row = 0; row < rows->size(); ++row) {
      const int64_t kind = rows->Int(row, 0);
      if (kind == 2) {
        line.now = FromStoredMicros(rows->Int(row, 5));
        line.open_parts = rows->Int(row, 6) != 0;
      } else if (kind == 1) {
        line.owners[std::string(rows->Text(row, 2))] = {
            .running = static_cast<int>(rows->Int(row, 4)),
            .last_start = rows->Int(row, 5)};
      } else {
        line.waiting.push_back(
            {.id = std::string(rows->Text(row, 1)),
             .owner = std::string(rows->Text(row, 2)),
             .priority = static_cast<int>(rows->Int(row, 3)),
             .memory_bytes = static_cast<uint64_t>(rows->Int(row, 4)),
             .created = FromStoredMicros(rows->Int(row, 5)),
             .attempt = static_cast<int>(rows->Int(row, 6))});
      }
    }
    return line;
  }

  absl::StatusOr<std::optional<JobRecord>> Claim(
      const ClaimRequest& request) override {
    const std::string sql = Sql(
        "WITH wanted AS ("
        " SELECT * FROM unnest($1::text[], $4::bigint[]) WITH ORDINALITY"
        "  AS w(id, most, place)),"
        "picked AS (SELECT jobs.seq FROM jobs JOIN wanted USING (id)"
        " WHERE ",
        kClaimable,
        " AND (wanted.most = 0 OR wanted.most > (SELECT count(*) FROM jobs r"
        "  WHERE r.state = 2 AND r.owner = jobs.owner"
        "   AND r.lease_expires > ovpress_now()))"
        " ORDER BY wanted.place LIMIT 1 FOR UPDATE OF jobs SKIP LOCKED)"
        "UPDATE jobs SET state = 2, attempt = attempt + 1,"
        " started = ovpress_now(), server_id = $2, progress = '',"
        " lease_expires = ovpress_now() + $3::bigint, token = token + 1"
        " FROM picked WHERE jobs.seq = picked.seq RETURNING ",
        kColumns);
    std::vector<std::string> ids;
    std::vector<int64_t> limits;
    bool limited = false;
    for (const Offer& offer : request.offers) {
      ids.push_back(offer.id);
      limits.push_back(offer.owner_limit);
      limited |= offer.owner_limit > 0;
    }
    const PgValues values = {PgValue::Array(ids), request.server_id,
                             PgMicros(request.lease), PgValue::Array(limits)};
    absl::StatusOr<PgRows> rows;
    if (!limited) {
      rows = pool_->Query(sql, values);
    } else {
      const absl::Status status =
          pool_->Transaction([&](PgSession& session) -> absl::Status {
            OVPRESS_RETURN_IF_ERROR(
                session.Query("SELECT pg_advisory_xact_lock($1)", {kClaimLock})
                    .status());
            rows = session.Query(sql, values);
            return rows.status();
          });
      if (!status.ok()) rows = status;
    }
    OVPRESS_ASSIGN_OR_RETURN(std::optional<JobRecord> job, FirstOf(rows));
    if (job.has_value()) Tell();
    return job;
  }

  absl::StatusOr<std::vector<Renewed>> Renew(const std::vector<Held>& held,
                                             absl::Duration lease) override {
    std::vector<std::string> ids;
    std::vector<int64_t> tokens;
    std::vector<std::string> progress;
    bool news = false;
    for (const Held& one : held) {
      ids.push_back(one.id);
      tokens.push_back(one.fencing_token);
      progress.push_back(
          one.progress.has_value() ? ProgressToJson(*one.progress) : "");
      news |= one.progress.has_value();
    }
    const absl::StatusOr<PgRows> rows = pool_->Query(
        "UPDATE jobs SET lease_expires = ovpress_now() + $4::bigint,"
        " progress = CASE WHEN h.progress = '' THEN jobs.progress"
        "  ELSE h.progress END"
        " FROM unnest($1::text[], $2::bigint[], $3::text[])"
        "  AS h(id, token, progress)"
        " WHERE jobs.id = h.id AND jobs.token = h.token AND jobs.state = 2"
        " RETURNING jobs.id, jobs.cancel",
        {PgValue::Array(ids), PgValue::Array(tokens), PgValue::Array(progress),
         PgMicros(lease)},
        PgPool::Repeat::kRepeatable);
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    std::map<absl::string_view, bool> kept;
    for (int row = 0; row < rows->size(); ++row) {
      kept[rows->Text(row, 0)] = rows->Bool(row, 1);
    }
    std::vector<Renewed> renewed;
    for (const Held& one : held) {
      const auto it = kept.find(one.id);
      renewed.push_back(it == kept.end()
                            ? Renewed{.lost = true}
                            : Renewed{.cancel_requested = it->second});
    }
    if (news) Tell();
    return renewed;
  }

  absl::Status Finish(absl::string_view id, int64_t fencing_token,
                      const JobOutcome& outcome) override {
    OVPRESS_ASSIGN_OR_RETURN(
        const bool ended,
        End("WHERE jobs.id = $1 AND jobs.state = 2 AND jobs.token = $7", 0, id,
            fencing_token, outcome));
    if (ended) return absl::OkStatus();
    OVPRESS_ASSIGN_OR_RETURN(const JobRecord job, Get(id));
    // Only Finish ends a job and leaves its token as it was.
    if (job.state == outcome.state &&
        job.lease.fencing_token == fencing_token) {
      return absl::OkStatus();
    }
    return NotHeld(id, fencing_token);
  }

  absl::Status Requeue(absl::string_view id, int64_t fencing_token) override {
    const absl::StatusOr<PgRows> rows = pool_->Query(
        Sql("WITH back AS (UPDATE jobs SET attempt = attempt - 1,", kToQueue,
            " WHERE id = $1 AND token = $2 AND state = 2"
            " RETURNING owner),",
            kQueuePlacesOfBack, "SELECT FROM back"),
        {id, fencing_token});
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    if (rows->empty()) {
      OVPRESS_RETURN_IF_ERROR(Get(id).status());
      return NotHeld(id, fencing_token);
    }
    Tell();
    return absl::OkStatus();
  }

  absl::StatusOr<std::vector<JobRecord>> RequeueOf(
      absl::string_view server_id) override {
    OVPRESS_ASSIGN_OR_RETURN(
        std::vector<JobRecord> jobs,
        RecordsOf(pool_->Query(
            Sql("WITH back AS (UPDATE jobs SET", kToQueue,
                " WHERE state = 2 AND server_id = $1 RETURNING *),",
                kQueuePlacesOfBack,
                absl::StrCat("SELECT ", kColumns, " FROM back AS jobs")),
            {server_id})));
    if (!jobs.empty()) Tell();
    return jobs;
  }

  absl::StatusOr<JobRecord> RequestCancel(absl::string_view id,
                                          absl::Duration ttl) override {
    JobOutcome outcome{
        .state = JobState::kCancelled,
        .error = absl::CancelledError("cancelled before it started"),
        .ttl = ttl};
    std::optional<JobRecord> job;
    OVPRESS_RETURN_IF_ERROR(
        PgHinted(pool_->Transaction([&](PgSession& session) -> absl::Status {
          // Marked first: whoever holds the row is waited for, so that what
          // follows sees what it made of it.
          OVPRESS_RETURN_IF_ERROR(
              session
                  .Query("UPDATE jobs SET cancel = true WHERE id = $1 AND"
                         " state <= 2",
                         {id})
                  .status());
          OVPRESS_RETURN_IF_ERROR(
              session
                  .Query(EndSql(Sql("WHERE jobs.id = $1 AND", kClaimable,
                                    "AND $7 = 0")),
                         EndValues(id, 0, 1, outcome))
                  .status());
          OVPRESS_ASSIGN_OR_RETURN(
              job,
              FirstOf(session.Query(
                  Sql("SELECT ", kColumns, " FROM jobs WHERE id = $1"), {id})));
          return absl::OkStatus();
        })));
    if (!job.has_value()) return NoJob(id);
    Tell();
    return *std::move(job);
  }

  absl::Status FailWaiting(absl::string_view id,
                           const JobOutcome& outcome) override {
    OVPRESS_ASSIGN_OR_RETURN(
        const bool ended,
        End(Sql("WHERE jobs.id = $1 AND", kClaimable, "AND $7 = 0"), 1, id, 0,
            outcome));
    if (ended) return absl::OkStatus();
    OVPRESS_ASSIGN_OR_RETURN(const JobRecord job, Get(id));
    return absl::AbortedError(
        absl::StrCat("job ", id, " is ", JobStateName(job.state)));
  }

  absl::Status Delete(absl::string_view id) override {
    const absl::StatusOr<PgRows> rows =
        pool_->Query("DELETE FROM jobs WHERE id = $1 AND state >= 3", {id});
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    if (rows->affected() > 0) {
      Tell();
      return absl::OkStatus();
    }
    OVPRESS_ASSIGN_OR_RETURN(const JobRecord job, Get(id));
    return absl::FailedPreconditionError(absl::StrCat(
        "job ", id, " is ", JobStateName(job.state), "; cancel it first"));
  }

  absl::StatusOr<std::vector<JobRecord>> DeleteExpired(int limit) override {
    SweepQueuePlaces(pool_);
    // Several servers sweep at the same time: each takes what no other does.
    return RecordsOf(pool_->Query(
        Sql("DELETE FROM jobs WHERE seq IN (SELECT seq FROM jobs"
            " WHERE state >= 3 AND expires <= ovpress_now() ORDER BY expires"
            " LIMIT $1 FOR UPDATE SKIP LOCKED) RETURNING ",
            kColumns),
        {limit}));
  }

  absl::StatusOr<std::vector<JobRecord>> ListHolders() override {
    return RecordsOf(Select("WHERE state <= 3 ORDER BY seq", {}));
  }

  absl::StatusOr<Counts> Count(std::optional<std::string> owner) override {
    const absl::StatusOr<PgRows> rows =
        owner.has_value()
            ? pool_->Read(
                  "SELECT (SELECT count(*) FROM jobs WHERE state = 1"
                  " AND owner = $1), (SELECT count(*) FROM jobs WHERE"
                  " state = 2 AND owner = $1)",
                  {*owner})
            : pool_->Read(
                  "SELECT (SELECT count(*) FROM jobs WHERE state = 1),"
                  " (SELECT count(*) FROM jobs WHERE state = 2)");
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    return Counts{.queued = static_cast<int>(rows->Int(0, 0)),
                  .running = static_cast<int>(rows->Int(0, 1))};
  }

 private:
  // Whoever ran it, if it still does, has lost it: a new token.
  static constexpr char kToQueue[] =
      " state = 1, server_id = '', progress = '', token = token + 1,"
      " lease_expires = -9223372036854775808";

  static absl::Status NotHeld(absl::string_view id, int64_t token) {
    return absl::AbortedError(
        absl::StrCat("job ", id, " is no longer held with token ", token));
  }

  absl::StatusOr<PgRows> Select(absl::string_view where,
                                const PgValues& values) {
    return pool_->Read(Sql("SELECT ", kColumns, " FROM jobs ", where), values);
  }

  // One row if the job was inserted: the job.
  static std::string InsertSql() {
    return Sql(
        "WITH made AS ("
        " INSERT INTO jobs(id, owner, request_id, state, cache_key,"
        "  priority, memory, disk, labels, spec, ending, created,"
        "  started, finished, expires)"
        " SELECT $1, $2, $3, $4::smallint, $5, $6::integer, $7::bigint,"
        "  $8::bigint, $9::text[], $10, $11, n.now,"
        "  CASE WHEN $12::boolean THEN n.now ELSE n.never END,"
        "  CASE WHEN $12::boolean THEN n.now ELSE n.never END,"
        "  CASE WHEN $12::boolean THEN n.now + $13::bigint"
        "   ELSE 9223372036854775807 END"
        " FROM (SELECT ovpress_now() AS now,"
        "        -9223372036854775808 AS never) n"
        " ON CONFLICT DO NOTHING RETURNING *),"
        "held AS (INSERT INTO job_blobs(seq, owner, sha256, size_bytes)"
        " SELECT made.seq, made.owner, b.sha256, b.size"
        "  FROM made, unnest($14::text[], $15::bigint[]) AS b(sha256, size))"
        "SELECT ",
        kColumns, " FROM made AS jobs");
  }
  static PgValues InsertValues(const JobRecord& job, absl::Duration ttl) {
    const BlobColumns blobs = ColumnsOf(BlobsHeldBy(job));
    const bool final = IsFinal(job.state);
    return {job.id,
            job.spec.owner,
            job.spec.request_id,
            static_cast<int>(job.state),
            job.cache_key,
            job.spec.priority,
            static_cast<int64_t>(job.memory_bytes),
            static_cast<int64_t>(job.disk_bytes),
            PgValue::Array(LabelTexts(job.spec.labels)),
            SpecToJson(job.spec),
            final ? EndToJson(job) : std::string(),
            final,
            PgMicros(ttl),
            PgValue::Array(blobs.digests),
            PgValue::Array(blobs.sizes)};
  }
  // No row: it exists, there is no place for it (`full`), or it is not known
  // whether it was stored, which its id tells.
  absl::StatusOr<PgRows> InsertLimited(const JobRecord& job, absl::Duration ttl,
                                       const QueueLimits& limits, Full* full) {
    PgRows rows;
    bool refused = false;
    const absl::Status status =
        pool_->Transaction([&](PgSession& session) -> absl::Status {
          refused = false;
          OVPRESS_ASSIGN_OR_RETURN(
              *full, TakeQueuePlace(session, job.spec.owner, limits));
          if (*full == Full::kNo) {
            OVPRESS_ASSIGN_OR_RETURN(
                rows, session.Query(InsertSql(), InsertValues(job, ttl)));
            if (!rows.empty()) return absl::OkStatus();
          }
          refused = true;
          return absl::AbortedError("gives the place back");
        });
    if (refused || PgOutcomeUnknown(status)) return PgRows();
    OVPRESS_RETURN_IF_ERROR(status);
    return rows;
  }

  // Ends the jobs of `where`, which may use $1, the id, and $7; the blobs that
  // they hold become those of the result. One row for each.
  static std::string EndSql(absl::string_view where) {
    return Sql(
        "WITH ended AS (UPDATE jobs SET state = $2::smallint, ending = $3,"
        " finished = ovpress_now(), expires = ovpress_now() + $4::bigint,"
        " server_id = '', lease_expires = -9223372036854775808,"
        " progress = '', token = token + $8::bigint ",
        where,
        " RETURNING seq, owner),"
        "gone AS (DELETE FROM job_blobs USING ended"
        " WHERE job_blobs.seq = ended.seq),"
        "held AS (INSERT INTO job_blobs(seq, owner, sha256, size_bytes)"
        " SELECT ended.seq, ended.owner, b.sha256, b.size FROM ended,"
        "  unnest($5::text[], $6::bigint[]) AS b(sha256, size))"
        "SELECT seq FROM ended");
  }
  static PgValues EndValues(absl::string_view id, int64_t token, int token_step,
                            const JobOutcome& outcome) {
    JobRecord ended;
    ended.state = outcome.state;
    ended.error = outcome.error;
    ended.result = outcome.result;
    const BlobColumns blobs = ColumnsOf(BlobsHeldBy(ended));
    return {id,
            static_cast<int>(outcome.state),
            EndToJson(ended),
            PgMicros(outcome.ttl),
            PgValue::Array(blobs.digests),
            PgValue::Array(blobs.sizes),
            token,
            token_step};
  }
  absl::StatusOr<bool> End(absl::string_view where, int token_step,
                           absl::string_view id, int64_t token,
                           const JobOutcome& outcome) {
    // Its condition does not hold a second time, so it can be repeated.
    const absl::StatusOr<PgRows> rows =
        pool_->Query(EndSql(where), EndValues(id, token, token_step, outcome),
                     PgPool::Repeat::kRepeatable);
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    if (rows->empty()) return false;
    Tell();
    return true;
  }

  // --- news ---

  void Changed() {
    MutexLock lock(&callback_mutex_);
    if (callback_) callback_();
  }

  void Tell() {
    MutexLock lock(&mutex_);
    news_ = true;
    wake_.SignalAll();
  }

  void TellOthers() {
    while (true) {
      {
        MutexLock lock(&mutex_);
        while (!news_ && !exiting_) wake_.Wait(&mutex_);
        if (!news_) return;
      }
      std::this_thread::sleep_for(kGatherNews);
      {
        MutexLock lock(&mutex_);
        news_ = false;
      }
      // Who misses it looks by itself a little later.
      const Patience patience(&closing_);
      pool_->Query("SELECT pg_notify($1, $2)", {kChannel, instance_})
          .status()
          .IgnoreError();
    }
  }

  PgPool* const pool_;
  const std::unique_ptr<PartStore> parts_ =
      MakePostgresPartStore(pool_, [this] { Tell(); });
  const std::string instance_;  // tells our own news from others'
  std::unique_ptr<PgListener> listener_;
  std::thread teller_;
  Mutex callback_mutex_;
  std::function<void()> callback_ ABSL_GUARDED_BY(callback_mutex_);
  Mutex mutex_;
  CondVar wake_;
  bool news_ ABSL_GUARDED_BY(mutex_) = false;
  bool exiting_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> closing_{false};  // the same, for who waits
};

}  // namespace

PgMigrations JobMigrations() {
  PgMigrations migrations{.part = "jobs", .steps = {}};
  for (const char* step : kSteps) migrations.steps.emplace_back(step);
  return migrations;
}

absl::StatusOr<std::unique_ptr<JobStore>> OpenPostgresJobStore(PgPool* pool) {
  auto store = std::make_unique<PostgresJobStore>(pool);
  OVPRESS_RETURN_IF_ERROR(store->Open());
  return store;
}

}  // namespace ovpress
