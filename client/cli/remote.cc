#include "client/cli/remote.h"

#include <stdlib.h>

#include <filesystem>
#include <iostream>
#include <limits>
#include <memory>
#include <utility>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "client/cli/interrupt.h"
#include "client/cli/progress.h"
#include "client/lib/client.h"
#include "core/base/heap.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "core/engine/compression.h"
#include "google/protobuf/util/json_util.h"

namespace ovpress {
namespace {

namespace lro = google::longrunning;

int Fail(const absl::Status& status) {
  std::cerr << "ovpress: " << status.message() << "\n";
  return InterruptFlag().load() ? kExitInterrupted : kExitFailed;
}

absl::StatusOr<std::unique_ptr<Client>> Connect(const RemoteFlags& flags) {
  // gRPC would print failed handshakes beside our one line of error.
  ::setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  KeepMessageBuffers();
  return Client::Create({.server = flags.server,
                         .tls = flags.tls,
                         .tls_ca_file = flags.tls_ca,
                         .tls_cert_file = flags.tls_cert,
                         .tls_key_file = flags.tls_key,
                         .tls_server_name = flags.tls_server_name,
                         .token_file = flags.token_file,
                         .allow_insecure_token = flags.allow_insecure_token,
                         .retry_for = absl::Seconds(flags.retry_seconds),
                         .stop = &InterruptFlag()});
}

std::string NameOf(const std::string& job) {
  return absl::StartsWith(job, "operations/")
             ? job
             : absl::StrCat("operations/", job);
}

absl::StatusOr<v1::CompressionOptions> OptionsToProto(
    const CompressionFlags& flags) {
  std::string codebook;
  OVPRESS_ASSIGN_OR_RETURN(const CompressionOptions options,
                           flags.ToOptions(&codebook));
  v1::CompressionOptions proto;
  proto.set_mode(std::string(ModeTraitsOf(options.mode).name));
  if (options.ratio) proto.set_ratio(*options.ratio);
  if (options.group_size) proto.set_group_size(*options.group_size);
  if (options.backup_mode) {
    proto.set_backup_mode(std::string(BackupModeName(*options.backup_mode)));
  }
  if (options.all_layers) proto.set_all_layers(*options.all_layers);
  if (options.sensitivity_metric) {
    proto.set_sensitivity_metric(*options.sensitivity_metric);
  }
  v1::IgnoredScope* ignored = proto.mutable_ignored_scope();
  for (const auto& name : options.ignored.names) ignored->add_names(name);
  for (const auto& regex : options.ignored.patterns) {
    ignored->add_patterns(regex);
  }
  for (const auto& type : options.ignored.types) ignored->add_types(type);
  ignored->set_allow_unmatched(!options.ignored.validate);
  proto.set_group_size_fallback(
      std::string(GroupSizeFallbackName(options.group_size_fallback)));
  proto.set_min_adjusted_group_size(options.min_adjusted_group_size);
  if (options.awq) proto.set_awq(*options.awq);
  proto.set_awq_extended(options.awq_extended);
  proto.set_allow_non_finite(options.allow_non_finite);
  proto.set_codebook(codebook);
  return proto;
}

absl::StatusOr<std::unique_ptr<ByteSource>> OpenBin(const std::string& path) {
  // A model without constants may come without.
  if (!std::filesystem::exists(path)) return MakeMemorySource({});
  return OpenFileSource(path);
}

absl::StatusOr<v1::ModelBlobs> UploadModel(Client& client,
                                           const std::string& in_xml,
                                           const std::string& in_bin,
                                           ProgressBar& bar) {
  v1::ModelBlobs model;
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ByteSource> xml,
                           OpenFileSource(in_xml));
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ByteSource> bin,
                           OpenBin(in_bin));
  OVPRESS_ASSIGN_OR_RETURN(*model.mutable_xml(),
                           client.Upload(*xml, [](uint64_t, uint64_t) {}));
  OVPRESS_ASSIGN_OR_RETURN(
      *model.mutable_bin(),
      client.Upload(*bin, [&bar](uint64_t done, uint64_t total) {
        bar.Update("uploading", done, total, "");
      }));
  return model;
}

