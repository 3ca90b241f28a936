#include "server/cluster/blob_index.h"

#include <algorithm>
#include <limits>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/base/mutex.h"
#include "core/base/patience.h"
#include "core/base/status_macros.h"
#include "server/cluster/random_id.h"
#include "server/jobs/errors.h"

namespace ovpress {
namespace {

// How long tidying up may wait for the database once nobody waits for it.
constexpr std::chrono::milliseconds kTidyGrace{200};

// Times are microseconds since 1970; keys of objects without bucket.
const char kSchema1[] = R"sql(
CREATE TABLE blob_meta (name text PRIMARY KEY, value text NOT NULL);
CREATE TABLE blob_sessions (
  session text PRIMARY KEY,
  expires_us bigint NOT NULL);
CREATE TABLE blobs (
  sha256 text NOT NULL,
  size_bytes bigint NOT NULL,
  object_key text NOT NULL UNIQUE,
  etag text NOT NULL,
  block_digests bytea NOT NULL,
  last_use_us bigint NOT NULL,
  -- Bytes of somebody else, read where they lie: no garbage, no quota.
  external boolean NOT NULL DEFAULT false,
  PRIMARY KEY (sha256, size_bytes));
CREATE INDEX blobs_by_use ON blobs (last_use_us);
CREATE TABLE blob_owners (
  owner text NOT NULL,
  sha256 text NOT NULL,
  size_bytes bigint NOT NULL,
  PRIMARY KEY (owner, sha256, size_bytes),
  FOREIGN KEY (sha256, size_bytes) REFERENCES blobs ON DELETE CASCADE);
CREATE INDEX blob_owners_by_blob ON blob_owners (sha256, size_bytes);
CREATE TABLE blob_pins (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  session text NOT NULL REFERENCES blob_sessions ON DELETE CASCADE,
  sha256 text NOT NULL,
  size_bytes bigint NOT NULL,
  FOREIGN KEY (sha256, size_bytes) REFERENCES blobs ON DELETE CASCADE);
CREATE INDEX blob_pins_by_blob ON blob_pins (sha256, size_bytes);
CREATE INDEX blob_pins_by_session ON blob_pins (session);
CREATE TABLE blob_reservations (
  id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
  session text NOT NULL REFERENCES blob_sessions ON DELETE CASCADE,
  owner text NOT NULL,
  bytes bigint NOT NULL);
CREATE INDEX blob_reservations_by_owner ON blob_reservations (owner);
-- Objects that no blob and no upload names: outputs on their way (with a
-- session) and garbage (without).
CREATE TABLE blob_objects (
  object_key text PRIMARY KEY,
  upload_id text NOT NULL DEFAULT '',
  session text,
  taken_until_us bigint NOT NULL DEFAULT 0);
CREATE TABLE blob_uploads (
  owner text NOT NULL,
  uuid text NOT NULL,
  sha256 text NOT NULL,
  size_bytes bigint NOT NULL,
  object_key text NOT NULL UNIQUE,
  upload_id text NOT NULL DEFAULT '',
  part_bytes bigint NOT NULL,
  committed_bytes bigint NOT NULL DEFAULT 0,
  midstate bytea NOT NULL DEFAULT '',
  tail_bytes bigint NOT NULL DEFAULT 0,
  tail_key text NOT NULL DEFAULT '',
  generation bigint NOT NULL DEFAULT 1,
  alive boolean NOT NULL DEFAULT true,
  last_use_us bigint NOT NULL,
  PRIMARY KEY (owner, uuid));
CREATE TABLE blob_upload_parts (
  object_key text NOT NULL
    REFERENCES blob_uploads (object_key) ON DELETE CASCADE,
  number int NOT NULL,
  etag text NOT NULL,
  size_bytes bigint NOT NULL,
  block_digests bytea NOT NULL,
  PRIMARY KEY (object_key, number));
)sql";

constexpr char kNoPins[] =
    "AND NOT EXISTS (SELECT 1 FROM blob_pins p WHERE p.sha256 = b.sha256 AND "
    "p.size_bytes = b.size_bytes)";
// Where the queue is in the same database, it says what its jobs hold, also
// those that no server has at the moment.
constexpr char kNoJobs[] =
    " AND NOT EXISTS (SELECT 1 FROM job_blobs j WHERE j.sha256 = b.sha256 AND "
    "j.size_bytes = b.size_bytes)";
constexpr char kNoOwners[] =
    "AND NOT EXISTS (SELECT 1 FROM blob_owners o WHERE o.sha256 = b.sha256 AND "
    "o.size_bytes = b.size_bytes)";

// How long a server keeps the garbage that it took to itself.
constexpr absl::Duration kGarbageLease = absl::Minutes(1);
// References that nobody used for so long are forgotten.
constexpr absl::Duration kExternalAge = absl::Hours(24);
// Blobs that one sweep removes at most in one transaction.
constexpr int kSweepBatch = 200;

int64_t Signed(uint64_t value) { return static_cast<int64_t>(value); }

absl::Status SessionLost(const std::string& object_key) {
  return absl::AbortedError(absl::StrCat(
      "object ", object_key,
      " is not ours any more: this server did not renew its session in time "
      "and lost its unfinished outputs"));
}

absl::Status TakenOver() {
  return absl::AbortedError("another writer took over this upload");
}

}  // namespace

struct BlobIndex::State {
  Mutex mutex;
  std::string session ABSL_GUARDED_BY(mutex);
  absl::Time renewed ABSL_GUARDED_BY(mutex) = absl::InfinitePast();
  // What the database did not take when it should have.
  struct Late {
    std::string sql;
    PgValues values;
  };
  std::vector<Late> late ABSL_GUARDED_BY(mutex);
  uint64_t evicted_bytes ABSL_GUARDED_BY(mutex) = 0;
};

BlobIndex::BlobIndex(BlobIndexOptions options)
    : options_(std::move(options)), state_(std::make_unique<State>()) {}

absl::StatusOr<std::unique_ptr<BlobIndex>> BlobIndex::Open(
    BlobIndexOptions options) {
  OVPRESS_RETURN_IF_ERROR(PgMigrate(
      options.pool, {.part = "blobs", .steps = {std::string(kSchema1)}}));
  std::unique_ptr<BlobIndex> index(new BlobIndex(std::move(options)));
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows jobs,
      index->options_.pool->Read("SELECT to_regclass('job_blobs') IS NOT "
                                 "NULL"));
  index->not_used_ = kNoPins;
  if (jobs.Bool(0, 0)) index->not_used_ += kNoJobs;
  OVPRESS_RETURN_IF_ERROR(index->Renew().status());
  return index;
}

