// How many jobs wait in a shared queue, for its limits. Counting ten thousand
// rows for each insertion would be slow, and a counter that claims decrease
// would make all servers wait for one row. So the database keeps bounds that
// only insertions raise: at most so many wait, in all and of each owner. Only
// where a bound reaches the limit are the jobs counted, and the bound is what
// was counted from then on.
#ifndef OVPRESS_SERVER_CLUSTER_QUEUE_PLACES_H_
#define OVPRESS_SERVER_CLUSTER_QUEUE_PLACES_H_

#include <string>

#include "absl/status/statusor.h"
#include "server/cluster/pg.h"
#include "server/jobs/job_store.h"

namespace ovpress {

// Needs the table jobs.
PgMigrations QueuePlaceMigrations();

// One more job of `owner` is inserted in this transaction, if there is a place
// for it. Other insertions wait until it ends. REQUIRES: the caller rolls back
// if it is not kNo, or if nothing is inserted.
absl::StatusOr<JobStore::Full> TakeQueuePlace(
    PgSession& session, const std::string& owner,
    const JobStore::QueueLimits& limits);

// Whether there is one at this moment.
absl::StatusOr<JobStore::Full> LookForQueuePlace(
    PgPool* pool, const std::string& owner,
    const JobStore::QueueLimits& limits);

// A common table expression to stand behind "back", whose rows (owner) are jobs
// that wait again.
extern const char kQueuePlacesOfBack[];

// Forgets owners of whom no job waits.
void SweepQueuePlaces(PgPool* pool);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_QUEUE_PLACES_H_