absl::StatusOr<lro::Operation> WatchWithBar(Client& client,
                                            const std::string& name,
                                            ProgressBar& bar) {
  return client.Watch(name, [&bar](const v1::CompressModelMetadata& state) {
    if (state.state() == v1::CompressModelMetadata::STATE_QUEUED) {
      bar.Update("queued", 0, 0,
                 absl::StrCat("position ", state.queue_position()));
    } else {
      bar.Update(state.phase() == v1::CompressModelMetadata::PHASE_SCORING
                     ? "scoring"
                     : "compressing",
                 static_cast<uint64_t>(state.bytes_done()),
                 static_cast<uint64_t>(state.bytes_total()), "");
    }
  });
}

// Both files and the report, whole or not at all.
absl::Status DownloadResult(Client& client,
                            const v1::CompressModelResponse& result,
                            const std::string& out_xml,
                            const std::string& report_file, ProgressBar& bar) {
  OVPRESS_ASSIGN_OR_RETURN(
      const std::unique_ptr<AtomicFile> bin,
      AtomicFile::Create(
          BinPathOf(out_xml),
          static_cast<uint64_t>(result.model().bin().size_bytes())));
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> xml,
                           AtomicFile::Create(out_xml, 0));
  OVPRESS_RETURN_IF_ERROR(client.Download(
      result.model().bin(), *bin, [&bar](uint64_t done, uint64_t total) {
        bar.Update("downloading", done, total, "");
      }));
  const auto silent = [](uint64_t, uint64_t) {};
  OVPRESS_RETURN_IF_ERROR(client.Download(result.model().xml(), *xml, silent));
  std::unique_ptr<AtomicFile> report;
  if (!report_file.empty()) {
    OVPRESS_ASSIGN_OR_RETURN(report, AtomicFile::Create(report_file, 0));
    OVPRESS_RETURN_IF_ERROR(client.Download(result.report(), *report, silent));
    OVPRESS_RETURN_IF_ERROR(report->Sync());
  }
  OVPRESS_RETURN_IF_ERROR(bin->Sync());
  OVPRESS_RETURN_IF_ERROR(xml->Sync());
  OVPRESS_RETURN_IF_ERROR(bin->Publish());
  OVPRESS_RETURN_IF_ERROR(xml->Publish());
  return report != nullptr ? report->Publish() : absl::OkStatus();
}

void ShowStream(const Client::StreamProgress& progress, ProgressBar& bar) {
  if (progress.received > 0) {
    bar.Update("streaming", progress.sent + progress.received,
               progress.send_total + progress.receive_total, "");
  } else if (progress.server.bytes_total() > 0) {
    bar.Update("scoring", static_cast<uint64_t>(progress.server.bytes_done()),
               static_cast<uint64_t>(progress.server.bytes_total()), "");
  } else {
    bar.Update("uploading", progress.sent, progress.send_total, "");
  }
}

// What a run says at its end.
struct Summary {
  uint64_t bin_bytes_before = 0;
  uint64_t bin_bytes_after = 0;
  double bits_per_weight = 0;
  bool cache_hit = false;
  std::vector<std::string> warnings;
};

void PrintSummary(const Summary& summary, bool quiet) {
  for (const std::string& warning : summary.warnings) {
    std::cerr << "ovpress: warning: " << warning << "\n";
  }
  if (quiet) return;
  std::cout << "weights file: " << HumanBytes(summary.bin_bytes_before)
            << " -> " << HumanBytes(summary.bin_bytes_after) << ", "
            << summary.bits_per_weight << " bits per weight"
            << (summary.cache_hit ? " (from the result cache)" : "") << "\n";
}

absl::StatusOr<v1::CompressModelRequest> MakeRequest(
    const RemoteCompressArgs& args) {
  v1::CompressModelRequest request;
  OVPRESS_ASSIGN_OR_RETURN(*request.mutable_options(),
                           OptionsToProto(*args.compression));
  OVPRESS_ASSIGN_OR_RETURN(const uint64_t budget,
                           ParseByteSize(args.memory_budget));
  request.mutable_settings()->set_memory_budget_bytes(
      static_cast<int64_t>(budget));
  request.mutable_settings()->set_measure_error(args.measure_error);
  return request;
}