// What is ours goes at once; a crash leaves that to the lease.
BlobIndex::~BlobIndex() {
  // A session that cannot be ended ends by itself.
  static constexpr std::atomic<bool> kStop{true};
  const Patience patience(&kStop, std::chrono::seconds(1));
  options_.pool
      ->Query("UPDATE blob_sessions SET expires_us = 0 WHERE session = $1",
              {session()}, PgPool::Repeat::kRepeatable)
      .IgnoreError();
}

absl::Time BlobIndex::Now() const {
  if (options_.now) return options_.now();
  return absl::Now() + absl::Microseconds(skew_micros_.load());
}

std::string BlobIndex::session() const {
  MutexLock lock(&state_->mutex);
  return state_->session;
}

absl::StatusOr<bool> BlobIndex::Renew() {
  if (!options_.now) {
    const absl::Time before = absl::Now();
    OVPRESS_ASSIGN_OR_RETURN(
        const PgRows rows,
        options_.pool->Read("SELECT (extract(epoch FROM clock_timestamp()) * "
                            "1000000)::bigint"));
    const absl::Time after = absl::Now();
    skew_micros_ =
        rows.Int(0, 0) - absl::ToUnixMicros(before + (after - before) / 2);
  }
  const absl::Time now = Now();
  const int64_t expires = absl::ToUnixMicros(now + options_.session_lease);
  const std::string mine = session();
  bool kept = false;
  if (!mine.empty()) {
    OVPRESS_ASSIGN_OR_RETURN(
        const PgRows rows,
        options_.pool->Query(
            "UPDATE blob_sessions SET expires_us = $2 WHERE session = $1",
            {mine, expires}, PgPool::Repeat::kRepeatable));
    kept = rows.affected() == 1;
  }
  if (!kept) {
    const std::string fresh = RandomId();
    OVPRESS_RETURN_IF_ERROR(
        options_.pool
            ->Query("INSERT INTO blob_sessions (session, expires_us) "
                    "VALUES ($1, $2) ON CONFLICT DO NOTHING",
                    {fresh, expires}, PgPool::Repeat::kRepeatable)
            .status());
    MutexLock lock(&state_->mutex);
    state_->session = fresh;
  }
  std::vector<State::Late> late;
  {
    MutexLock lock(&state_->mutex);
    state_->renewed = now;
    late.swap(state_->late);
  }
  for (State::Late& one : late) {
    if (!options_.pool->Query(one.sql, one.values, PgPool::Repeat::kRepeatable)
             .ok()) {
      MutexLock lock(&state_->mutex);
      state_->late.push_back(std::move(one));
    }
  }
  return kept || mine.empty();
}

// --- blobs ---

absl::StatusOr<std::vector<BlobRef>> BlobIndex::FindMissing(
    const std::string& owner, std::span<const BlobRef> refs) {
  std::vector<std::string> digests;
  std::vector<int64_t> sizes;
  for (const BlobRef& ref : refs) {
    digests.push_back(ref.sha256);
    sizes.push_back(Signed(ref.size_bytes));
  }
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Query(
          "UPDATE blobs b SET last_use_us = $4 FROM "
          "unnest($2::text[], $3::bigint[]) AS r(s, n) "
          "JOIN blob_owners o ON o.owner = $1 AND o.sha256 = r.s "
          "AND o.size_bytes = r.n "
          "WHERE b.sha256 = r.s AND b.size_bytes = r.n "
          "RETURNING b.sha256, b.size_bytes",
          {owner, PgValue::Array(digests), PgValue::Array(sizes), NowMicros()},
          PgPool::Repeat::kRepeatable));
  std::set<BlobRef> found;
  for (int i = 0; i < rows.size(); ++i) {
    found.insert({.sha256 = std::string(rows.Text(i, 0)),
                  .size_bytes = static_cast<uint64_t>(rows.Int(i, 1))});
  }
  std::vector<BlobRef> missing;
  for (const BlobRef& ref : refs) {
    if (found.insert(ref).second) missing.push_back(ref);
  }
  return missing;
}

absl::StatusOr<int64_t> BlobIndex::AddPin(PgSession& pg, const BlobRef& ref) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      pg.Query("INSERT INTO blob_pins (session, sha256, size_bytes) "
               "VALUES ($1, $2, $3) RETURNING id",
               {session(), ref.sha256, Signed(ref.size_bytes)}));
  return rows.Int(0, 0);
}

absl::StatusOr<std::vector<int64_t>> BlobIndex::Pin(
    const std::string& owner, std::span<const BlobRef> refs) {
  std::vector<int64_t> pins;
  // Locked in one order by all, so that no two wait for each other.
  const std::set<BlobRef> ordered(refs.begin(), refs.end());
  OVPRESS_RETURN_IF_ERROR(
      options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
        pins.clear();
        std::vector<BlobRef> missing;
        for (const BlobRef& ref : ordered) {
          // The update locks the row: no eviction until the end.
          OVPRESS_ASSIGN_OR_RETURN(
              const PgRows rows,
              pg.Query(
                  "UPDATE blobs SET last_use_us = $4 WHERE sha256 = $2 "
                  "AND size_bytes = $3 AND EXISTS (SELECT 1 FROM "
                  "blob_owners o WHERE o.owner = $1 AND o.sha256 = $2 "
                  "AND o.size_bytes = $3)",
                  {owner, ref.sha256, Signed(ref.size_bytes), NowMicros()}));
          if (rows.affected() == 0) {
            missing.push_back(ref);
          } else if (missing.empty()) {
            OVPRESS_ASSIGN_OR_RETURN(const int64_t id, AddPin(pg, ref));
            pins.push_back(id);
          }
        }
        return missing.empty() ? absl::OkStatus() : MissingBlobsError(missing);
      }));
  return pins;
}

absl::StatusOr<int64_t> BlobIndex::PinAny(const BlobRef& ref) {
  int64_t pin = 0;
  OVPRESS_RETURN_IF_ERROR(
      options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(
            const PgRows rows,
            pg.Query("SELECT 1 FROM blobs WHERE sha256 = $1 AND size_bytes = "
                     "$2 FOR KEY SHARE",
                     {ref.sha256, Signed(ref.size_bytes)}));
        if (rows.empty()) {
          return absl::NotFoundError(
              absl::StrCat("there is no ", BlobName(ref)));
        }
        OVPRESS_ASSIGN_OR_RETURN(pin, AddPin(pg, ref));
        return absl::OkStatus();
      }));
  return pin;
}

