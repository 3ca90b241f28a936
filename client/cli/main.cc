// The command line: flags, wiring, exit codes. The work is in the engine and
// in the client library.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "client/cli/compare.h"
#include "client/cli/inspect.h"
#include "client/cli/interrupt.h"
#include "client/cli/options.h"
#include "client/cli/progress.h"
#include "core/base/status_macros.h"
#include "core/engine/compression.h"
#include "core/engine/presets.h"
#include "core/usage/usage.h"
#ifdef OVPRESS_WITH_REMOTE
#include "client/cli/remote.h"
#endif

namespace ovpress {
namespace {

int Fail(const absl::Status& status) {
  std::cerr << "ovpress: " << status.message() << "\n";
  if (status.code() == absl::StatusCode::kCancelled && InterruptFlag().load()) {
    return kExitInterrupted;
  }
  return kExitFailed;
}

struct CompressFlags {
  std::string in_xml;
  std::string in_bin;
  std::string out_xml;
  CompressionFlags compression;
  int threads = 0;
  std::string memory_budget = "256MiB";
  bool dry_run = false;
  bool quiet = false;
  bool measure = false;
  std::string report_file;
};

// Beside the file, then renamed: a report appears whole or not at all.
absl::Status WriteTextFile(const std::string& path, const std::string& text) {
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<AtomicFile> file,
                           AtomicFile::Create(path, 0));
  OVPRESS_RETURN_IF_ERROR(file->WriteAt(0, AsBytes(text)));
  return file->Commit();
}

absl::Status DryRun(const CompressFlags& flags,
                    const CompressionOptions& options) {
  OVPRESS_ASSIGN_OR_RETURN(
      std::string xml, ReadSmallFile(flags.in_xml, IrLimits().xml_bytes_max));
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<Compression> compression,
                           Compression::Create(std::move(xml), options));
  std::cout << compression->PlanText();
  const Estimate estimate = compression->EstimateSizes();
  std::cout << "weights file: " << estimate.input_bin_bytes << " -> ";
  if (estimate.output_bin_bytes_min == estimate.output_bin_bytes_max) {
    std::cout << estimate.output_bin_bytes_min << " bytes\n";
  } else {
    std::cout << estimate.output_bin_bytes_min << " to "
              << estimate.output_bin_bytes_max
              << " bytes (the choice needs the weights)\n";
  }
  return absl::OkStatus();
}

// Only a server reads object stores: it has the keys.
absl::Status CheckLocalNames(const CompressFlags& flags) {
  for (const std::string& name : {flags.in_xml, flags.in_bin, flags.out_xml}) {
    if (absl::StartsWith(name, "s3://")) {
      return absl::InvalidArgumentError(absl::StrCat(
          name,
          " is an object store's: give --server, which reads and writes "
          "it, without --dry-run; or copy the file here"));
    }
  }
  return absl::OkStatus();
}

int RunCompress(const CompressFlags& flags) {
  const absl::StatusOr<CompressionOptions> options =
      flags.compression.ToOptions(nullptr);
  const absl::StatusOr<uint64_t> budget = ParseByteSize(flags.memory_budget);
  for (const absl::Status& status :
       {CheckLocalNames(flags), options.status(), budget.status()}) {
    if (!status.ok()) {
      std::cerr << "ovpress: " << status.message() << "\n";
      return kExitUsage;
    }
  }
  if (*budget < kMinMemoryBudgetBytes) {
    std::cerr << "ovpress: --memory-budget " << flags.memory_budget
              << " is below the least, " << HumanBytes(kMinMemoryBudgetBytes)
              << "\n";
    return kExitUsage;
  }
  if (flags.dry_run) {
    const absl::Status status = DryRun(flags, *options);
    return status.ok() ? kExitDone : Fail(status);
  }
  if (flags.out_xml.empty()) {
    std::cerr << "ovpress: compress needs an output: -o OUT.xml (or "
                 "--dry-run)\n";
    return kExitUsage;
  }
  ProgressBar bar(!flags.quiet, stderr);
  const std::unique_ptr<Executor> executor = MakeTbbExecutor(flags.threads);
  RunOptions run;
  run.executor = executor.get();
  run.memory_budget_bytes = *budget;
  run.stop = &InterruptFlag();
  run.measure_error = flags.measure || !flags.report_file.empty();
  run.progress = [&bar](const Progress& progress) {
    bar.Update(PhaseName(progress.phase), progress.bytes_done,
               progress.bytes_total, "");
  };
  const absl::StatusOr<Report> report =
      CompressFiles({flags.in_xml, flags.in_bin, flags.out_xml}, *options, run);
  bar.Finish();
  if (!report.ok()) return Fail(report.status());
  if (!flags.report_file.empty()) {
    const absl::Status status =
        WriteTextFile(flags.report_file, report->ToJson());
    if (!status.ok()) return Fail(status);
  }
  for (const std::string& warning : report->warnings) {
    std::cerr << "ovpress: warning: " << warning << "\n";
  }
  if (!flags.quiet) std::cout << report->ToTable();
  return kExitDone;
}