// Files of the server's object store, not of this machine.
bool IsAddress(const std::string& name) {
  return absl::StartsWith(name, "s3://");
}

// Names what is at an address in the request and uploads the rest.
absl::Status SendModel(const RemoteCompressArgs& args, Client& client,
                       v1::CompressModelRequest* request, ProgressBar& bar) {
  if (IsAddress(args.out_xml)) {
    request->mutable_output_address()->set_xml(args.out_xml);
  }
  if (IsAddress(args.in_xml)) {
    request->mutable_model_address()->set_xml(args.in_xml);
    request->mutable_model_address()->set_bin(args.in_bin);
    return absl::OkStatus();
  }
  const std::string in_bin =
      args.in_bin.empty() ? BinPathOf(args.in_xml) : args.in_bin;
  if (IsAddress(in_bin)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the weights are at ", in_bin,
                     " and the .xml is a file: give addresses for both or "
                     "files for both"));
  }
  OVPRESS_ASSIGN_OR_RETURN(*request->mutable_model(),
                           UploadModel(client, args.in_xml, in_bin, bar));
  return absl::OkStatus();
}

// The report alone, of a result that stays where it is.
absl::Status DownloadReport(Client& client,
                            const v1::CompressModelResponse& result,
                            const std::string& report_file) {
  if (report_file.empty()) return absl::OkStatus();
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> report,
                           AtomicFile::Create(report_file, 0));
  OVPRESS_RETURN_IF_ERROR(
      client.Download(result.report(), *report, [](uint64_t, uint64_t) {}));
  return report->Commit();
}

absl::Status RunRemote(const RemoteCompressArgs& args, Client& client,
                       v1::CompressModelRequest request, ProgressBar& bar,
                       std::string* job) {
  const bool to_address = IsAddress(args.out_xml);
  if (!args.remote.detach && !to_address) {
    OVPRESS_RETURN_IF_ERROR(
        IsAddress(args.in_xml)
            ? CheckOutputName(args.out_xml)
            : CheckFileNames({args.in_xml, args.in_bin, args.out_xml}));
  }
  OVPRESS_RETURN_IF_ERROR(SendModel(args, client, &request, bar));
  OVPRESS_ASSIGN_OR_RETURN(lro::Operation operation, client.Submit(request));
  *job = operation.name();
  if (args.remote.detach) {
    std::cout << operation.name() << "\n";
    return absl::OkStatus();
  }
  if (!operation.done()) {
    OVPRESS_ASSIGN_OR_RETURN(operation,
                             WatchWithBar(client, operation.name(), bar));
  }
  job->clear();  // nothing to cancel any more
  OVPRESS_ASSIGN_OR_RETURN(const v1::CompressModelResponse result,
                           ResultOf(operation));
  OVPRESS_RETURN_IF_ERROR(to_address
                              ? DownloadReport(client, result, args.report_file)
                              : DownloadResult(client, result, args.out_xml,
                                               args.report_file, bar));
  bar.Finish();
  PrintSummary(
      {.bin_bytes_before = static_cast<uint64_t>(result.bin_bytes_before()),
       .bin_bytes_after = static_cast<uint64_t>(result.bin_bytes_after()),
       .bits_per_weight = result.bits_per_weight(),
       .cache_hit = result.cache_hit(),
       .warnings = {result.warnings().begin(), result.warnings().end()}},
      args.quiet);
  return absl::OkStatus();
}