namespace {

// Removes a blob whose row is locked, and leaves its object to the garbage.
absl::StatusOr<bool> RemoveBlob(PgSession& pg, const BlobRef& ref,
                                const std::string& condition) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      pg.Query(absl::StrCat(
                   "WITH gone AS (DELETE FROM blobs b WHERE b.sha256 = $1 AND "
                   "b.size_bytes = $2 ",
                   condition,
                   " RETURNING object_key, external), garbage AS (INSERT INTO "
                   "blob_objects (object_key) SELECT object_key FROM gone "
                   "WHERE NOT external ON CONFLICT DO NOTHING) SELECT 1 FROM "
                   "gone"),
               {ref.sha256, static_cast<int64_t>(ref.size_bytes)}));
  return rows.size() == 1;
}

absl::Status LockBlob(PgSession& pg, const BlobRef& ref) {
  // In a statement of its own: the next one then sees what those did who held
  // the lock.
  return pg
      .Query(
          "SELECT 1 FROM blobs WHERE sha256 = $1 AND size_bytes = $2 "
          "FOR UPDATE",
          {ref.sha256, static_cast<int64_t>(ref.size_bytes)})
      .status();
}

}  // namespace

void BlobIndex::Unpin(const std::vector<int64_t>& pins) {
  if (pins.empty()) return;
  const Patience patience(Patience::Stop(), kTidyGrace);
  const absl::Status status =
      options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(
            const PgRows rows,
            pg.Query("DELETE FROM blob_pins WHERE id = ANY($1::bigint[]) "
                     "RETURNING sha256, size_bytes",
                     {PgValue::Array(pins)}));
        std::set<BlobRef> refs;
        for (int i = 0; i < rows.size(); ++i) {
          refs.insert({.sha256 = std::string(rows.Text(i, 0)),
                       .size_bytes = static_cast<uint64_t>(rows.Int(i, 1))});
        }
        for (const BlobRef& ref : refs) {
          OVPRESS_RETURN_IF_ERROR(LockBlob(pg, ref));
          OVPRESS_RETURN_IF_ERROR(
              RemoveBlob(pg, ref, absl::StrCat(kNoOwners, " ", not_used_))
                  .status());
        }
        return absl::OkStatus();
      });
  if (!status.ok()) {
    MutexLock lock(&state_->mutex);
    state_->late.push_back(
        {"DELETE FROM blob_pins WHERE id = ANY($1::bigint[])",
         {PgValue::Array(pins)}});
  }
}

absl::StatusOr<BlobObject> BlobIndex::Find(const BlobRef& ref) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Read("SELECT object_key, etag, block_digests, external "
                          "FROM blobs WHERE sha256 = $1 AND size_bytes = $2",
                          {ref.sha256, Signed(ref.size_bytes)}));
  if (rows.empty()) {
    return absl::NotFoundError(absl::StrCat("there is no ", BlobName(ref)));
  }
  return BlobObject{.key = std::string(rows.Text(0, 0)),
                    .etag = std::string(rows.Text(0, 1)),
                    .block_digests = rows.Bytes(0, 2),
                    .external = rows.Bool(0, 3)};
}

absl::Status BlobIndex::Release(const std::string& owner, const BlobRef& ref) {
  return options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
    OVPRESS_RETURN_IF_ERROR(LockBlob(pg, ref));
    OVPRESS_RETURN_IF_ERROR(
        pg.Query("DELETE FROM blob_owners WHERE owner = $1 AND sha256 = $2 "
                 "AND size_bytes = $3",
                 {owner, ref.sha256, Signed(ref.size_bytes)})
            .status());
    return RemoveBlob(pg, ref, absl::StrCat(kNoOwners, " ", not_used_))
        .status();
  });
}

absl::Status BlobIndex::Drop(const BlobRef& ref,
                             const std::string& object_key) {
  return options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
    return pg
        .Query(
            "WITH gone AS (DELETE FROM blobs WHERE sha256 = $1 AND "
            "size_bytes = $2 AND object_key = $3 RETURNING object_key) "
            "INSERT INTO blob_objects (object_key) SELECT object_key FROM "
            "gone ON CONFLICT DO NOTHING",
            {ref.sha256, Signed(ref.size_bytes), object_key})
        .status();
  });
}

absl::Status BlobIndex::AddExternal(const std::string& owner,
                                    const BlobRef& ref,
                                    const BlobObject& object) {
  return options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
    OVPRESS_RETURN_IF_ERROR(
        pg.Query("INSERT INTO blobs (sha256, size_bytes, object_key, etag, "
                 "block_digests, last_use_us, external) VALUES ($1, $2, $3, "
                 "$4, '', $5, true) ON CONFLICT (sha256, size_bytes) DO UPDATE "
                 "SET last_use_us = EXCLUDED.last_use_us",
                 {ref.sha256, Signed(ref.size_bytes), object.key, object.etag,
                  NowMicros()})
            .status());
    return pg
        .Query(
            "INSERT INTO blob_owners (owner, sha256, size_bytes) VALUES "
            "($1, $2, $3) ON CONFLICT DO NOTHING",
            {owner, ref.sha256, Signed(ref.size_bytes)})
        .status();
  });
}

// --- space ---

absl::StatusOr<std::optional<uint64_t>> BlobIndex::EvictOne(PgSession& pg) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      pg.Query(absl::StrCat("SELECT sha256, size_bytes FROM blobs b WHERE NOT "
                            "external AND last_use_us <= $1 ",
                            not_used_,
                            " ORDER BY last_use_us LIMIT 1 FOR UPDATE SKIP "
                            "LOCKED"),
               {absl::ToUnixMicros(Now() - options_.limits.min_blob_age)}));
  if (rows.empty()) return std::nullopt;
  const BlobRef ref{.sha256 = std::string(rows.Text(0, 0)),
                    .size_bytes = static_cast<uint64_t>(rows.Int(0, 1))};
  OVPRESS_ASSIGN_OR_RETURN(const bool gone, RemoveBlob(pg, ref, not_used_));
  if (!gone) return std::nullopt;
  return ref.size_bytes;
}

namespace {

absl::StatusOr<uint64_t> UsedBytes(PgSession& pg) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      pg.Query("SELECT (SELECT coalesce(sum(size_bytes), 0) FROM blobs WHERE "
               "NOT external)::bigint"
               " + (SELECT coalesce(sum(size_bytes), 0) FROM "
               "blob_uploads)::bigint + (SELECT coalesce(sum(bytes), 0) FROM "
               "blob_reservations)::bigint",
               {}));
  return static_cast<uint64_t>(rows.Int(0, 0));
}

