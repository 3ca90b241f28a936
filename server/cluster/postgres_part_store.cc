#include "server/cluster/postgres_part_store.h"

#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "server/jobs/errors.h"
#include "server/jobs/job_json.h"

namespace ovpress {

// A part of a job that still runs as it did when the part was put up.
#define OVPRESS_PART_IS_LIVE \
  " jobs.seq = p.seq AND jobs.state = 2 AND jobs.token = p.job_token "

const char kPgPartIsOpen[] =
    " p.state <= 2 AND (p.state = 1 OR p.lease_expires <= ovpress_now())"
    " AND" OVPRESS_PART_IS_LIVE;

namespace {

constexpr absl::Duration kRetryAfter = absl::Seconds(2);

constexpr char kPartIsLive[] = OVPRESS_PART_IS_LIVE;

absl::Status JobLost(const JobHold& job) {
  return absl::AbortedError(absl::StrCat(
      "job ", job.id, " is no longer held with token ", job.fencing_token));
}

class PostgresPartStore final : public PartStore {
 public:
  PostgresPartStore(PgPool* pool, std::function<void()> tell)
      : pool_(pool), tell_(std::move(tell)) {}

  absl::Status Put(const JobHold& job, const std::string& engine,
                   const PartRound& round) override {
    std::vector<std::string> orders;
    std::vector<int64_t> costs;
    for (const PartTask& task : round.tasks) {
      orders.push_back(task.order);
      costs.push_back(static_cast<int64_t>(task.cost_bytes));
    }
    OVPRESS_RETURN_IF_ERROR(
        PgHinted(pool_->Transaction([&](PgSession& session) -> absl::Status {
          OVPRESS_ASSIGN_OR_RETURN(
              const PgRows held,
              session.Query("SELECT seq FROM jobs WHERE id = $1 AND token = $2"
                            " AND state = 2 FOR SHARE",
                            {job.id, job.fencing_token}));
          if (held.empty()) return JobLost(job);
          const int64_t seq = held.Int(0, 0);
          OVPRESS_RETURN_IF_ERROR(DropOf(session, seq));
          OVPRESS_RETURN_IF_ERROR(
              session
                  .Query("INSERT INTO job_rounds(seq, common) VALUES ($1, $2)",
                         {seq, round.common})
                  .status());
          return session
              .Query(
                  "INSERT INTO job_parts(seq, number, job_token, engine,"
                  "  cost, orders)"
                  " SELECT $1, n - 1, $2, $3, cost, orders"
                  " FROM unnest($4::bigint[], $5::text[]) WITH ORDINALITY"
                  "  AS t(cost, orders, n)",
                  {seq, job.fencing_token, engine, PgValue::Array(costs),
                   PgValue::Array(orders)})
              .status();
        })));
    tell_();
    return absl::OkStatus();
  }