// Both files and the report, whole or not at all.
absl::Status PublishStreamed(AtomicFile* bin, const std::string& out_xml,
                             const std::string& report_file,
                             const Client::StreamOutput& output) {
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> xml,
                           AtomicFile::Create(out_xml, 0));
  OVPRESS_RETURN_IF_ERROR(xml->WriteAt(0, AsBytes(output.xml)));
  std::vector<AtomicFile*> files = {bin, xml.get()};
  std::unique_ptr<AtomicFile> report;
  if (!report_file.empty()) {
    OVPRESS_ASSIGN_OR_RETURN(report, AtomicFile::Create(report_file, 0));
    OVPRESS_RETURN_IF_ERROR(report->WriteAt(0, AsBytes(output.report)));
    files.push_back(report.get());
  }
  for (AtomicFile* file : files) OVPRESS_RETURN_IF_ERROR(file->Sync());
  return PublishTogether(files);
}

absl::Status RunStream(const RemoteCompressArgs& args, Client& client,
                       const v1::CompressModelRequest& request,
                       ProgressBar& bar) {
  OVPRESS_RETURN_IF_ERROR(
      CheckFileNames({args.in_xml, args.in_bin, args.out_xml}));
  Client::StreamInput input;
  *input.open.mutable_options() = request.options();
  *input.open.mutable_settings() = request.settings();
  OVPRESS_ASSIGN_OR_RETURN(
      input.xml,
      ReadSmallFile(args.in_xml, std::numeric_limits<int32_t>::max()));
  OVPRESS_ASSIGN_OR_RETURN(
      const std::unique_ptr<ByteSource> bin,
      OpenBin(args.in_bin.empty() ? BinPathOf(args.in_xml) : args.in_bin));
  input.bin = bin.get();
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> out,
                           AtomicFile::Create(BinPathOf(args.out_xml), 0));
  OVPRESS_ASSIGN_OR_RETURN(
      const Client::StreamOutput output,
      client.CompressStream(input, *out,
                            [&bar](const Client::StreamProgress& progress) {
                              ShowStream(progress, bar);
                            }));
  OVPRESS_RETURN_IF_ERROR(
      PublishStreamed(out.get(), args.out_xml, args.report_file, output));
  bar.Finish();
  const v1::CompressStreamResult& result = output.result;
  PrintSummary(
      {.bin_bytes_before = static_cast<uint64_t>(result.bin_bytes_before()),
       .bin_bytes_after = static_cast<uint64_t>(result.bin_bytes_after()),
       .bits_per_weight = result.bits_per_weight(),
       .warnings = {result.warnings().begin(), result.warnings().end()}},
      args.quiet);
  return absl::OkStatus();
}

// Flags of the commands on one job; lives as long as the program.
struct JobCommand {
  RemoteFlags remote;
  std::string job;
  std::string out_xml;
  std::string report_file;
  std::string filter;
  bool json = false;
};

void PrintOperation(const lro::Operation& operation, bool json) {
  v1::CompressModelMetadata metadata;
  operation.metadata().UnpackTo(&metadata);
  if (json) {
    std::string text;
    google::protobuf::util::JsonPrintOptions options;
    options.preserve_proto_field_names = true;
    // Both types are linked in, so that Any can be printed.
    (void)google::protobuf::util::MessageToJsonString(operation, &text,
                                                      options);
    std::cout << text << "\n";
    return;
  }
  std::string state = v1::CompressModelMetadata::State_Name(metadata.state());
  std::cout << operation.name() << "  " << absl::StripPrefix(state, "STATE_")
            << "  " << metadata.options().mode();
  if (metadata.queue_position() > 0) {
    std::cout << "  position " << metadata.queue_position();
  }
  if (metadata.state() == v1::CompressModelMetadata::STATE_RUNNING &&
      metadata.bytes_total() > 0) {
    std::cout << "  " << 100 * metadata.bytes_done() / metadata.bytes_total()
              << " %";
  }
  const auto result = ResultOf(operation);
  if (result.ok()) {
    std::cout << "  "
              << HumanBytes(static_cast<uint64_t>(result->bin_bytes_before()))
              << " -> "
              << HumanBytes(static_cast<uint64_t>(result->bin_bytes_after()));
  } else if (operation.done()) {
    std::cout << "  " << result.status().message();
  }
  std::cout << "\n";
}