// Sums over all servers are taken one at a time.
absl::Status LockSpace(PgSession& pg) {
  return pg
      .Query("SELECT pg_advisory_xact_lock(hashtext('ovpress_blob_space'))", {})
      .status();
}

}  // namespace

OwnerQuota BlobIndex::QuotaOf(const Space& space) const {
  return options_.quotas == nullptr
             ? OwnerQuota{}
             : options_.quotas->QuotaOf(space.owner_name);
}

absl::StatusOr<std::optional<uint64_t>> BlobIndex::EvictOneOf(
    PgSession& pg, const std::string& owner, std::vector<uint64_t>* evicted) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      pg.Query(
          absl::StrCat(
              "SELECT b.sha256, b.size_bytes FROM blobs b JOIN "
              "blob_owners mine USING (sha256, size_bytes) WHERE "
              "mine.owner = $1 AND NOT b.external AND b.last_use_us <= $2 ",
              not_used_,
              " ORDER BY b.last_use_us LIMIT 1 FOR UPDATE OF b SKIP "
              "LOCKED"),
          {owner, absl::ToUnixMicros(Now() - options_.limits.min_blob_age)}));
  if (rows.empty()) return std::nullopt;
  const BlobRef ref{.sha256 = std::string(rows.Text(0, 0)),
                    .size_bytes = static_cast<uint64_t>(rows.Int(0, 1))};
  OVPRESS_RETURN_IF_ERROR(
      pg.Query("DELETE FROM blob_owners WHERE owner = $1 AND sha256 = $2 AND "
               "size_bytes = $3",
               {owner, ref.sha256, Signed(ref.size_bytes)})
          .status());
  OVPRESS_ASSIGN_OR_RETURN(
      const bool gone,
      RemoveBlob(pg, ref, absl::StrCat(kNoOwners, " ", not_used_)));
  if (gone) evicted->push_back(ref.size_bytes);
  return ref.size_bytes;
}

absl::Status BlobIndex::MakeOwnRoom(PgSession& pg, const Space& space,
                                    uint64_t most,
                                    std::vector<uint64_t>* evicted) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      pg.Query("SELECT (SELECT coalesce(sum(b.size_bytes), 0) FROM blob_owners "
               "o JOIN blobs b USING (sha256, size_bytes) WHERE o.owner = $1 "
               "AND NOT b.external)::bigint + (SELECT coalesce(sum(size_bytes),"
               " 0) FROM blob_uploads WHERE owner = $1)::bigint + (SELECT "
               "coalesce(sum(bytes), 0) FROM blob_reservations WHERE owner = "
               "$1)::bigint",
               {space.owner}));
  auto owned = static_cast<uint64_t>(rows.Int(0, 0));
  while (space.size_bytes > most || owned > most - space.size_bytes) {
    std::optional<uint64_t> freed;
    if (space.size_bytes <= most) {
      OVPRESS_ASSIGN_OR_RETURN(freed, EvictOneOf(pg, space.owner, evicted));
    }
    if (!freed.has_value()) {
      return LimitError(
          "this client's share of the store is full",
          {.limit = "max_owner_bytes",
           .subject = absl::StrCat("client:", space.owner_name),
           .limit_value = most,
           .requested = owned + space.size_bytes,
           .retry_after = space.size_bytes <= most ? absl::Minutes(1)
                                                   : absl::InfiniteDuration()});
    }
    owned -= std::min(owned, *freed);
  }
  return absl::OkStatus();
}

absl::Status BlobIndex::MakeRoom(PgSession& pg, const Space& space,
                                 std::vector<uint64_t>* evicted) {
  const uint64_t most =
      QuotaOf(space).max_bytes.value_or(options_.limits.max_owner_bytes);
  const uint64_t limit = options_.limits.max_store_bytes;
  if (most == 0 && limit == 0) return absl::OkStatus();
  OVPRESS_RETURN_IF_ERROR(LockSpace(pg));
  if (most != 0) {
    OVPRESS_RETURN_IF_ERROR(MakeOwnRoom(pg, space, most, evicted));
  }
  if (limit == 0) return absl::OkStatus();
  OVPRESS_ASSIGN_OR_RETURN(uint64_t used, UsedBytes(pg));
  while (space.size_bytes > limit || used > limit - space.size_bytes) {
    std::optional<uint64_t> freed;
    if (space.size_bytes <= limit) {
      OVPRESS_ASSIGN_OR_RETURN(freed, EvictOne(pg));
    }
    if (!freed.has_value()) {
      return LimitError("the store is full",
                        {.limit = "max_store_bytes",
                         .subject = "server",
                         .limit_value = limit,
                         .requested = used + space.size_bytes,
                         .retry_after = space.size_bytes <= limit
                                            ? absl::Minutes(1)
                                            : absl::InfiniteDuration()});
    }
    evicted->push_back(*freed);
    used -= std::min(used, *freed);
  }
  return absl::OkStatus();
}

absl::StatusOr<int64_t> BlobIndex::Reserve(const Space& space) {
  int64_t id = 0;
  std::vector<uint64_t> evicted;
  OVPRESS_RETURN_IF_ERROR(
      options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
        evicted.clear();
        OVPRESS_RETURN_IF_ERROR(MakeRoom(pg, space, &evicted));
        OVPRESS_ASSIGN_OR_RETURN(
            const PgRows rows,
            pg.Query("INSERT INTO blob_reservations (session, owner, bytes) "
                     "VALUES ($1, $2, $3) RETURNING id",
                     {session(), space.owner, Signed(space.size_bytes)}));
        id = rows.Int(0, 0);
        return absl::OkStatus();
      }));
  MutexLock lock(&state_->mutex);
  for (const uint64_t bytes : evicted) state_->evicted_bytes += bytes;
  return id;
}

void BlobIndex::Unreserve(int64_t id) {
  if (id == 0) return;
  const Patience patience(Patience::Stop(), kTidyGrace);
  const std::string sql = "DELETE FROM blob_reservations WHERE id = $1";
  if (!options_.pool->Query(sql, {id}, PgPool::Repeat::kRepeatable).ok()) {
    MutexLock lock(&state_->mutex);
    state_->late.push_back({sql, {id}});
  }
}

// --- outputs ---

