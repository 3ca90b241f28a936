// ovpress-server: flags, wiring, signals. The work is in server/jobs and
// server/rpc.
#include <signal.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <string>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "core/base/heap.h"
#include "core/base/status_macros.h"
#include "core/usage/usage.h"
#include "grpcpp/ext/proto_server_reflection_plugin.h"
#include "grpcpp/grpcpp.h"
#include "grpcpp/health_check_service_interface.h"
#include "grpcpp/resource_quota.h"
#include "proto/keepalive.h"
#include "server/access_flags.h"
#include "server/blob_store_flags.h"
#include "server/cluster_flags.h"
#include "server/health_command.h"
#include "server/jobs/compression_runner.h"
#include "server/jobs/fair_executor.h"
#include "server/jobs/job_manager.h"
#include "server/rpc/http_server.h"
#include "server/rpc/log.h"
#include "server/rpc/metrics.h"
#include "server/rpc/reflection.h"
#include "server/rpc/services.h"
#include "server/size_flag.h"
#include "server/token_command.h"
#include "server/whole_file.h"
#include "spdlog/spdlog.h"

namespace ovpress {
namespace {

constexpr char kServiceName[] = "ovpress.v1.WeightCompression";

struct ServerFlags {
  std::string listen = "127.0.0.1:8470";
  std::string metrics = "127.0.0.1:8471";
  std::string data_dir = "ovpress-data";
  std::string log_format = "text";
  std::string port_file;
  double drain_seconds = 30;
  double drain_delay_seconds = 0;
  TransferLimits transfer;
  StoreLimits store;
  JobLimits jobs;
  uint64_t network_memory_bytes = 256ull << 20;
  AccessFlags access;
  BlobStoreFlags blobs;
  // 0: connections may stay for ever.
  double max_connection_age_seconds = 0;
  double max_connection_age_grace_seconds = 3600;
  ClusterFlags cluster;
};

// A duration flag, in seconds.
void AddSeconds(CLI::App* app, const std::string& name, absl::Duration* value,
                const std::string& help) {
  app->add_option_function<double>(
         name, [value](double seconds) { *value = absl::Seconds(seconds); },
         help + " (seconds)")
      ->check(CLI::PositiveNumber)
      ->default_str(absl::StrCat(absl::ToDoubleSeconds(*value)))
      ->group("Limits");
}

template <typename T>
void AddLimit(CLI::App* app, const std::string& name, T* value,
              const std::string& help) {
  app->add_option(name, *value, help)->capture_default_str()->group("Limits");
}

void AddBytes(CLI::App* app, const std::string& name, uint64_t* value,
              const std::string& help) {
  AddSizeFlag(app, name, value, help)->group("Limits");
}

void RegisterFlags(CLI::App* app, ServerFlags* flags) {
  app->add_option("--listen", flags->listen,
                  "Where gRPC listens; beyond loopback it wants TLS and "
                  "authentication (see Access); port 0: any free one")
      ->type_name("ADDR:PORT")
      ->capture_default_str();
  app->add_option("--metrics", flags->metrics,
                  "Where /metrics, /healthz and /readyz are served by HTTP")
      ->type_name("ADDR:PORT")
      ->capture_default_str();
  app->add_option("--data-dir", flags->data_dir,
                  "Blobs, uploads and the job database; one server at a time")
      ->type_name("DIR")
      ->capture_default_str();
  app->add_option("--log-format", flags->log_format, "text or json")
      ->check(CLI::IsMember({"text", "json"}))
      ->capture_default_str();
  app->add_option("--port-file", flags->port_file,
                  "Write the two ports here once all is ready")
      ->type_name("FILE");
  app->add_option("--drain-seconds", flags->drain_seconds,
                  "After SIGTERM: how long running jobs may go on; then they "
                  "are handed back and run again after the next start")
      ->capture_default_str();
  app->add_option("--drain-delay-seconds", flags->drain_delay_seconds,
                  "After SIGTERM: how long calls are still taken while health "
                  "says NOT_SERVING, for load balancers to notice")
      ->capture_default_str();
  JobLimits& jobs = flags->jobs;
  StoreLimits& store = flags->store;
  TransferLimits& transfer = flags->transfer;
  AddLimit(app, "--threads", &jobs.threads,
           "Threads that compute, for all jobs together; 0: all");
  AddLimit(app, "--max-running", &jobs.max_running, "Jobs at a time");
  AddLimit(app, "--max-running-per-owner", &jobs.max_running_per_owner,
           "Jobs of one client at a time; 0: no limit");
  AddLimit(app, "--max-queued", &jobs.max_queued, "Jobs that wait");
  AddLimit(app, "--max-queued-per-owner", &jobs.max_queued_per_owner,
           "Jobs of one client that wait");
  AddBytes(app, "--share-jobs-above", &jobs.share_jobs_above_bytes,
           "On a shared queue and an object store: jobs with a .bin of at "
           "least this size are worked on by several servers; 0: never");
  AddLimit(app, "--max-streams", &jobs.max_streams,
           "CompressStream calls at a time");
  AddBytes(app, "--total-memory-bytes", &jobs.total_memory_bytes,
           "Working memory of all running jobs together");
  AddBytes(app, "--default-job-memory-bytes", &jobs.default_job_memory_bytes,
           "Working memory of a job that does not say");
  AddBytes(app, "--network-memory-bytes", &flags->network_memory_bytes,
           "Buffers that gRPC may hold (soft)");
  AddBytes(app, "--max-xml-bytes", &jobs.max_xml_bytes, "Largest .xml");
  AddBytes(app, "--max-blob-bytes", &store.max_blob_bytes, "Largest blob");
  AddBytes(app, "--max-store-bytes", &store.max_store_bytes,
           "Blobs, uploads and results together; 0: what the disk has");
  AddBytes(app, "--max-owner-bytes", &store.max_owner_bytes,
           "The same for one client; 0: no limit");
  AddBytes(app, "--min-free-bytes", &store.min_free_bytes,
           "Disk that stays free whatever happens");
  AddLimit(app, "--max-uploads", &store.max_uploads, "Unfinished uploads");
  AddLimit(app, "--max-owner-uploads", &store.max_owner_uploads,
           "Unfinished uploads of one client");
  AddLimit(app, "--max-transfers", &transfer.max_transfers,
           "Uploads, downloads and streams at a time");
  AddLimit(app, "--max-transfers-per-owner", &transfer.max_transfers_per_owner,
           "The same for one client");
  AddSeconds(app, "--idle-timeout", &transfer.idle_timeout,
             "A transfer that moved no byte for so long is ended");
  app->add_option("--max-connection-age", flags->max_connection_age_seconds,
                  "Ask clients to connect anew after so long, so that load "
                  "balancers can spread them; 0: never (seconds)")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str()
      ->group("Limits");
  app->add_option("--max-connection-age-grace",
                  flags->max_connection_age_grace_seconds,
                  "How long calls may go on after that; longer than the "
                  "longest transfer, or it has to resume (seconds)")
      ->check(CLI::Range(0.0, 1e6))
      ->capture_default_str()
      ->group("Limits");
  AddSeconds(app, "--upload-ttl", &store.upload_ttl,
             "An upload without any byte for so long is forgotten");
  AddSeconds(app, "--damaged-ttl", &store.damaged_ttl,
             "How long blobs that failed their digest are kept");
  AddBytes(app, "--max-damaged-bytes", &store.max_damaged_bytes,
           "Most that is kept of them");
  AddSeconds(app, "--min-blob-age", &store.min_blob_age,
             "A blob used within this time is not evicted");
  AddSeconds(app, "--max-run-time", &jobs.max_run_time, "Longest run of a job");
  AddSeconds(app, "--default-result-ttl", &jobs.default_result_ttl,
             "How long finished jobs are kept");
  AddSeconds(app, "--max-result-ttl", &jobs.max_result_ttl,
             "Longest that a client may ask for");
  AddSeconds(app, "--sweep-interval", &jobs.sweep_interval,
             "Between two clean-ups");
  AddSeconds(app, "--lease", &jobs.lease,
             "On a shared queue: a server that was not heard of for so long "
             "has lost its jobs to others");
  flags->access.Register(app);
  flags->cluster.Register(app);
  flags->blobs.Register(app);
}

// For the build, hence hidden: the man page and the completion scripts, made
// from the flags above.
void RegisterUsageFlags(CLI::App* app) {
  const auto print = [app](const std::string& what) {
    if (what == "man") {
      std::cout << ManPage(
          *app,
          {.section = 8,
           .version = absl::StrCat("ovpress ", EngineVersion()),
           .summary = "compress OpenVINO IR models for others, by gRPC",
           .sections = {
               {"SIGNALS",
                {"SIGTERM, SIGINT: drain and exit with 0; jobs that did not "
                 "end run again after the next start. SIGHUP: read "
                 "certificates, tokens, keys and quotas again."}},
               {"FILES",
                {"/etc/ovpress/server.conf: what the packaged service reads "
                 "by --config.",
                 "/var/lib/ovpress: its --data-dir."}},
               {"SEE ALSO", {"ovpress(1)"}}}});
    } else {
      std::cout << CompletionScript(*app,
                                    what == "bash"  ? Shell::kBash
                                    : what == "zsh" ? Shell::kZsh
                                                    : Shell::kFish,
                                    {});
    }
    throw CLI::Success();
  };
  app->add_option_function<std::string>("--print", print,
                                        "man, bash, zsh or fish")
      ->check(CLI::IsMember({"man", "bash", "zsh", "fish"}))
      ->configurable(false)
      ->group("");
}

// Until SIGTERM or SIGINT, which it returns; meanwhile reads the files of
// `access` again at SIGHUP and when they change, and keeps the heap small.
int WaitForStop(const sigset_t& signals, ServerAccess* access,
                double reload_seconds) {
  constexpr double kUpkeepSeconds = 5;
  double until_reload = reload_seconds;
  while (true) {
    const double wait = reload_seconds > 0
                            ? std::min(until_reload, kUpkeepSeconds)
                            : kUpkeepSeconds;
    const timespec timeout = absl::ToTimespec(absl::Seconds(wait));
    const int caught = sigtimedwait(&signals, nullptr, &timeout);
    if (caught == SIGTERM || caught == SIGINT) return caught;
    if (caught == SIGHUP) {
      access->Reload();
      continue;
    }
    GiveBackIdleHeap();
    until_reload -= wait;
    if (reload_seconds > 0 && until_reload <= 0) {
      access->ReloadIfChanged();
      until_reload = reload_seconds;
    }
  }
}

absl::Status Serve(const ServerFlags& flags) {
  // Before any thread is made, so that all of them inherit the mask.
  sigset_t signals;
  sigemptyset(&signals);
  for (const int signal : {SIGTERM, SIGINT, SIGHUP}) {
    sigaddset(&signals, signal);
  }
  pthread_sigmask(SIG_BLOCK, &signals, nullptr);
  signal(SIGPIPE, SIG_IGN);

  SystemClock clock;
  const std::unique_ptr<Metrics> metrics = Metrics::Create();
  OVPRESS_ASSIGN_OR_RETURN(
      const std::unique_ptr<ServerAccess> access,
      ServerAccess::Open(flags.access, flags.listen, &clock, metrics.get()));
  spdlog::info("access: {}", access->Summary());
  std::error_code error;
  std::filesystem::create_directories(flags.data_dir, error);
  OVPRESS_ASSIGN_OR_RETURN(const Queue queue,
                           OpenQueue(flags.cluster, flags.data_dir, &clock));
  spdlog::info("queue {}", queue.description);
  OVPRESS_ASSIGN_OR_RETURN(
      const Blobs blob_store,
      OpenBlobs(flags.blobs, {.data_dir = flags.data_dir,
                              .limits = flags.store,
                              .pool = queue.pool.get(),
                              .clock = &clock,
                              .observer = metrics.get(),
                              .quotas = access->control()}));
  BlobStore* const blobs = blob_store.store.get();
  spdlog::info("store {}", blob_store.description);
  if (!blob_store.warning.empty()) spdlog::warn("{}", blob_store.warning);
  const std::unique_ptr<FairExecutor> executor =
      FairExecutor::Create({.threads = flags.jobs.threads});
  const std::unique_ptr<JobRunner> runner = MakeCompressionRunner(flags.jobs);
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<JobManager> manager,
                           JobManager::Create({.limits = flags.jobs,
                                               .jobs = queue.store.get(),
                                               .blobs = blobs,
                                               .runner = runner.get(),
                                               .executor = executor.get(),
                                               .clock = &clock,
                                               .observer = metrics.get(),
                                               .quotas = access->control(),
                                               .server_id = queue.server_id}));