absl::Status List(const JobCommand& command, Client& client) {
  lro::ListOperationsRequest request;
  request.set_filter(command.filter);
  do {
    OVPRESS_ASSIGN_OR_RETURN(const lro::ListOperationsResponse page,
                             client.List(request));
    for (const lro::Operation& operation : page.operations()) {
      PrintOperation(operation, command.json);
    }
    request.set_page_token(page.next_page_token());
  } while (!request.page_token().empty());
  return absl::OkStatus();
}

absl::Status ShowJob(const JobCommand& command, Client& client, bool watch) {
  ProgressBar bar(watch, stderr);
  absl::StatusOr<lro::Operation> operation =
      watch ? WatchWithBar(client, NameOf(command.job), bar)
            : client.Get(NameOf(command.job));
  bar.Finish();
  OVPRESS_RETURN_IF_ERROR(operation.status());
  PrintOperation(*operation, command.json);
  return watch ? ResultOf(*operation).status() : absl::OkStatus();
}

absl::Status Download(const JobCommand& command, Client& client) {
  OVPRESS_ASSIGN_OR_RETURN(const lro::Operation operation,
                           client.Get(NameOf(command.job)));
  OVPRESS_ASSIGN_OR_RETURN(const v1::CompressModelResponse result,
                           ResultOf(operation));
  OVPRESS_RETURN_IF_ERROR(CheckOutputName(command.out_xml));
  ProgressBar bar(true, stderr);
  return DownloadResult(client, result, command.out_xml, command.report_file,
                        bar);
}

}  // namespace

void RemoteFlags::Register(CLI::App* app) {
  app->add_option("--server", server, "Work on this ovpress-server")
      ->type_name("HOST:PORT")
      ->envname("OVPRESS_SERVER")
      ->group("Remote");
  if (app->get_name() == "compress") {
    app->add_flag("--detach", detach,
                  "Print the job's name and leave it running")
        ->group("Remote");
    app->add_flag("--stream", stream,
                  "One call instead of upload, job and download: faster and "
                  "nothing stays on the server, but a broken connection means "
                  "from the start again")
        ->excludes("--detach")
        ->group("Remote");
  }
  app->add_option("--retry-seconds", retry_seconds,
                  "How long to go on without progress when the server is away")
      ->check(CLI::NonNegativeNumber)
      ->capture_default_str()
      ->group("Remote");
  app->add_flag("--tls", tls,
                "Encrypt; the next three do, too. The server must have a "
                "certificate that --tls-ca, or else this system, trusts")
      ->group("Remote");
  const auto file = [app](const std::string& name, std::string* value,
                          const std::string& help,
                          const std::string& variable) {
    app->add_option(name, *value, help)
        ->type_name("FILE")
        ->envname(variable)
        ->group("Remote");
  };
  file("--tls-ca", &tls_ca, "CA certificates to trust, PEM", "OVPRESS_TLS_CA");
  file("--tls-cert", &tls_cert, "Our certificate for mutual TLS, PEM",
       "OVPRESS_TLS_CERT");
  file("--tls-key", &tls_key, "Its key, PEM", "OVPRESS_TLS_KEY");
  app->add_option("--tls-server-name", tls_server_name,
                  "The name in the server's certificate, if not that in "
                  "--server")
      ->type_name("NAME")
      ->group("Remote");
  file("--token-file", &token_file,
       "The bearer token, on one line; never sent unencrypted beyond this "
       "machine",
       "OVPRESS_TOKEN_FILE");
  app->add_flag("--allow-insecure-token", allow_insecure_token,
                "Send the token even so")
      ->group("Remote");
}