absl::StatusOr<int64_t> BlobIndex::BeginOutput(const NewOutput& output) {
  int64_t id = 0;
  std::vector<uint64_t> evicted;
  OVPRESS_RETURN_IF_ERROR(
      options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
        evicted.clear();
        if (output.drawn_bytes > 0) {
          OVPRESS_RETURN_IF_ERROR(
              pg.Query("UPDATE blob_reservations SET bytes = bytes - $2 WHERE "
                       "id = $1",
                       {output.reservation, Signed(output.drawn_bytes)})
                  .status());
        }
        Space more = output.space;
        more.size_bytes -= output.drawn_bytes;
        if (more.size_bytes > 0) {
          OVPRESS_RETURN_IF_ERROR(MakeRoom(pg, more, &evicted));
        }
        OVPRESS_ASSIGN_OR_RETURN(
            const PgRows rows,
            pg.Query("INSERT INTO blob_reservations (session, owner, bytes) "
                     "VALUES ($1, $2, $3) RETURNING id",
                     {session(), output.space.owner,
                      Signed(output.space.size_bytes)}));
        id = rows.Int(0, 0);
        return pg
            .Query(
                "INSERT INTO blob_objects (object_key, session) VALUES "
                "($1, $2)",
                {output.object_key, session()})
            .status();
      }));
  MutexLock lock(&state_->mutex);
  for (const uint64_t bytes : evicted) state_->evicted_bytes += bytes;
  return id;
}

absl::Status BlobIndex::SetUploadId(const std::string& object_key,
                                    const std::string& s3_upload_id) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Query("UPDATE blob_objects SET upload_id = $2 WHERE "
                           "object_key = $1 AND session IS NOT NULL",
                           {object_key, s3_upload_id},
                           PgPool::Repeat::kRepeatable));
  return rows.affected() == 1 ? absl::OkStatus() : SessionLost(object_key);
}

absl::Status BlobIndex::PutBlob(PgSession& pg, const NewBlob& blob,
                                bool* is_new) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      pg.Query("INSERT INTO blobs (sha256, size_bytes, object_key, etag, "
               "block_digests, last_use_us) VALUES ($1, $2, $3, $4, $5, $6) "
               "ON CONFLICT (sha256, size_bytes) DO UPDATE SET last_use_us = "
               "EXCLUDED.last_use_us RETURNING object_key",
               {blob.ref.sha256, Signed(blob.ref.size_bytes), blob.object.key,
                blob.object.etag, PgValue::Bytes(blob.object.block_digests),
                NowMicros()}));
  const std::string present(rows.Text(0, 0));
  *is_new = present == blob.object.key;
  if (!*is_new) {
    std::string unwanted = blob.object.key;
    if (present == blob.replaces) {
      OVPRESS_RETURN_IF_ERROR(
          pg.Query(
                "UPDATE blobs SET object_key = $3, etag = $4, "
                "block_digests = $5 WHERE sha256 = $1 AND size_bytes = $2",
                {blob.ref.sha256, Signed(blob.ref.size_bytes), blob.object.key,
                 blob.object.etag, PgValue::Bytes(blob.object.block_digests)})
              .status());
      unwanted = present;
    }
    OVPRESS_RETURN_IF_ERROR(
        pg.Query("INSERT INTO blob_objects (object_key) VALUES ($1) "
                 "ON CONFLICT DO NOTHING",
                 {unwanted})
            .status());
  }
  return pg
      .Query(
          "INSERT INTO blob_owners (owner, sha256, size_bytes) VALUES "
          "($1, $2, $3) ON CONFLICT DO NOTHING",
          {blob.owner, blob.ref.sha256, Signed(blob.ref.size_bytes)})
      .status();
}

absl::StatusOr<int64_t> BlobIndex::Publish(const NewBlob& blob) {
  int64_t pin = 0;
  OVPRESS_RETURN_IF_ERROR(
      options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(
            const PgRows rows,
            pg.Query("DELETE FROM blob_objects WHERE object_key = $1 AND "
                     "session IS NOT NULL",
                     {blob.object.key}));
        if (rows.affected() != 1) return SessionLost(blob.object.key);
        bool is_new = false;
        OVPRESS_RETURN_IF_ERROR(PutBlob(pg, blob, &is_new));
        OVPRESS_ASSIGN_OR_RETURN(pin, AddPin(pg, blob.ref));
        return absl::OkStatus();
      }));
  return pin;
}

absl::StatusOr<int64_t> BlobIndex::Adopt(const std::string& owner,
                                         const BlobRef& ref) {
  int64_t pin = 0;
  OVPRESS_RETURN_IF_ERROR(
      options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(
            const PgRows rows,
            pg.Query("UPDATE blobs SET last_use_us = $3 WHERE sha256 = $1 AND "
                     "size_bytes = $2",
                     {ref.sha256, Signed(ref.size_bytes), NowMicros()}));
        if (rows.affected() != 1) {
          return absl::NotFoundError(
              absl::StrCat("there is no ", BlobName(ref)));
        }
        OVPRESS_RETURN_IF_ERROR(
            pg.Query("INSERT INTO blob_owners (owner, sha256, size_bytes) "
                     "VALUES ($1, $2, $3) ON CONFLICT DO NOTHING",
                     {owner, ref.sha256, Signed(ref.size_bytes)})
                .status());
        OVPRESS_ASSIGN_OR_RETURN(pin, AddPin(pg, ref));
        return absl::OkStatus();
      }));
  return pin;
}

void BlobIndex::Abandon(const std::string& object_key) {
  const Patience patience(Patience::Stop(), kTidyGrace);
  const std::string sql =
      "UPDATE blob_objects SET session = NULL WHERE object_key = $1";
  if (!options_.pool->Query(sql, {object_key}, PgPool::Repeat::kRepeatable)
           .ok()) {
    MutexLock lock(&state_->mutex);
    state_->late.push_back({sql, {object_key}});
  }
}

// --- uploads ---

namespace {

constexpr char kUploadColumns[] =
    "sha256, size_bytes, object_key, upload_id, part_bytes, committed_bytes, "
    "midstate, tail_bytes, generation, alive, last_use_us, tail_key";

UploadRow UploadOf(const PgRows& rows) {
  return {.ref = {.sha256 = std::string(rows.Text(0, 0)),
                  .size_bytes = static_cast<uint64_t>(rows.Int(0, 1))},
          .object_key = std::string(rows.Text(0, 2)),
          .s3_upload_id = std::string(rows.Text(0, 3)),
          .part_bytes = static_cast<uint64_t>(rows.Int(0, 4)),
          .committed_bytes = static_cast<uint64_t>(rows.Int(0, 5)),
          .midstate = rows.Bytes(0, 6),
          .tail_bytes = static_cast<uint64_t>(rows.Int(0, 7)),
          .tail_key = std::string(rows.Text(0, 11)),
          .generation = rows.Int(0, 8)};
}

}  // namespace

