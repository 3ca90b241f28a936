// BlobStore on a directory of a local file system. The directory is the index:
//
//   blobs/ab/{sha256}-{size}              content; mtime = last use
//   owners/{sha256 of owner}/{sha256}-{size}   empty marker: this owner has it
//   uploads/{sha256 of owner}-{uuid}/data      staged bytes
//   uploads/.../record                         name, owner, durable length
//   tmp/      outputs and scratch; emptied at start
//   corrupt/  blobs that failed their digest; mtime = when that was seen
//   LOCK      one process at a time
//
// A blob becomes visible by fsync(data), a second name under blobs/,
// fsync(directory), then the owner's marker, fsync(directory); then the name
// under uploads/ goes. A crash between any two leaves an upload to resume from
// its last byte (and perhaps a blob without owner, which the next start
// sweeps), or a blob and staged bytes that nobody needs (likewise).
#ifndef OVPRESS_SERVER_JOBS_LOCAL_BLOB_STORE_H_
#define OVPRESS_SERVER_JOBS_LOCAL_BLOB_STORE_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/clock.h"
#include "server/jobs/limits.h"
#include "server/jobs/observer.h"
#include "server/jobs/quotas.h"

namespace ovpress {

struct LocalBlobStoreOptions {
  std::string directory;  // made if missing, mode 0700
  StoreLimits limits;
  Clock* clock = nullptr;        // REQUIRED; outlives the store
  Observer* observer = nullptr;  // may be null; outlives the store
  // Owners whose limits differ; may be null; outlives the store.
  const QuotaSource* quotas = nullptr;
  // Called with the name of each step that changes the disk ("blob_synced",
  // "blob_renamed", "marker_made", ...); an error makes the call stop there as
  // if the process had died (nothing is cleaned up). For crash tests.
  std::function<absl::Status(absl::string_view step)> crash_point;
};

// What start-up found; for the log.
struct RecoveryReport {
  uint64_t blobs = 0;
  uint64_t blob_bytes = 0;
  uint64_t uploads_resumable = 0;
  uint64_t orphans_removed = 0;  // without owner, leftover temporary files
  uint64_t corrupt_blobs = 0;    // size differs from the name: set aside
};

// Reads the directory and recovers. kFailedPrecondition if another process
// holds it, kPermissionDenied, kResourceExhausted...
absl::StatusOr<std::unique_ptr<BlobStore>> OpenLocalBlobStore(
    LocalBlobStoreOptions options, RecoveryReport* report = nullptr);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_LOCAL_BLOB_STORE_H_