  grpc::EnableDefaultHealthCheckService(true);
  grpc::reflection::InitProtoReflectionServerBuilderPlugin();
  const std::unique_ptr<RpcServices> services =
      RpcServices::Create({.transfer = flags.transfer,
                           .store = flags.store,
                           .jobs = flags.jobs,
                           .manager = manager.get(),
                           .blobs = blobs,
                           .metrics = metrics.get(),
                           .access = access->control()});
  grpc::ServerBuilder builder;
  if (!access->reflection()) builder.SetOption(WithoutReflection());
  int port = 0;
  builder.AddListeningPort(flags.listen, access->credentials(), &port);
  grpc::ResourceQuota quota("ovpress");
  quota.Resize(flags.network_memory_bytes);
  builder.SetResourceQuota(quota);
  SetKeepalive(Keepalive(), &builder);
  if (flags.max_connection_age_seconds > 0) {
    builder.AddChannelArgument(
        GRPC_ARG_MAX_CONNECTION_AGE_MS,
        static_cast<int>(1000 * flags.max_connection_age_seconds));
    builder.AddChannelArgument(
        GRPC_ARG_MAX_CONNECTION_AGE_GRACE_MS,
        static_cast<int>(1000 * flags.max_connection_age_grace_seconds));
  }
  builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
  services->Register(&builder);
  const std::unique_ptr<grpc::Server> server = builder.BuildAndStart();
  if (server == nullptr || port == 0) {
    return absl::UnavailableError(
        absl::StrCat("cannot listen on ", flags.listen));
  }
  grpc::HealthCheckServiceInterface* const health =
      server->GetHealthCheckService();
  health->SetServingStatus(kServiceName, true);