absl::StatusOr<BlobIndex::OpenedUpload> BlobIndex::OpenUpload(
    const NewUpload& upload) {
  const UploadName& name = upload.name;
  const std::string& owner = upload.space.owner;
  const StoreLimits& limits = options_.limits;
  OpenedUpload opened;
  std::vector<uint64_t> evicted;
  const auto body = [&](PgSession& pg) -> absl::Status {
    opened = OpenedUpload();
    evicted.clear();
    const absl::Time now = Now();
    const int64_t now_us = absl::ToUnixMicros(now);
    OVPRESS_ASSIGN_OR_RETURN(
        const PgRows rows,
        pg.Query(absl::StrCat("SELECT ", kUploadColumns,
                              " FROM blob_uploads WHERE owner = $1 AND uuid = "
                              "$2 FOR UPDATE"),
                 {owner, name.uuid}));
    if (!rows.empty() && UploadOf(rows).ref != name.ref) {
      return absl::AlreadyExistsError(
          absl::StrCat("upload ", name.uuid, " is already in use for ",
                       BlobName(UploadOf(rows).ref), "; choose another uuid"));
    }
    OVPRESS_ASSIGN_OR_RETURN(
        const PgRows has,
        pg.Query(
            "UPDATE blobs SET last_use_us = $4 WHERE sha256 = $2 AND "
            "size_bytes = $3 AND EXISTS (SELECT 1 FROM blob_owners o "
            "WHERE o.owner = $1 AND o.sha256 = $2 AND o.size_bytes = $3)",
            {owner, name.ref.sha256, Signed(name.ref.size_bytes), now_us}));
    if (has.affected() > 0) {
      opened.already_exists = true;
      return absl::OkStatus();
    }
    if (!rows.empty()) {
      const absl::Time last_use = absl::FromUnixMicros(rows.Int(0, 10));
      if (rows.Bool(0, 9) && now - last_use < limits.writer_takeover) {
        return WithRetryAfter(
            absl::AbortedError(absl::StrCat(
                "another writer is at upload ", name.uuid,
                "; it gives way after ",
                absl::FormatDuration(limits.writer_takeover), " of silence")),
            limits.writer_takeover);
      }
      opened.row = UploadOf(rows);
      ++opened.row.generation;
      return pg
          .Query(
              "UPDATE blob_uploads SET generation = $3, alive = true, "
              "last_use_us = $4 WHERE owner = $1 AND uuid = $2",
              {owner, name.uuid, opened.row.generation, now_us})
          .status();
    }
    OVPRESS_RETURN_IF_ERROR(LockSpace(pg));
    OVPRESS_ASSIGN_OR_RETURN(
        const PgRows counts,
        pg.Query("SELECT count(*), count(*) FILTER (WHERE owner = $1) FROM "
                 "blob_uploads",
                 {owner}));
    const int max_owner_uploads =
        QuotaOf(upload.space).max_uploads.value_or(limits.max_owner_uploads);
    const bool owner_full = counts.Int(0, 1) >= max_owner_uploads;
    if (owner_full || counts.Int(0, 0) >= limits.max_uploads) {
      return LimitError(
          "too many unfinished uploads",
          {.limit = owner_full ? "max_owner_uploads" : "max_uploads",
           .subject = owner_full
                          ? absl::StrCat("client:", upload.space.owner_name)
                          : "server",
           .limit_value = static_cast<uint64_t>(
               owner_full ? max_owner_uploads : limits.max_uploads),
           .retry_after = absl::Seconds(30)});
    }
    OVPRESS_RETURN_IF_ERROR(MakeRoom(pg, upload.space, &evicted));
    opened.row = {.ref = name.ref,
                  .object_key = upload.object_key,
                  .part_bytes = upload.part_bytes,
                  .generation = 1};
    OVPRESS_ASSIGN_OR_RETURN(
        const PgRows made,
        pg.Query(
            "INSERT INTO blob_uploads (owner, uuid, sha256, size_bytes, "
            "object_key, part_bytes, last_use_us) VALUES ($1, $2, $3, $4, "
            "$5, $6, $7) ON CONFLICT (owner, uuid) DO NOTHING",
            {owner, name.uuid, name.ref.sha256, Signed(name.ref.size_bytes),
             upload.object_key, Signed(upload.part_bytes), now_us}));
    if (made.affected() != 1) {
      return WithRetryAfter(
          absl::AbortedError(
              absl::StrCat("another writer just began upload ", name.uuid)),
          limits.writer_takeover);
    }
    return absl::OkStatus();
  };
  OVPRESS_RETURN_IF_ERROR(options_.pool->Transaction(body));
  MutexLock lock(&state_->mutex);
  for (const uint64_t bytes : evicted) state_->evicted_bytes += bytes;
  return opened;
}

absl::StatusOr<UploadStatus> BlobIndex::QueryUpload(const std::string& owner,
                                                    const UploadName& name) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows has,
      options_.pool->Read(
          "SELECT 1 FROM blob_owners WHERE owner = $1 AND "
          "sha256 = $2 AND size_bytes = $3",
          {owner, name.ref.sha256, Signed(name.ref.size_bytes)}));
  if (!has.empty()) {
    return UploadStatus{.committed_bytes = name.ref.size_bytes,
                        .complete = true};
  }
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Read(
          absl::StrCat("SELECT ", kUploadColumns,
                       " FROM blob_uploads WHERE owner = $1 AND uuid = $2"),
          {owner, name.uuid}));
  if (rows.empty() || UploadOf(rows).ref != name.ref) {
    return absl::NotFoundError(
        absl::StrCat("there is no upload ", FormatUploadName(name)));
  }
  const UploadRow row = UploadOf(rows);
  return UploadStatus{.committed_bytes = row.committed_bytes + row.tail_bytes};
}

absl::Status BlobIndex::TouchUpload(const UploadKey& key) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Query(
          "UPDATE blob_uploads SET last_use_us = $4 WHERE owner = $1 AND uuid "
          "= $2 AND generation = $3",
          {key.owner, key.uuid, key.generation, NowMicros()},
          PgPool::Repeat::kRepeatable));
  return rows.affected() == 1 ? absl::OkStatus() : TakenOver();
}

absl::Status BlobIndex::SetUploadId(const UploadKey& key,
                                    const std::string& s3_upload_id) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Query(
          "UPDATE blob_uploads SET upload_id = $4 WHERE owner = $1 AND uuid = "
          "$2 AND generation = $3",
          {key.owner, key.uuid, key.generation, s3_upload_id},
          PgPool::Repeat::kRepeatable));
  return rows.affected() == 1 ? absl::OkStatus() : TakenOver();
}

