// PartStore on PostgreSQL: the tables job_parts and job_rounds beside those of
// the jobs (postgres_job_store.cc has the schema).
#ifndef OVPRESS_SERVER_CLUSTER_POSTGRES_PART_STORE_H_
#define OVPRESS_SERVER_CLUSTER_POSTGRES_PART_STORE_H_

#include <functional>
#include <memory>

#include "absl/status/status.h"
#include "absl/time/time.h"
#include "server/cluster/pg.h"
#include "server/jobs/part_store.h"

namespace ovpress {

// Condition of SQL: nobody works on part p of the running job `jobs`.
extern const char kPgPartIsOpen[];

// `tell` lets the other servers know that there may be something to do; quick.
std::unique_ptr<PartStore> MakePostgresPartStore(PgPool* pool,
                                                 std::function<void()> tell);

// For both stores: when to try again, if the database cannot be reached.
absl::Status PgHinted(absl::Status status);
inline PgValue PgMicros(absl::Duration span) {
  return PgValue(absl::ToInt64Microseconds(span));
}

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_POSTGRES_PART_STORE_H_