int CompareCommand(const CompareFlags& flags) {
  const absl::StatusOr<CompareOutcome> outcome = RunCompare(flags);
  if (!outcome.ok()) return Fail(outcome.status());
  if (!flags.html_file.empty()) {
    const absl::Status status = WriteTextFile(flags.html_file, outcome->html);
    if (!status.ok()) return Fail(status);
  }
  std::cout << outcome->text;
  if (outcome->failure.empty()) return kExitDone;
  std::cerr << "ovpress: " << outcome->failure << "\n";
  return kExitFailed;
}

ManPageTexts PageTexts() {
  return {
      .section = 1,
      .version = absl::StrCat("ovpress ", EngineVersion()),
      .summary = "compress the weights of OpenVINO IR models",
      .sections = {
          {"EXIT STATUS",
           {"0: done. 1: failed, with one line on stderr that says what, "
            "where and what to do. 2: wrong usage. 130: interrupted."}},
          {"EXAMPLES",
           {"Four bits, groups of 64, the most sensitive fifth in eight bits:",
            " ovpress compress model.xml -o out.xml --mode int4_sym "
            "--group-size 64 --ratio 0.8",
            "The same by a server:",
            " ovpress compress model.xml -o out.xml --mode int4_sym "
            "--group-size 64 --ratio 0.8 --server host:8470",
            "How far the weights are from the original:",
            " ovpress compare model.xml out.xml"}},
          {"SEE ALSO", {"ovpress-server(8)"}}}};
}

// completion, for users, and man, for the build.
void RegisterUsageCommands(CLI::App* app) {
  static std::string shell;
  CLI::App* completion = app->add_subcommand(
      "completion",
      "Print a completion script for bash, zsh or fish; source it");
  completion->add_option("shell", shell, "The shell")
      ->required()
      ->check(CLI::IsMember({"bash", "zsh", "fish"}));
  completion->callback([app] {
    const Shell kind = shell == "bash"  ? Shell::kBash
                       : shell == "zsh" ? Shell::kZsh
                                        : Shell::kFish;
    std::cout << CompletionScript(*app, kind, CompressionValueNames());
  });
  app->add_subcommand("man", "Print the man page")->group("")->callback([app] {
    std::cout << ManPage(*app, PageTexts());
  });
}