  std::atomic<bool> ready{true};
  OVPRESS_ASSIGN_OR_RETURN(
      const std::unique_ptr<HttpServer> pages,
      HttpServer::Start(
          flags.metrics,
          {{"/metrics",
            [&] {
              return HttpPage{.text = metrics->Page(manager.get(), blobs) +
                                      queue.MetricsText() +
                                      blob_store.MetricsText()};
            }},
           {"/healthz", [] { return HttpPage{.text = "ok\n"}; }},
           {"/readyz", [&ready] {
              return ready ? HttpPage{.text = "ready\n"}
                           : HttpPage{.code = 503, .text = "draining\n"};
            }}}));
  spdlog::info("ovpress {} serves gRPC on {} (port {}), metrics on port {}",
               std::string(EngineVersion()), flags.listen, port, pages->port());
  if (const absl::Status left =
          LeaveHealthAddress(flags.data_dir, flags.metrics, pages->port());
      !left.ok()) {
    spdlog::warn("`ovpress-server health` will not find this server: {}",
                 std::string(left.message()));
  }
  if (!flags.port_file.empty()) {
    WriteWhole(flags.port_file, absl::StrCat(port, "\n", pages->port(), "\n"))
        .IgnoreError();
  }

  const int caught =
      WaitForStop(signals, access.get(), flags.access.reload_seconds);
  spdlog::info("{}: draining", caught == SIGTERM ? "SIGTERM" : "SIGINT");
  ready = false;
  health->SetServingStatus(false);
  std::this_thread::sleep_for(
      std::chrono::duration<double>(flags.drain_delay_seconds));
  const DrainReport drained =
      manager->Drain(absl::Seconds(flags.drain_seconds));
  // Watchers and transfers that are still open end with UNAVAILABLE or
  // CANCELLED; both resume.
  server->Shutdown(std::chrono::system_clock::now() + std::chrono::seconds(2));
  server->Wait();
  spdlog::info("drained: {} jobs finished, {} handed back, {} wait",
               drained.finished, drained.requeued, drained.queued);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  CLI::App app{
      "ovpress-server compresses OpenVINO IR models for others: gRPC jobs over "
      "one thread pool, with a store that survives restarts.",
      "ovpress-server"};
  app.set_version_flag("--version",
                       absl::StrCat("ovpress ", std::string(EngineVersion())));
  app.get_formatter()->column_width(34);
  app.allow_config_extras(false);
  app.set_config("--config", "",
                 "Read flags from a file: one name=value per line")
      ->type_name("FILE");
  ServerFlags flags;
  RegisterFlags(&app, &flags);
  int exit_code = 0;
  const CLI::App* const token = RegisterTokenCommand(&app, &exit_code);
  const CLI::App* const health = RegisterHealthCommand(&app);
  RegisterUsageFlags(&app);
  CLI11_PARSE(app, argc, argv);
  if (token->parsed()) return exit_code;
  if (health->parsed()) return RunHealthCommand(flags.data_dir);
  SetUpLog(flags.log_format == "json");
  RouteGrpcLog();
  const absl::Status status = Serve(flags);
  if (status.ok()) return 0;
  std::cerr << "ovpress-server: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace ovpress

int main(int argc, char** argv) {
  ovpress::KeepMessageBuffers();
  return ovpress::Main(argc, argv);
}