  absl::StatusOr<std::optional<TakenPart>> Take(
      const TakeRequest& request) override {
    const absl::StatusOr<PgRows> rows = pool_->Query(
        absl::StrCat(
            "WITH picked AS (SELECT p.seq, p.number FROM job_parts p, jobs"
            " WHERE",
            kPgPartIsOpen,
            "AND NOT jobs.cancel AND p.engine = $3"
            " AND (jobs.id = $4 OR ($4 = '' AND jobs.server_id <> $1"
            "  AND jobs.lease_expires > ovpress_now()))"
            " AND ($5::bigint = 0 OR jobs.memory <= $5::bigint)"
            " AND ($6::integer = 0 OR p.attempt < $6::integer)"
            " ORDER BY jobs.priority DESC, p.seq, p.number LIMIT 1"
            " FOR UPDATE OF p SKIP LOCKED),"
            "taken AS (UPDATE job_parts p SET state = 2, server_id = $1,"
            " attempt = attempt + 1, done = 0,"
            " lease_expires = ovpress_now() + $2::bigint,"
            " token = nextval('job_part_tokens')"
            " FROM picked WHERE p.seq = picked.seq AND p.number = picked.number"
            " RETURNING p.*)"
            "SELECT jobs.id, t.number, t.token, t.attempt, t.cost, t.orders,"
            " r.common, jobs.owner, jobs.request_id, jobs.priority, jobs.spec,"
            " jobs.memory"
            " FROM taken t JOIN jobs USING (seq) JOIN job_rounds r USING "
            "(seq)"),
        {request.server_id, PgMicros(request.lease), request.engine,
         request.job_id, static_cast<int64_t>(request.max_memory_bytes),
         request.max_attempts});
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    if (rows->empty()) return std::optional<TakenPart>();
    TakenPart part;
    part.job_id = std::string(rows->Text(0, 0));
    part.number = static_cast<int>(rows->Int(0, 1));
    part.token = rows->Int(0, 2);
    part.attempt = static_cast<int>(rows->Int(0, 3));
    part.cost_bytes = static_cast<uint64_t>(rows->Int(0, 4));
    part.order = std::string(rows->Text(0, 5));
    part.common = std::string(rows->Text(0, 6));
    part.spec.owner = std::string(rows->Text(0, 7));
    part.spec.request_id = std::string(rows->Text(0, 8));
    part.spec.priority = static_cast<int>(rows->Int(0, 9));
    OVPRESS_RETURN_IF_ERROR(SpecFromJson(rows->Text(0, 10), &part.spec));
    part.memory_bytes = static_cast<uint64_t>(rows->Int(0, 11));
    return std::optional<TakenPart>(std::move(part));
  }

  absl::StatusOr<std::vector<bool>> Renew(const std::vector<Held>& held,
                                          absl::Duration lease) override {
    std::vector<std::string> ids;
    std::vector<int64_t> numbers;
    std::vector<int64_t> tokens;
    std::vector<int64_t> done;
    for (const Held& part : held) {
      ids.push_back(part.job_id);
      numbers.push_back(part.number);
      tokens.push_back(part.token);
      done.push_back(static_cast<int64_t>(part.done_bytes));
    }
    const absl::StatusOr<PgRows> rows = pool_->Query(
        absl::StrCat(
            "UPDATE job_parts p SET done = least(h.done, p.cost),"
            " lease_expires = ovpress_now() + $5::bigint"
            " FROM unnest($1::text[], $2::bigint[], $3::bigint[], $4::bigint[])"
            "  WITH ORDINALITY AS h(id, number, token, done, place), jobs"
            " WHERE jobs.id = h.id AND p.number = h.number"
            "  AND p.token = h.token AND p.state = 2 AND NOT jobs.cancel AND",
            kPartIsLive, "RETURNING h.place"),
        {PgValue::Array(ids), PgValue::Array(numbers), PgValue::Array(tokens),
         PgValue::Array(done), PgMicros(lease)},
        PgPool::Repeat::kRepeatable);
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    std::vector<bool> kept(held.size(), false);
    for (int row = 0; row < rows->size(); ++row) {
      kept[static_cast<size_t>(rows->Int(row, 0) - 1)] = true;
    }
    return kept;
  }

  absl::Status Finish(const Held& part, absl::string_view result) override {
    OVPRESS_ASSIGN_OR_RETURN(const bool done,
                             UpdatePart(part,
                                        "state = 3, done = cost, result = $4,"
                                        " lease_expires = -9223372036854775808",
                                        "p.state IN (2, 3)", result));
    return done ? absl::OkStatus() : PartLost(part);
  }

  absl::Status GiveBack(const Held& part, bool counts) override {
    OVPRESS_ASSIGN_OR_RETURN(const bool given,
                             UpdatePart(part,
                                        "state = 1, done = 0, server_id = '',"
                                        " attempt = p.attempt - $4::integer,"
                                        " lease_expires = -9223372036854775808",
                                        "p.state = 2", counts ? 0 : 1));
    if (!given) return PartLost(part);
    tell_();
    return absl::OkStatus();
  }