absl::Status BlobIndex::CommitPart(const UploadKey& key,
                                   const std::string& object_key,
                                   const CommittedPart& part) {
  return options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
    OVPRESS_ASSIGN_OR_RETURN(
        const PgRows rows,
        pg.Query(
            "UPDATE blob_uploads SET committed_bytes = $4, midstate = $5, "
            "tail_bytes = 0, last_use_us = $6 WHERE owner = $1 AND uuid = "
            "$2 AND generation = $3",
            {key.owner, key.uuid, key.generation, Signed(part.committed_bytes),
             PgValue::Bytes(part.midstate), NowMicros()}));
    if (rows.affected() != 1) return TakenOver();
    return pg
        .Query(
            "INSERT INTO blob_upload_parts (object_key, number, etag, "
            "size_bytes, block_digests) VALUES ($1, $2, $3, $4, $5) ON "
            "CONFLICT (object_key, number) DO UPDATE SET etag = "
            "EXCLUDED.etag, block_digests = EXCLUDED.block_digests",
            {object_key, part.part.number, part.part.etag,
             Signed(part.part.size_bytes),
             PgValue::Bytes(part.part.block_digests)})
        .status();
  });
}

absl::StatusOr<std::vector<UploadPartRow>> BlobIndex::UploadParts(
    const std::string& object_key) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Read("SELECT number, etag, size_bytes, block_digests FROM "
                          "blob_upload_parts WHERE object_key = $1 ORDER BY "
                          "number",
                          {object_key}));
  std::vector<UploadPartRow> parts;
  for (int i = 0; i < rows.size(); ++i) {
    parts.push_back({.number = static_cast<int>(rows.Int(i, 0)),
                     .etag = std::string(rows.Text(i, 1)),
                     .size_bytes = static_cast<uint64_t>(rows.Int(i, 2)),
                     .block_digests = rows.Bytes(i, 3)});
  }
  return parts;
}

absl::Status BlobIndex::LeaveUpload(const UploadKey& key,
                                    const std::string& tail_key,
                                    uint64_t tail_bytes) {
  return options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
    OVPRESS_ASSIGN_OR_RETURN(
        const PgRows rows,
        pg.Query("SELECT tail_key FROM blob_uploads WHERE owner = $1 AND uuid "
                 "= $2 AND generation = $3 FOR UPDATE",
                 {key.owner, key.uuid, key.generation}));
    if (rows.empty()) return TakenOver();
    const std::string before(rows.Text(0, 0));
    if (tail_key.empty()) {
      return pg
          .Query(
              "UPDATE blob_uploads SET alive = false WHERE owner = $1 AND "
              "uuid = $2",
              {key.owner, key.uuid})
          .status();
    }
    if (!before.empty()) {
      OVPRESS_RETURN_IF_ERROR(
          pg.Query("INSERT INTO blob_objects (object_key) VALUES ($1) ON "
                   "CONFLICT DO NOTHING",
                   {before})
              .status());
    }
    return pg
        .Query(
            "UPDATE blob_uploads SET alive = false, tail_key = $3, "
            "tail_bytes = $4 WHERE owner = $1 AND uuid = $2",
            {key.owner, key.uuid, tail_key, Signed(tail_bytes)})
        .status();
  });
}

namespace {

// Ends an upload's row; its tail, if it ever had one, is garbage.
absl::StatusOr<bool> EndUpload(PgSession& pg, const BlobIndex::UploadKey& key,
                               bool object_is_garbage) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      pg.Query(
          absl::StrCat(
              "WITH gone AS (DELETE FROM blob_uploads WHERE owner = $1 AND "
              "uuid = $2 AND generation = $3 RETURNING object_key, upload_id, "
              "tail_key), tails AS (INSERT INTO blob_objects (object_key) "
              "SELECT tail_key FROM gone WHERE tail_key <> '' ON CONFLICT DO "
              "NOTHING)",
              object_is_garbage
                  ? ", objects AS (INSERT INTO blob_objects (object_key, "
                    "upload_id) SELECT object_key, upload_id FROM gone ON "
                    "CONFLICT DO NOTHING)"
                  : "",
              " SELECT 1 FROM gone"),
          {key.owner, key.uuid, key.generation}));
  return rows.size() == 1;
}

}  // namespace

absl::Status BlobIndex::PublishUpload(const UploadKey& key,
                                      const NewBlob& blob) {
  return options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
    OVPRESS_ASSIGN_OR_RETURN(const bool mine, EndUpload(pg, key, false));
    if (!mine) return TakenOver();
    bool is_new = false;
    return PutBlob(pg, blob, &is_new);
  });
}

absl::Status BlobIndex::DropUpload(const UploadKey& key) {
  return options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
    OVPRESS_ASSIGN_OR_RETURN(const bool mine, EndUpload(pg, key, true));
    return mine ? absl::OkStatus() : TakenOver();
  });
}

// --- upkeep ---

