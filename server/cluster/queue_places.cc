#include "server/cluster/queue_places.h"

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

constexpr char kSchema[] = R"(CREATE TABLE queue_places(
  name text COLLATE "C" PRIMARY KEY,
  most bigint NOT NULL
) WITH (fillfactor = 50);)";

// What stands for all owners; it sorts before each of them.
constexpr char kAll[] = "";
std::string NameOf(const std::string& owner) {
  return absl::StrCat("o", owner);
}

struct Places {
  int64_t all = 0;
  int64_t owner = 0;

  JobStore::Full Beyond(const JobStore::QueueLimits& limits) const {
    if (all > limits.all) return JobStore::Full::kAll;
    if (owner > limits.owner) return JobStore::Full::kOwner;
    return JobStore::Full::kNo;
  }
};

// With the one that is to come.
Places Counted(const PgRows& rows) {
  return {.all = rows.Int(0, 0) + 1, .owner = rows.Int(0, 1) + 1};
}

// By the index of waiting jobs.
constexpr char kCount[] =
    "SELECT (SELECT count(*) FROM jobs WHERE state = 1),"
    " (SELECT count(*) FROM jobs WHERE state = 1 AND owner = $1)";

}  // namespace

const char kQueuePlacesOfBack[] =
    "places AS (UPDATE queue_places SET most = most + b.count FROM"
    " (SELECT '' AS name, count(*) AS count FROM back"
    "  UNION ALL SELECT 'o' || owner, count(*) FROM back GROUP BY owner) b"
    " WHERE queue_places.name = b.name)";

PgMigrations QueuePlaceMigrations() {
  return {.part = "queue_places", .steps = {kSchema}};
}

absl::StatusOr<JobStore::Full> TakeQueuePlace(
    PgSession& session, const std::string& owner,
    const JobStore::QueueLimits& limits) {
  // Who is not known yet has to be counted: a bound beyond any limit. The row
  // of all is the lock under which insertions go one after another; a
  // statement behind it sees what all before it committed.
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows taken,
      session.Query("INSERT INTO queue_places(name, most)"
                    " VALUES ($1, 4611686018427387904),"
                    "  ($2, 4611686018427387904)"
                    " ON CONFLICT (name) DO UPDATE SET"
                    "  most = least(queue_places.most, 4611686018427387903) + 1"
                    " RETURNING most",
                    {kAll, NameOf(owner)}));
  const Places places{.all = taken.Int(0, 0), .owner = taken.Int(1, 0)};
  if (places.Beyond(limits) == JobStore::Full::kNo) return JobStore::Full::kNo;
  OVPRESS_ASSIGN_OR_RETURN(const PgRows rows, session.Query(kCount, {owner}));
  const Places counted = Counted(rows);
  const JobStore::Full full = counted.Beyond(limits);
  if (full != JobStore::Full::kNo) return full;
  OVPRESS_RETURN_IF_ERROR(
      session
          .Query("UPDATE queue_places SET most ="
                 " CASE WHEN name = $1 THEN $3::bigint ELSE $4::bigint END"
                 " WHERE name IN ($1, $2)",
                 {kAll, NameOf(owner), counted.all, counted.owner})
          .status());
  return JobStore::Full::kNo;
}

absl::StatusOr<JobStore::Full> LookForQueuePlace(
    PgPool* pool, const std::string& owner,
    const JobStore::QueueLimits& limits) {
  OVPRESS_ASSIGN_OR_RETURN(
      PgRows rows,
      pool->Read("SELECT (SELECT most FROM queue_places WHERE name = $1),"
                 " (SELECT most FROM queue_places WHERE name = $2)",
                 {kAll, NameOf(owner)}));
  if (!rows.IsNull(0, 0) && !rows.IsNull(0, 1) &&
      Counted(rows).Beyond(limits) == JobStore::Full::kNo) {
    return JobStore::Full::kNo;
  }
  OVPRESS_ASSIGN_OR_RETURN(rows, pool->Read(kCount, {owner}));
  return Counted(rows).Beyond(limits);
}

void SweepQueuePlaces(PgPool* pool) {
  // Whose row is gone is counted anew, so a job that comes meanwhile is no
  // harm. What is not swept now is swept later.
  pool->Query(
          "DELETE FROM queue_places WHERE name <> '' AND NOT EXISTS"
          " (SELECT FROM jobs WHERE state = 1 AND owner ="
          "  substr(queue_places.name, 2))",
          {}, PgPool::Repeat::kRepeatable)
      .status()
      .IgnoreError();
}

}  // namespace ovpress