int CompressRemote(const RemoteCompressArgs& args) {
  if (args.out_xml.empty() && !args.remote.detach) {
    std::cerr << "ovpress: compress needs an output: -o OUT.xml\n";
    return kExitUsage;
  }
  const absl::StatusOr<v1::CompressModelRequest> request = MakeRequest(args);
  if (!request.ok()) {
    std::cerr << "ovpress: " << request.status().message() << "\n";
    return kExitUsage;
  }
  const absl::StatusOr<std::unique_ptr<Client>> connected =
      Connect(args.remote);
  if (!connected.ok()) return Fail(connected.status());
  Client* const client = connected->get();
  ProgressBar bar(!args.quiet, stderr);
  std::string job;
  const absl::Status status =
      args.remote.stream ? RunStream(args, *client, *request, bar)
                         : RunRemote(args, *client, *request, bar, &job);
  bar.Finish();
  if (status.ok()) return kExitDone;
  if (InterruptFlag().load() && !job.empty()) {
    const absl::Status cancelled = client->Cancel(job);
    std::cerr << "ovpress: " << job
              << (cancelled.ok() ? " was cancelled" : " goes on") << "\n";
  }
  return Fail(status);
}

void RegisterRemoteCommands(CLI::App* app, int* exit_code) {
  static JobCommand command;
  static RemoteCompressArgs submit;
  static CompressionFlags submit_flags;
  const auto add = [&](const char* name, const char* help, bool needs_job,
                       auto run) {
    CLI::App* sub = app->add_subcommand(name, help);
    command.remote.Register(sub);
    sub->get_option("--server")->required();
    if (needs_job) {
      sub->add_option("job", command.job, "operations/ID, or the ID")
          ->required()
          ->type_name("JOB");
    }
    sub->callback([run, exit_code] {
      const absl::StatusOr<std::unique_ptr<Client>> client =
          Connect(command.remote);
      const absl::Status status = client.ok() ? run(**client) : client.status();
      *exit_code = status.ok() ? kExitDone : Fail(status);
    });
    return sub;
  };
  CLI::App* sub = app->add_subcommand(
      "submit", "Upload a model, start a job, print its name");
  submit.compression = &submit_flags;
  submit.memory_budget = "256MiB";
  submit.quiet = true;
  sub->add_option("input", submit.in_xml,
                  "The model's .xml; s3://BUCKET/KEY.xml: the server reads it "
                  "there")
      ->required()
      ->type_name("IN.xml");
  sub->add_option("-o,--output", submit.out_xml,
                  "s3://BUCKET/KEY.xml: the server writes the result there")
      ->check([](const std::string& name) {
        return IsAddress(name)
                   ? std::string()
                   : std::string(
                         "submit does not wait for the result: fetch "
                         "it with download, or give s3://BUCKET/KEY");
      })
      ->type_name("OUT.xml");
  sub->add_option("--bin", submit.in_bin, "The weights file, if elsewhere")
      ->type_name("FILE");
  submit_flags.Register(sub);
  sub->add_option("--memory-budget", submit.memory_budget,
                  "Most memory for the job")
      ->capture_default_str();
  submit.remote.Register(sub);
  sub->get_option("--server")->required();
  sub->callback([exit_code] {
    submit.remote.detach = true;
    *exit_code = CompressRemote(submit);
  });
  add("status", "Show a job", true, [](Client& client) {
    return ShowJob(command, client, false);
  })->add_flag("--json", command.json, "JSON instead of text");
  add("watch", "Follow a job to its end", true, [](Client& client) {
    return ShowJob(command, client, true);
  })->add_flag("--json", command.json, "JSON instead of text");
  sub = add("download", "Fetch the result of a job", true,
            [](Client& client) { return Download(command, client); });
  sub->add_option("-o,--output", command.out_xml, "Where the model goes")
      ->required()
      ->type_name("OUT.xml");
  sub->add_option("--report", command.report_file, "Where the report goes")
      ->type_name("FILE");
  sub = add("list", "Show jobs, newest first", false,
            [](Client& client) { return List(command, client); });
  sub->add_option("--filter", command.filter,
                  "state=RUNNING AND labels.team=a");
  sub->add_flag("--json", command.json, "JSON, one job per line");
  add("cancel", "End a job", true,
      [](Client& client) { return client.Cancel(NameOf(command.job)); });
  add("health", "Exit 0 if the server answers", false, [](Client& client) {
    const absl::Status status = client.Health();
    if (status.ok()) std::cout << "SERVING\n";
    return status;
  });
}

}  // namespace ovpress