int Main(int argc, char** argv) {
  CLI::App app{
      "ovpress compresses the weights of OpenVINO IR models without any data "
      "set, with the result that NNCF's compress_weights gives, bit for bit.",
      "ovpress"};
  app.set_version_flag("--version", absl::StrCat("ovpress ", EngineVersion()));
  app.require_subcommand(1);
  app.get_formatter()->column_width(34);
  int exit_code = kExitDone;

  CompressFlags flags;
  CLI::App* compress =
      app.add_subcommand("compress", "Compress a model: IN.xml -o OUT.xml");
  compress
      ->add_option("input", flags.in_xml,
                   "The model's .xml; its weights are in the .bin of the "
                   "same name. With --server also s3://BUCKET/KEY.xml, which "
                   "the server reads by itself")
      ->required()
      ->type_name("IN.xml");
  compress
      ->add_option("-o,--output", flags.out_xml,
                   "Where the compressed model goes; its .bin beside it. With "
                   "--server also s3://BUCKET/KEY.xml")
      ->type_name("OUT.xml");
  compress
      ->add_option("--bin", flags.in_bin,
                   "The weights file, if it is not beside the .xml")
      ->type_name("FILE");
  flags.compression.Register(compress);
  const std::string how = "How to run";
  compress
      ->add_option("--threads", flags.threads,
                   "Threads to compute with; 0: all that this process may "
                   "use")
      ->check(CLI::Range(0, 1024))
      ->capture_default_str()
      ->group(how);
  compress
      ->add_option("--memory-budget", flags.memory_budget,
                   "Most memory to use, mapped pages included")
      ->capture_default_str()
      ->group(how);
  compress
      ->add_flag("--dry-run", flags.dry_run,
                 "Print the plan and the sizes; read no weight, write "
                 "nothing")
      ->group(how);
  compress
      ->add_option("--report", flags.report_file,
                   "Write a JSON report on each weight, error included")
      ->type_name("FILE")
      ->group(how);
  compress
      ->add_flag("--measure-error", flags.measure,
                 "Measure the relative error of each weight (--report "
                 "does)")
      ->group(how);
  compress->add_flag("-q,--quiet", flags.quiet, "No progress bar, no summary")
      ->group(how);
#ifdef OVPRESS_WITH_REMOTE
  RemoteFlags remote;
  remote.Register(compress);
#endif
  compress->callback([&] {
#ifdef OVPRESS_WITH_REMOTE
    if (!remote.server.empty() && !flags.dry_run) {
      RemoteCompressArgs args;
      args.remote = remote;
      args.in_xml = flags.in_xml;
      args.in_bin = flags.in_bin;
      args.out_xml = flags.out_xml;
      args.compression = &flags.compression;
      args.memory_budget = flags.memory_budget;
      args.report_file = flags.report_file;
      args.measure_error = flags.measure || !flags.report_file.empty();
      args.quiet = flags.quiet;
      exit_code = CompressRemote(args);
      return;
    }
#endif
    exit_code = RunCompress(flags);
  });

  std::string inspect_input;
  bool inspect_json = false;
  CLI::App* inspect =
      app.add_subcommand("inspect",
                         "Show a model's weights, types and sizes, and what is "
                         "compressed already");
  inspect->add_option("input", inspect_input, "The model's .xml")
      ->required()
      ->type_name("IN.xml");
  inspect->add_flag("--json", inspect_json, "JSON instead of text");
  inspect->callback([&] {
    const absl::StatusOr<std::string> text =
        InspectModel(inspect_input, inspect_json);
    if (text.ok()) {
      std::cout << *text;
    } else {
      exit_code = Fail(text.status());
    }
  });
  CompareFlags compare_flags;
  CLI::App* compare = app.add_subcommand(
      "compare",
      "Show how far the weights of one model are from another's, for example "
      "after compression");
  compare_flags.Register(compare);
  compare->callback([&] { exit_code = CompareCommand(compare_flags); });
  app.add_subcommand("presets", "List the named sets of options")->callback([] {
    for (const Preset& preset : Presets()) {
      std::cout << preset.name << ": --mode " << ModeTraitsOf(preset.mode).name;
      if (preset.group_size) {
        std::cout << " --group-size " << *preset.group_size;
      }
      if (preset.ratio) std::cout << " --ratio " << *preset.ratio;
      if (preset.awq) std::cout << " --awq";
      std::cout << "\n    " << preset.description << "\n";
    }
  });
#ifdef OVPRESS_WITH_REMOTE
  RegisterRemoteCommands(&app, &exit_code);
#endif
  RegisterUsageCommands(&app);

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    const int code = app.exit(error);
    return code == 0 ? kExitDone : kExitUsage;
  }
  return exit_code;
}

}  // namespace
}  // namespace ovpress

int main(int argc, char** argv) { return ovpress::Main(argc, argv); }