absl::StatusOr<BlobIndex::Swept> BlobIndex::Sweep() {
  Swept swept;
  const int64_t now_us = NowMicros();
  OVPRESS_RETURN_IF_ERROR(
      options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(
            const PgRows uploads,
            pg.Query("SELECT owner, uuid, generation FROM blob_uploads WHERE "
                     "last_use_us <= $1 LIMIT 100 FOR UPDATE SKIP LOCKED",
                     {absl::ToUnixMicros(Now() - options_.limits.upload_ttl)}));
        swept.expired_uploads = uploads.size();
        for (int i = 0; i < uploads.size(); ++i) {
          OVPRESS_RETURN_IF_ERROR(
              EndUpload(pg,
                        {.owner = std::string(uploads.Text(i, 0)),
                         .uuid = std::string(uploads.Text(i, 1)),
                         .generation = uploads.Int(i, 2)},
                        true)
                  .status());
        }
        // Those of servers that are gone.
        OVPRESS_RETURN_IF_ERROR(
            pg.Query("DELETE FROM blob_sessions WHERE session IN (SELECT "
                     "session FROM blob_sessions WHERE expires_us < $1 FOR "
                     "UPDATE SKIP LOCKED)",
                     {now_us})
                .status());
        return pg
            .Query(
                "UPDATE blob_objects o SET session = NULL WHERE session IS "
                "NOT NULL AND NOT EXISTS (SELECT 1 FROM blob_sessions s "
                "WHERE s.session = o.session)",
                {})
            .status();
      }));
  // Blobs that somebody released while a server that is gone had them pinned.
  OVPRESS_RETURN_IF_ERROR(
      options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(
            const PgRows rows,
            pg.Query(absl::StrCat(
                         "SELECT sha256, size_bytes FROM blobs b "
                         "WHERE ((true ",
                         kNoOwners, ") OR (external AND last_use_us < $2)) ",
                         not_used_, " LIMIT $1::int FOR UPDATE SKIP LOCKED"),
                     {kSweepBatch, absl::ToUnixMicros(Now() - kExternalAge)}));
        for (int i = 0; i < rows.size(); ++i) {
          OVPRESS_RETURN_IF_ERROR(
              RemoveBlob(pg,
                         {.sha256 = std::string(rows.Text(i, 0)),
                          .size_bytes = static_cast<uint64_t>(rows.Int(i, 1))},
                         absl::StrCat("AND (external OR (true ", kNoOwners,
                                      ")) ", not_used_))
                  .status());
        }
        return absl::OkStatus();
      }));
  if (options_.limits.max_store_bytes != 0) {
    OVPRESS_RETURN_IF_ERROR(
        options_.pool->Transaction([&](PgSession& pg) -> absl::Status {
          swept.evicted_bytes.clear();
          OVPRESS_RETURN_IF_ERROR(LockSpace(pg));
          OVPRESS_ASSIGN_OR_RETURN(uint64_t used, UsedBytes(pg));
          while (used > options_.limits.max_store_bytes &&
                 swept.evicted_bytes.size() < kSweepBatch) {
            OVPRESS_ASSIGN_OR_RETURN(const std::optional<uint64_t> freed,
                                     EvictOne(pg));
            if (!freed.has_value()) break;
            swept.evicted_bytes.push_back(*freed);
            used -= std::min(used, *freed);
          }
          return absl::OkStatus();
        }));
  }
  MutexLock lock(&state_->mutex);
  for (const uint64_t bytes : swept.evicted_bytes) {
    state_->evicted_bytes += bytes;
  }
  return swept;
}

absl::StatusOr<std::vector<Garbage>> BlobIndex::TakeGarbage(int limit) {
  const absl::Time now = Now();
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Query(
          "UPDATE blob_objects SET taken_until_us = $3 WHERE object_key IN "
          "(SELECT object_key FROM blob_objects WHERE session IS NULL AND "
          "taken_until_us <= $2 LIMIT $1::int FOR UPDATE SKIP LOCKED) "
          "RETURNING object_key, upload_id",
          {limit, absl::ToUnixMicros(now),
           absl::ToUnixMicros(now + kGarbageLease)}));
  std::vector<Garbage> garbage;
  for (int i = 0; i < rows.size(); ++i) {
    garbage.push_back({.object_key = std::string(rows.Text(i, 0)),
                       .s3_upload_id = std::string(rows.Text(i, 1))});
  }
  return garbage;
}

absl::Status BlobIndex::GarbageGone(const std::vector<Garbage>& garbage) {
  std::vector<std::string> keys;
  for (const Garbage& one : garbage) keys.push_back(one.object_key);
  return options_.pool
      ->Query(
          "DELETE FROM blob_objects WHERE session IS NULL AND object_key = "
          "ANY($1::text[])",
          {PgValue::Array(keys)}, PgPool::Repeat::kRepeatable)
      .status();
}

absl::StatusOr<std::vector<std::string>> BlobIndex::Unknown(
    const std::vector<std::string>& keys) {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Read(
          "SELECT k FROM unnest($1::text[]) AS k WHERE NOT EXISTS (SELECT 1 "
          "FROM blobs b WHERE b.object_key = k) AND NOT EXISTS (SELECT 1 FROM "
          "blob_objects o WHERE o.object_key = k) AND NOT EXISTS (SELECT 1 "
          "FROM blob_uploads u WHERE k IN (u.object_key, u.tail_key))",
          {PgValue::Array(keys)}));
  std::vector<std::string> unknown;
  for (int i = 0; i < rows.size(); ++i) {
    unknown.emplace_back(rows.Text(i, 0));
  }
  return unknown;
}

absl::StatusOr<bool> BlobIndex::TakeTurn(const std::string& what,
                                         absl::Duration interval) {
  const absl::Time now = Now();
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Query(
          "INSERT INTO blob_meta (name, value) VALUES ($1, $2::bigint::text) "
          "ON CONFLICT (name) DO UPDATE SET value = EXCLUDED.value WHERE "
          "blob_meta.value::bigint <= $3",
          {"turn:" + what, absl::ToUnixMicros(now),
           absl::ToUnixMicros(now - interval)}));
  return rows.affected() == 1;
}

absl::StatusOr<std::string> BlobIndex::ClusterId() {
  OVPRESS_RETURN_IF_ERROR(
      options_.pool
          ->Query("INSERT INTO blob_meta (name, value) VALUES ('cluster_id', "
                  "$1) ON CONFLICT DO NOTHING",
                  {RandomId()}, PgPool::Repeat::kRepeatable)
          .status());
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Read(
          "SELECT value FROM blob_meta WHERE name = 'cluster_id'"));
  return std::string(rows.Text(0, 0));
}

absl::StatusOr<BlobStoreStats> BlobIndex::Stats() {
  OVPRESS_ASSIGN_OR_RETURN(
      const PgRows rows,
      options_.pool->Read(
          "SELECT b.n, b.s, u.n, u.s, r.s, p.s FROM (SELECT count(*) AS n, "
          "coalesce(sum(size_bytes), 0)::bigint AS s FROM blobs WHERE NOT "
          "external) b, (SELECT "
          "count(*) AS n, coalesce(sum(size_bytes), 0)::bigint AS s FROM "
          "blob_uploads) u, (SELECT coalesce(sum(bytes), 0)::bigint AS s FROM "
          "blob_reservations) r, (SELECT coalesce(sum(size_bytes), 0)::bigint "
          "AS s FROM (SELECT DISTINCT sha256, size_bytes FROM blob_pins) d) "
          "p"));
  BlobStoreStats stats;
  const auto number = [&rows](int column) {
    return static_cast<uint64_t>(rows.Int(0, column));
  };
  stats.blob_count = number(0);
  stats.blob_bytes = number(1);
  stats.upload_count = number(2);
  stats.staged_bytes = number(3);
  stats.reserved_bytes = number(4);
  stats.pinned_bytes = number(5);
  stats.limit_bytes = options_.limits.max_store_bytes != 0
                          ? options_.limits.max_store_bytes
                          : std::numeric_limits<int64_t>::max();
  MutexLock lock(&state_->mutex);
  stats.evicted_bytes_total = state_->evicted_bytes;
  return stats;
}

}  // namespace ovpress
