// Every limit of the service in one place: name, default, reason. What grows
// has a limit here; server/rpc reads the transfer limits, `--help` prints all.
#ifndef OVPRESS_SERVER_JOBS_LIMITS_H_
#define OVPRESS_SERVER_JOBS_LIMITS_H_

#include <cstdint>

#include "absl/time/time.h"
#include "core/engine/compression.h"

namespace ovpress {

// Used by server/rpc.
struct TransferLimits {
  // One gRPC message. gRPC's own default: it caps the memory of a stream.
  uint64_t max_message_bytes = 4ull << 20;
  // Bytes of data that we send in one message. Above 64 KiB the network is the
  // limit, not the chunk; 1 MiB keeps the overhead per message unmeasurable.
  uint64_t chunk_bytes = 1ull << 20;
  // Bytes of data accepted in one message: twice ours, for other clients.
  uint64_t max_chunk_bytes = 2ull << 20;
  // Uploads, downloads and CompressStream calls at a time. Each may cost
  // 64 MiB of buffers inside gRPC, so 16 is one GiB.
  int max_transfers = 16;
  int max_transfers_per_owner = 8;
  // A stream that moved no byte for so long is ended (there is no absolute
  // deadline on transfers: a slow link is not an error).
  absl::Duration idle_timeout = absl::Minutes(2);
  // .xml bytes inside an EstimateCompression request; larger ones are uploaded.
  uint64_t max_inline_xml_bytes = 3ull << 20;
  // Entries of one FindMissingBlobs: 1000 names are 100 KiB.
  int max_find_missing_blobs = 1000;
  // Entries of WeightPlan in one response, which must stay under 4 MiB.
  int max_plan_entries = 10000;
  // Watchers of one owner over all jobs: each is an open stream.
  int max_watchers_per_owner = 256;
};

// Used by BlobStore.
struct StoreLimits {
  // One blob. Above the largest .bin in use (Llama 405B in f16 is 810 GB and
  // comes split; single .bin files end near 200 GB).
  uint64_t max_blob_bytes = 256ull << 30;
  // All blobs, staged uploads and reservations. 0: what the file system has.
  uint64_t max_store_bytes = 0;
  // Left free on the file system whatever max_store_bytes says: the job
  // database and logs live there too.
  uint64_t min_free_bytes = 1ull << 30;
  // Owned blobs and staged uploads of one owner. 0: no limit.
  uint64_t max_owner_bytes = 0;
  // Staged uploads of one owner, and of all: each is a directory and a record.
  int max_owner_uploads = 64;
  int max_uploads = 1024;
  // An upload without any byte for so long is forgotten and its space freed.
  absl::Duration upload_ttl = absl::Hours(24);
  // A blob used within this time is not evicted: covers the gap between an
  // upload (or FindMissingBlobs) and the CompressModel that names it.
  absl::Duration min_blob_age = absl::Minutes(30);
  // Blobs that failed their digest are kept so long, and so many bytes of them,
  // for whoever wants to know what the disk did; one that is larger goes at
  // once. They count as part of the store and make room before anything else.
  absl::Duration damaged_ttl = absl::Hours(24 * 7);
  uint64_t max_damaged_bytes = 4ull << 30;
  // A writer that sent nothing for so long gives way to a new one on the same
  // upload (half-open connections); before that the new one gets kAborted.
  absl::Duration writer_takeover = absl::Seconds(10);
  // Appended bytes between two fdatasync calls: what a crash can cost of an
  // upload, against the price of syncing.
  uint64_t sync_interval_bytes = 64ull << 20;
};

// Used by JobManager.
struct JobLimits {
  // The .xml is parsed in memory at several times its size.
  uint64_t max_xml_bytes = 256ull << 20;
  // Jobs that wait. A job record is about 2 KiB; the limit bounds the time
  // that a job can wait rather than memory.
  int max_queued = 1000;
  int max_queued_per_owner = 200;
  // Jobs at a time. More than a few only divide the same cores and memory.
  int max_running = 4;
  // 0: as max_running.
  int max_running_per_owner = 0;
  // CompressStream calls at a time; they share memory and threads with jobs.
  int max_streams = 8;
  // Threads that compute, for all jobs together. 0: what the process may use.
  int threads = 0;
  // Working memory of all running jobs and streams together.
  uint64_t total_memory_bytes = 1ull << 30;
  uint64_t default_job_memory_bytes = kDefaultMemoryBudgetBytes;
  uint64_t min_job_memory_bytes = kMinMemoryBudgetBytes;
  // Jobs with a .bin of at least so many bytes are shared out among the servers
  // of a queue, in parts of an eighth of it or, for very large models, the
  // 256th part of the model. Below, one server is done before the others have
  // begun, and reading the output again for its digest costs more than it
  // gains. 0: never.
  uint64_t share_jobs_above_bytes = 4ull << 30;
  // Longest run of one attempt, also when the client asks for more.
  absl::Duration max_run_time = absl::Hours(24);
  // How long finished jobs and their results are kept.
  absl::Duration default_result_ttl = absl::Hours(24 * 7);
  absl::Duration max_result_ttl = absl::Hours(24 * 30);
  // Waiting jobs gain one level of priority with each of these.
  absl::Duration aging_step = absl::Minutes(1);
  int min_priority = -100;
  int max_priority = 100;
  // The first job in line that lacks memory lets smaller ones pass for so
  // long; then memory is kept for it.
  absl::Duration overtaking_limit = absl::Seconds(30);
  // A job whose run ended with the process (crash, OOM kill) this often fails
  // for good: it may be the reason.
  int max_attempts = 5;
  int max_labels = 16;
  int max_label_key_bytes = 63;
  int max_label_value_bytes = 255;
  int max_request_id_bytes = 64;
  // Serialized options, codebook included.
  uint64_t max_options_bytes = 4ull << 20;
  int default_page_size = 50;
  int max_page_size = 1000;
  // Between two updates that a watcher gets: two a second.
  absl::Duration watch_interval = absl::Milliseconds(500);
  // A server that did not renew for so long has lost its jobs to others.
  absl::Duration lease = absl::Seconds(30);
  // Retry hint of a rejected request when nothing better is known.
  absl::Duration default_retry_after = absl::Seconds(10);
  // How often deadlines, leases, expiry and progress are looked at. Infinite:
  // never by itself, the owner calls Tick() (tests).
  absl::Duration tick_interval = absl::Milliseconds(250);
  // Between two sweeps of expired jobs, uploads and blobs.
  absl::Duration sweep_interval = absl::Seconds(30);
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_LIMITS_H_
