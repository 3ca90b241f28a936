// JobStore in one SQLite file: WAL, synchronous=FULL, versioned schema.
#ifndef OVPRESS_SERVER_JOBS_SQLITE_JOB_STORE_H_
#define OVPRESS_SERVER_JOBS_SQLITE_JOB_STORE_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "server/jobs/clock.h"
#include "server/jobs/job_store.h"

namespace ovpress {

struct SqliteJobStoreOptions {
  std::string path;        // made if missing
  Clock* clock = nullptr;  // nullptr: the system's; outlives the store
  // How long a call waits for another process's transaction.
  absl::Duration busy_timeout = absl::Seconds(10);
};

// Opens, checks (PRAGMA quick_check) and migrates. kDataLoss if the file is
// damaged or no database: nothing is overwritten, the message says what an
// operator can do. kFailedPrecondition if a newer ovpress wrote it.
absl::StatusOr<std::unique_ptr<JobStore>> OpenSqliteJobStore(
    const SqliteJobStoreOptions& options);

// The schema version that this program writes.
inline constexpr int kJobSchemaVersion = 2;

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_SQLITE_JOB_STORE_H_
