// What a job is: its request, its states, its end. Plain values.
#ifndef OVPRESS_SERVER_JOBS_JOB_H_
#define OVPRESS_SERVER_JOBS_JOB_H_

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/digest.h"

namespace ovpress {

// QUEUED -> RUNNING -> SUCCEEDED | FAILED | CANCELLED; RUNNING -> QUEUED when
// the server that ran it stopped; QUEUED -> FAILED | CANCELLED, and SUCCEEDED
// from the result cache. The numbers are stored: never reuse one.
enum class JobState : uint8_t {
  kQueued = 1,
  kRunning = 2,
  kSucceeded = 3,
  kFailed = 4,
  kCancelled = 5,
};
absl::string_view JobStateName(JobState state);  // "QUEUED"
std::optional<JobState> ParseJobState(absl::string_view name);
inline bool IsFinal(JobState state) { return state >= JobState::kSucceeded; }

// What the client asked for. All of it but request_id, priority, labels, ttl,
// max_run_time, ignore_result_cache and the addresses is covered by the cache
// key.
struct JobSpec {
  std::string owner;       // identity; "" is the anonymous one
  std::string request_id;  // "" : not idempotent
  BlobRef xml;
  BlobRef bin;
  // CompressionOptions as JSON, by OptionsToJson (options_json.h): what the
  // runner reads back, also after a restart.
  std::string options_json;
  // CanonicalOptions(): equal strings mean equal results.
  std::string canonical_options;
  // For metrics and lists: "int4_sym".
  std::string mode;
  uint64_t memory_budget_bytes = 0;  // 0: the server's default
  bool measure_error = false;
  int priority = 0;
  std::map<std::string, std::string> labels;
  absl::Duration ttl = absl::ZeroDuration();           // zero: default
  absl::Duration max_run_time = absl::ZeroDuration();  // zero: the limit
  bool ignore_result_cache = false;
  // Where the result goes beside the store, as BlobStore::Export takes it; both
  // or none.
  std::string output_xml_address;
  std::string output_bin_address;

  friend bool operator==(const JobSpec&, const JobSpec&) = default;
};

struct JobResult {
  BlobRef xml;
  BlobRef bin;
  BlobRef report;
  uint64_t bin_bytes_before = 0;
  uint64_t bin_bytes_after = 0;
  uint64_t weight_elements = 0;
  double bits_per_weight = 0;
  double primary_share = 0;
  bool cache_hit = false;
  std::string engine_version;
  std::vector<std::string> warnings;

  friend bool operator==(const JobResult&, const JobResult&) = default;
};

// From the runner. Stored now and then for watchers on other servers.
struct JobProgress {
  std::string phase;  // PhaseName(): "planning", "scoring" ...
  // How long the phase had run when this was reported. A span, not a time:
  // servers' clocks differ.
  absl::Duration phase_elapsed = absl::ZeroDuration();
  uint64_t bytes_done = 0;
  uint64_t bytes_total = 0;
  uint64_t weights_done = 0;
  uint64_t weights_total = 0;
  std::vector<std::string> warnings;

  friend bool operator==(const JobProgress&, const JobProgress&) = default;
};

// Which server holds a running job. The token grows with each claim; whoever
// comes with an older one has lost the job and can publish nothing.
struct Lease {
  std::string server_id;
  absl::Time expires = absl::InfinitePast();
  int64_t fencing_token = 0;

  friend bool operator==(const Lease&, const Lease&) = default;
};

struct JobRecord {
  std::string id;  // 32 hexadecimal digits, random
  JobSpec spec;
  std::string cache_key;  // SHA-256, hexadecimal
  JobState state = JobState::kQueued;
  bool cancel_requested = false;
  int attempt = 0;  // starts so far, without those that were handed back
  absl::Time created = absl::InfinitePast();
  absl::Time started = absl::InfinitePast();    // InfinitePast: not yet
  absl::Time finished = absl::InfinitePast();   // InfinitePast: not yet
  absl::Time expires = absl::InfiniteFuture();  // set when final
  // From the estimate made at submission; admission uses them.
  uint64_t memory_bytes = 0;
  uint64_t disk_bytes = 0;  // reserved for outputs
  absl::Status error;       // kFailed, kCancelled
  JobResult result;         // kSucceeded
  Lease lease;
  JobProgress progress;  // kRunning: as of the last Renew that told it
};

// What a client sees.
struct JobView {
  JobRecord record;
  JobProgress progress;
  int queue_position = 0;             // 1: next; 0: not queued
  std::optional<absl::Duration> eta;  // running and far enough to tell
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_JOB_H_
