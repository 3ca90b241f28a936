#include "server/rpc/metrics.h"

#include "absl/strings/ascii.h"
#include "core/base/heap.h"
#include "core/engine/compression.h"
#include "prometheus/counter.h"
#include "prometheus/gauge.h"
#include "prometheus/histogram.h"
#include "prometheus/registry.h"
#include "prometheus/text_serializer.h"
#include "server/rpc/log.h"
#include "spdlog/spdlog.h"

namespace ovpress {
namespace {

using prometheus::Counter;
using prometheus::Family;
using prometheus::Gauge;
using prometheus::Histogram;

const Histogram::BucketBoundaries kSeconds = {
    0.005, 0.02, 0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3600, 14400};

class MetricsImpl final : public Metrics {
 public:
  MetricsImpl() {
    Family<Gauge>& build = Gauges("ovpress_build_info", "What runs here");
    build.Add({{"version", std::string(EngineVersion())}}).Set(1);
  }

  void OnAdmissionRejected(absl::string_view reason) override {
    rejected_.Add({{"reason", std::string(reason)}}).Increment();
  }
  void OnJobStarted(const JobRecord&, absl::Duration queued) override {
    queue_.Observe(absl::ToDoubleSeconds(queued));
  }
  void OnPhaseDone(const JobRecord&, absl::string_view phase,
                   absl::Duration took) override {
    phases_.Add({{"phase", std::string(phase)}}, kSeconds)
        .Observe(absl::ToDoubleSeconds(took));
  }
  void OnJobFinished(const JobRecord& job, absl::Duration running) override {
    jobs_
        .Add({{"outcome", absl::AsciiStrToLower(JobStateName(job.state))},
              {"mode", job.spec.mode}})
        .Increment();
    phases_.Add({{"phase", "total"}}, kSeconds)
        .Observe(absl::ToDoubleSeconds(running));
    if (job.state == JobState::kSucceeded && !job.result.cache_hit) {
      weights_in_.Increment(static_cast<double>(job.result.bin_bytes_before));
      weights_out_.Increment(static_cast<double>(job.result.bin_bytes_after));
    }
  }
  void OnJobRequeued(const JobRecord&) override { replayed_.Increment(); }
  void OnPart(absl::string_view outcome, absl::Duration took) override {
    parts_.Add({{"outcome", std::string(outcome)}}, kSeconds)
        .Observe(absl::ToDoubleSeconds(took));
  }
  void OnResultCache(bool hit) override {
    (hit ? cache_hits_ : cache_misses_).Increment();
  }
  void OnUploadResumed() override { resumed_.Increment(); }
  void OnUploadExpired() override { expired_.Increment(); }
  void OnBlobEvicted(uint64_t bytes) override {
    evicted_.Increment(static_cast<double>(bytes));
  }
  void OnBlobCorrupt(const BlobRef& ref) override {
    corrupt_.Increment();
    spdlog::error("blob {} does not have its digest any more; set aside",
                  ref.sha256);
  }
  void OnLog(Severity severity, absl::string_view job_id,
             absl::string_view message) override {
    const auto level = severity == Severity::kError     ? spdlog::level::err
                       : severity == Severity::kWarning ? spdlog::level::warn
                                                        : spdlog::level::info;
    LogJob(level, job_id, message);
  }

  void OnRpc(absl::string_view method, absl::string_view code,
             absl::Duration took) override {
    handled_.Add({{"method", std::string(method)}, {"code", std::string(code)}})
        .Increment();
    latency_.Add({{"method", std::string(method)}}, kSeconds)
        .Observe(absl::ToDoubleSeconds(took));
  }
  void OnTransferBytes(bool upload, uint64_t bytes) override {
    (upload ? bytes_up_ : bytes_down_).Increment(static_cast<double>(bytes));
  }
  void OnTransfersActive(int change) override { transfers_.Increment(change); }
  void OnReload(bool ok) override {
    reloads_.Add({{"outcome", ok ? "ok" : "failed"}}).Increment();
  }
  void SetCertificateEnd(absl::Time end) override {
    certificate_end_.Add({}).Set(static_cast<double>(absl::ToUnixSeconds(end)));
  }

  std::string Page(JobManager* jobs, BlobStore* blobs) override {
    const JobManagerStats job = jobs->Stats();
    queued_.Set(job.queued);
    running_.Set(job.running);
    helping_.Set(job.helping);
    budget_.Set(static_cast<double>(job.total_memory_bytes));
    reserved_.Set(static_cast<double>(job.reserved_memory_bytes));
    draining_.Set(job.draining ? 1 : 0);
    const BlobStoreStats store = blobs->Stats();
    store_.Set(static_cast<double>(store.blob_bytes + store.staged_bytes +
                                   store.reserved_bytes + store.damaged_bytes));
    damaged_.Set(static_cast<double>(store.damaged_bytes));
    store_limit_.Set(static_cast<double>(store.limit_bytes));
    resident_.Set(static_cast<double>(ResidentBytes()));
    return prometheus::TextSerializer().Serialize(registry_.Collect());
  }