  absl::StatusOr<Look> LookAt(const JobHold& job) override {
    const absl::StatusOr<PgRows> rows = pool_->Read(
        absl::StrCat("SELECT count(*), count(*) FILTER (WHERE p.state = 3),"
                     " count(*) FILTER (WHERE p.state = 2"
                     "  AND p.lease_expires > ovpress_now()),"
                     " coalesce(sum(p.done), 0)::bigint FROM job_parts p, jobs"
                     " WHERE jobs.id = $1 AND jobs.token = $2 AND",
                     kPartIsLive),
        {job.id, job.fencing_token});
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    return Look{.parts = static_cast<int>(rows->Int(0, 0)),
                .done = static_cast<int>(rows->Int(0, 1)),
                .taken = static_cast<int>(rows->Int(0, 2)),
                .done_bytes = static_cast<uint64_t>(rows->Int(0, 3))};
  }

  absl::StatusOr<std::vector<std::string>> Results(
      const JobHold& job) override {
    const absl::StatusOr<PgRows> rows = pool_->Read(
        absl::StrCat("SELECT p.result, p.state FROM job_parts p, jobs"
                     " WHERE jobs.id = $1 AND jobs.token = $2 AND",
                     kPartIsLive, "ORDER BY p.number"),
        {job.id, job.fencing_token});
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    std::vector<std::string> results;
    for (int row = 0; row < rows->size(); ++row) {
      if (rows->Int(row, 1) != 3) {
        return absl::FailedPreconditionError(
            absl::StrCat("part ", row, " of job ", job.id, " is not done"));
      }
      results.emplace_back(rows->Text(row, 0));
    }
    return results;
  }

  absl::Status Drop(const JobHold& job) override {
    return PgHinted(pool_->Transaction([&](PgSession& session) -> absl::Status {
      // Also if the job ended meanwhile; not if another server holds it now.
      OVPRESS_ASSIGN_OR_RETURN(
          const PgRows held,
          session.Query("SELECT seq FROM jobs WHERE id = $1 AND token = $2"
                        " FOR SHARE",
                        {job.id, job.fencing_token}));
      return held.empty() ? absl::OkStatus() : DropOf(session, held.Int(0, 0));
    }));
  }

 private:
  static absl::Status PartLost(const Held& part) {
    return absl::AbortedError(
        absl::StrCat("part ", part.number, " of job ", part.job_id,
                     " is no longer held with token ", part.token));
  }

  // `set` may use $4.
  absl::StatusOr<bool> UpdatePart(const Held& part, absl::string_view set,
                                  absl::string_view where,
                                  const PgValue& value) {
    const absl::StatusOr<PgRows> rows = pool_->Query(
        absl::StrCat("UPDATE job_parts p SET ", set,
                     " FROM jobs WHERE jobs.id = $1 AND p.number = $2::integer"
                     " AND p.token = $3::bigint AND ",
                     where, " AND", kPartIsLive),
        {part.job_id, part.number, part.token, value},
        PgPool::Repeat::kRepeatable);
    OVPRESS_RETURN_IF_ERROR(PgHinted(rows.status()));
    return rows->affected() > 0;
  }

  static absl::Status DropOf(PgSession& session, int64_t seq) {
    OVPRESS_RETURN_IF_ERROR(
        session.Query("DELETE FROM job_parts WHERE seq = $1", {seq}).status());
    return session.Query("DELETE FROM job_rounds WHERE seq = $1", {seq})
        .status();
  }

  PgPool* const pool_;
  const std::function<void()> tell_;
};

}  // namespace

std::unique_ptr<PartStore> MakePostgresPartStore(PgPool* pool,
                                                 std::function<void()> tell) {
  return std::make_unique<PostgresPartStore>(pool, std::move(tell));
}

absl::Status PgHinted(absl::Status status) {
  return absl::IsUnavailable(status)
             ? WithRetryAfter(std::move(status), kRetryAfter)
             : status;
}

}  // namespace ovpress
