// JobStore in PostgreSQL: one queue for any number of servers. Leases and ends
// go by the database's clock; each method is one statement or one transaction.
#ifndef OVPRESS_SERVER_CLUSTER_POSTGRES_JOB_STORE_H_
#define OVPRESS_SERVER_CLUSTER_POSTGRES_JOB_STORE_H_

#include <memory>

#include "absl/status/statusor.h"
#include "server/cluster/pg.h"
#include "server/jobs/job_store.h"

namespace ovpress {

// The tables: `jobs`, and `job_blobs(seq, owner, sha256, size_bytes)` with the
// blobs that unfinished and succeeded jobs hold, changed in the same
// transaction as the job. An index of blobs in the same database must not let
// go of a blob that stands there. (Between a look and the INSERT of a job, and
// while a result is made, the servers' own pins hold.)
PgMigrations JobMigrations();

// Migrates, then serves; listens over a connection of its own. The errors of
// PgMigrate. Every kUnavailable has a retry hint. `pool` outlives the store.
absl::StatusOr<std::unique_ptr<JobStore>> OpenPostgresJobStore(PgPool* pool);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_POSTGRES_JOB_STORE_H_