 private:
  Family<Counter>& Counters(const std::string& name, const std::string& help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(registry_);
  }
  Family<Gauge>& Gauges(const std::string& name, const std::string& help) {
    return prometheus::BuildGauge().Name(name).Help(help).Register(registry_);
  }
  Family<Histogram>& Histograms(const std::string& name,
                                const std::string& help) {
    return prometheus::BuildHistogram().Name(name).Help(help).Register(
        registry_);
  }

  prometheus::Registry registry_;
  Family<Counter>& jobs_ =
      Counters("ovpress_jobs_total", "Finished jobs by outcome and mode");
  Family<Counter>& rejected_ = Counters("ovpress_admission_rejected_total",
                                        "Requests refused, by limit");
  Histogram& queue_ =
      Histograms("ovpress_job_queue_seconds", "From submission to start")
          .Add({}, kSeconds);
  Family<Histogram>& phases_ = Histograms(
      "ovpress_job_duration_seconds", "Time of jobs by phase; total: the run");
  Family<Histogram>& parts_ = Histograms(
      "ovpress_job_part_duration_seconds",
      "Time of parts of shared jobs on this server, by how they ended");
  Family<Counter>& weights_ = Counters("ovpress_weight_bytes_total",
                                       "Bytes of weights that jobs processed");
  Counter& weights_in_ = weights_.Add({{"direction", "in"}});
  Counter& weights_out_ = weights_.Add({{"direction", "out"}});
  Family<Counter>& bytes_ = Counters("ovpress_transfer_bytes_total",
                                     "Payload bytes over the network");
  Counter& bytes_up_ = bytes_.Add({{"direction", "upload"}});
  Counter& bytes_down_ = bytes_.Add({{"direction", "download"}});
  Gauge& transfers_ =
      Gauges("ovpress_transfers_active", "Uploads, downloads and streams now")
          .Add({});
  Counter& resumed_ =
      Counters("ovpress_uploads_resumed_total", "Uploads that went on").Add({});
  Counter& expired_ =
      Counters("ovpress_uploads_expired_total", "Uploads forgotten").Add({});
  Counter& evicted_ =
      Counters("ovpress_store_evicted_bytes_total", "Bytes evicted").Add({});
  Counter& corrupt_ =
      Counters("ovpress_store_corrupt_total", "Blobs that lost their digest")
          .Add({});
  Counter& cache_hits_ = Counters("ovpress_result_cache_hits_total",
                                  "Jobs answered from an earlier result")
                             .Add({});
  Counter& cache_misses_ =
      Counters("ovpress_result_cache_misses_total", "Jobs that had to run")
          .Add({});
  Counter& replayed_ = Counters("ovpress_journal_replayed_total",
                                "Jobs queued again after a stop in the middle")
                           .Add({});
  Family<Counter>& handled_ =
      Counters("ovpress_rpc_handled_total", "Finished calls");
  Family<Histogram>& latency_ =
      Histograms("ovpress_rpc_seconds", "Duration of calls");
  Gauge& queued_ = Gauges("ovpress_jobs_queued", "Jobs that wait").Add({});
  Gauge& running_ = Gauges("ovpress_jobs_running", "Jobs that run").Add({});
  Gauge& helping_ = Gauges("ovpress_parts_helping",
                           "Parts of other servers' jobs that run here")
                        .Add({});
  Gauge& budget_ = Gauges("ovpress_memory_budget_bytes",
                          "Working memory for all jobs together")
                       .Add({});
  Gauge& reserved_ =
      Gauges("ovpress_memory_reserved_bytes", "Of it, reserved by jobs now")
          .Add({});
  Gauge& draining_ =
      Gauges("ovpress_draining", "1 while no new work is taken").Add({});
  Gauge& store_ =
      Gauges("ovpress_store_bytes",
             "Blobs, staged uploads, reservations and damaged blobs")
          .Add({});
  Gauge& damaged_ =
      Gauges("ovpress_store_damaged_bytes",
             "Of it, blobs that lost their digest and were set aside")
          .Add({});
  Gauge& store_limit_ =
      Gauges("ovpress_store_limit_bytes", "What they may take")
          .Add({{"type", "reject"}});
  Family<Counter>& reloads_ =
      Counters("ovpress_access_reloads_total",
               "Times that certificates, tokens, keys and quotas were read "
               "again");
  Family<Gauge>& certificate_end_ =
      Gauges("ovpress_tls_certificate_not_after_seconds",
             "When the server's certificate ends, in seconds since 1970");
  Gauge& resident_ =
      Gauges("process_resident_memory_bytes", "Resident memory").Add({});
};

}  // namespace

std::unique_ptr<Metrics> Metrics::Create() {
  return std::make_unique<MetricsImpl>();
}

}  // namespace ovpress
