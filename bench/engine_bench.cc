// The engine against the copy limit, side by side in one run. Contestants take
// turns, and who begins changes from round to round; every result is checked
// before a figure is reported: the bytes of all rounds equal those of a run on
// one thread.
//
// The copy limit: the whole input is read by all threads with pread, each
// cache line is looked at once, and as many bytes as the engine's output has
// are written with pwrite from the same buffers, spread evenly between the
// reads, to a file that was created and reserved in the same way as the
// engine's (AtomicFile). Neither side calls fsync. Reads of 256 KiB and of
// 1 MiB take part; the limit is the faster one's median.
#include <fcntl.h>
#include <sys/resource.h>
#include <sys/utsname.h>
#include <sys/vfs.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstring>
#include <fstream>
#include <iostream>
#include <memory>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/gathering_sink.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "core/engine/compression.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

// Takes what is written and forgets it: for inputs whose output would not fit
// into the page cache.
class NullSink : public ByteSink {
 public:
  absl::Status WriteAt(uint64_t, std::span<const std::byte>) override {
    return absl::OkStatus();
  }
};

// FNV over the file, eight bytes a step: only to see that rounds agree.
absl::StatusOr<uint64_t> Fingerprint(const std::string& path) {
  OVPRESS_ASSIGN_OR_RETURN(const auto source, OpenFileSource(path));
  std::vector<std::byte> block(1 << 20);
  uint64_t hash = 1469598103934665603u;
  for (uint64_t at = 0; at < source->size_bytes(); at += block.size()) {
    const size_t size =
        std::min<uint64_t>(block.size(), source->size_bytes() - at);
    OVPRESS_RETURN_IF_ERROR(
        source->ReadAt(at, std::span<std::byte>(block.data(), size)));
    for (size_t i = 0; i + 8 <= size; i += 8) {
      uint64_t word;
      std::memcpy(&word, block.data() + i, 8);
      hash = (hash ^ word) * 1099511628211u;
    }
  }
  return hash;
}

struct Bench {
  std::string in_bin;
  ByteSource* bin = nullptr;
  std::string out_path;
  int rounds = 5;
  int threads = 1;
  uint64_t memory_budget_bytes = kDefaultMemoryBudgetBytes;
  bool discard = false;  // no output file
  bool cold = false;     // the input leaves the page cache before each run
};

// Asks the kernel to forget the input's pages.
absl::Status MakeCold(const Bench& bench) {
  if (!bench.cold) return absl::OkStatus();
  const int fd = ::open(bench.in_bin.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) return ErrnoToStatus(errno, "opening the input");
  ::fsync(fd);  // dirty pages would stay
  const int error = ::posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED);
  ::close(fd);
  if (error != 0) return ErrnoToStatus(error, "emptying the page cache");
  return absl::OkStatus();
}

// Seconds of the copy limit with reads and writes of `block` bytes.
absl::StatusOr<double> CopyLimit(const Bench& bench, uint64_t out_bytes,
                                 uint64_t block) {
  OVPRESS_RETURN_IF_ERROR(MakeCold(bench));
  ByteSource& bin = *bench.bin;
  const double start = Seconds();
  std::unique_ptr<AtomicFile> file;
  NullSink null;
  ByteSink* out = &null;
  if (!bench.discard) {
    OVPRESS_ASSIGN_OR_RETURN(file,
                             AtomicFile::Create(bench.out_path, out_bytes));
    out = file.get();
  }
  const uint64_t reads = (bin.size_bytes() + block - 1) / block;
  const uint64_t writes = (out_bytes + block - 1) / block;
  const auto executor = MakeTbbExecutor(bench.threads);
  OVPRESS_RETURN_IF_ERROR(executor->ParallelFor(reads, [&](size_t i) {
    thread_local std::vector<std::byte> buffer;
    buffer.resize(block);
    const uint64_t at = i * block;
    const uint64_t size = std::min(block, bin.size_bytes() - at);
    absl::Status status =
        bin.ReadAt(at, std::span<std::byte>(buffer.data(), size));
    // Every line of the cache is looked at once, as a kernel would.
    uint64_t sum = 0;
    for (size_t k = 0; k < size; k += 64) {
      sum += static_cast<uint64_t>(buffer[k]);
    }
    if (sum == ~uint64_t{0}) return absl::InternalError("impossible");
    const uint64_t first = i * writes / reads;
    const uint64_t last = (i + 1) * writes / reads;
    for (uint64_t w = first; w < last && status.ok(); ++w) {
      status = out->WriteAt(
          w * block,
          std::span<const std::byte>(buffer.data(),
                                     std::min(block, out_bytes - w * block)));
    }
    return status;
  }));
  return Seconds() - start;
}

struct Case {
  std::string name;
  CompressionOptions options;
};

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

struct EngineRun {
  double seconds = 0;
  uint64_t out_bytes = 0;
  uint64_t fingerprint = 0;
};

// All that a local job does but for fsync and rename.
absl::StatusOr<EngineRun> RunEngine(const Bench& bench, const std::string& xml,
                                    const CompressionOptions& options,
                                    int threads) {
  OVPRESS_RETURN_IF_ERROR(MakeCold(bench));
  EngineRun result;
  std::unique_ptr<AtomicFile> file;
  NullSink null;
  ByteSink* out = &null;
  const double start = Seconds();
  {
    OVPRESS_ASSIGN_OR_RETURN(const auto compression,
                             Compression::Create(xml, options));
    const auto executor = MakeTbbExecutor(threads);
    RunOptions run;
    run.executor = executor.get();
    run.memory_budget_bytes = bench.memory_budget_bytes;
    if (compression->needs_scores()) {
      OVPRESS_RETURN_IF_ERROR(compression->ComputeScores(*bench.bin, run));
    }
    result.out_bytes = compression->output_bin_bytes();
    if (!bench.discard) {
      OVPRESS_ASSIGN_OR_RETURN(
          file, AtomicFile::Create(bench.out_path, result.out_bytes));
      out = file.get();
    }
    GatheringSink gathered(out, result.out_bytes);
    OVPRESS_RETURN_IF_ERROR(compression->Run(*bench.bin, gathered, run));
    OVPRESS_RETURN_IF_ERROR(gathered.Flush());
    (void)compression->OutputXml();
  }
  result.seconds = Seconds() - start;
  if (file != nullptr) {
    OVPRESS_ASSIGN_OR_RETURN(result.fingerprint,
                             Fingerprint(file->temporary_path()));
  }
  return result;
}

struct Figures {
  double ours = 0;
  double limit = 0;
  uint64_t out_bytes = 0;
};

absl::StatusOr<Figures> Measure(const Bench& bench, const std::string& xml,
                                const Case& c) {
  // Also warms the page cache up.
  OVPRESS_ASSIGN_OR_RETURN(const EngineRun expected,
                           RunEngine(bench, xml, c.options, 1));
  constexpr uint64_t kBlocks[] = {256 << 10, 1 << 20};
  std::vector<double> ours;
  std::vector<double> limits[std::size(kBlocks)];
  for (int round = 0; round < bench.rounds; ++round) {
    for (size_t turn = 0; turn <= std::size(kBlocks); ++turn) {
      const size_t who =
          (turn + static_cast<size_t>(round)) % (std::size(kBlocks) + 1);
      if (who < std::size(kBlocks)) {
        OVPRESS_ASSIGN_OR_RETURN(
            const double took,
            CopyLimit(bench, expected.out_bytes, kBlocks[who]));
        limits[who].push_back(took);
        continue;
      }
      OVPRESS_ASSIGN_OR_RETURN(const EngineRun run,
                               RunEngine(bench, xml, c.options, bench.threads));
      if (run.fingerprint != expected.fingerprint) {
        return absl::InternalError(absl::StrCat(
            c.name, ": the bytes differ from those of one thread"));
      }
      ours.push_back(run.seconds);
    }
  }
  return Figures{Median(ours), std::min(Median(limits[0]), Median(limits[1])),
                 expected.out_bytes};
}

// "model name" of the first processor, or nothing.
std::string Processor() {
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string line;
  while (std::getline(cpuinfo, line)) {
    const size_t colon = line.find(": ");
    if (line.rfind("model name", 0) == 0 && colon != std::string::npos) {
      return line.substr(colon + 2);
    }
  }
  return "";
}

// The type of the file system, as statfs numbers it, by name where it is a
// usual one.
std::string FileSystemOf(const std::string& directory) {
  struct statfs info;
  if (::statfs(directory.c_str(), &info) != 0) return "unknown";
  switch (info.f_type) {
    case 0xef53:
      return "ext4";
    case 0x01021994:
      return "tmpfs";
    case 0x58465342:
      return "xfs";
    case 0x9123683e:
      return "btrfs";
    case 0x794c7630:
      return "overlayfs";
    default:
      return absl::StrFormat("type 0x%x", info.f_type);
  }
}

std::vector<Case> Cases() {
  return {{"int8_asym", {.mode = Mode::kInt8Asym}},
          {"int8_sym", {.mode = Mode::kInt8Sym}},
          {"int4_sym g128", {.mode = Mode::kInt4Sym, .group_size = 128}},
          {"int4_asym g64", {.mode = Mode::kInt4Asym, .group_size = 64}},
          {"int4_asym g64 ratio 0.8",
           {.mode = Mode::kInt4Asym, .ratio = 0.8, .group_size = 64}},
          {"int3_sym g128", {.mode = Mode::kInt3Sym}},
          {"int2_sym g128", {.mode = Mode::kInt2Sym}},
          {"nf4 g64", {.mode = Mode::kNf4, .group_size = 64}},
          {"fp4 g64", {.mode = Mode::kFp4, .group_size = 64}},
          {"fp8_e4m3 g64", {.mode = Mode::kFp8E4m3, .group_size = 64}},
          {"mxfp4", {.mode = Mode::kMxfp4}},
          {"mxfp8_e4m3", {.mode = Mode::kMxfp8E4m3}},
          {"nvfp4", {.mode = Mode::kNvfp4}},
          {"cb4", {.mode = Mode::kCb4}}};
}

absl::Status Main(const std::string& in_xml, const std::string& work,
                  Bench bench, bool json, const std::string& only) {
  bench.in_bin = in_xml.substr(0, in_xml.size() - 4) + ".bin";
  OVPRESS_ASSIGN_OR_RETURN(const std::string xml,
                           ReadSmallFile(in_xml, IrLimits().xml_bytes_max));
  OVPRESS_ASSIGN_OR_RETURN(const auto bin, OpenFileSource(bench.in_bin));
  bench.bin = bin.get();
  bench.out_path = work + "/ovpress-bench.bin";
  if (bench.threads == 0) {
    bench.threads = static_cast<int>(std::thread::hardware_concurrency());
  }
  utsname system{};
  ::uname(&system);
  const double gigabytes = static_cast<double>(bin->size_bytes()) / 1e9;
  nlohmann::ordered_json report;
  report["processor"] = Processor();
  report["system"] = absl::StrCat(system.sysname, " ", system.release);
  report["file_system"] = FileSystemOf(work);
  report["input_bytes"] = bin->size_bytes();
  report["threads"] = bench.threads;
  report["rounds"] = bench.rounds;
  report["output_discarded"] = bench.discard;
  report["input_cold"] = bench.cold;
  if (!json) {
    std::cout << absl::StrFormat(
        "%s, %s, %s; input %.2f GB, %d threads, %d rounds, medians in "
        "seconds\n%-26s %9s %10s %7s %9s\n",
        report["processor"].get<std::string>(),
        report["system"].get<std::string>(),
        report["file_system"].get<std::string>(), gigabytes, bench.threads,
        bench.rounds, "mode", "ovpress", "copy limit", "ratio", "GB/s");
  }
  for (const Case& c : Cases()) {
    if (!only.empty() && c.name.find(only) == std::string::npos) continue;
    OVPRESS_ASSIGN_OR_RETURN(const Figures figures, Measure(bench, xml, c));
    const double ratio = figures.ours / figures.limit;
    if (json) {
      report["modes"].push_back({{"mode", c.name},
                                 {"seconds", figures.ours},
                                 {"copy_limit_seconds", figures.limit},
                                 {"ratio", ratio},
                                 {"output_bytes", figures.out_bytes}});
    } else {
      std::cout << absl::StrFormat("%-26s %9.3f %10.3f %7.2f %9.2f\n", c.name,
                                   figures.ours, figures.limit, ratio,
                                   gigabytes / figures.ours)
                << std::flush;
    }
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  report["peak_rss_kib"] = usage.ru_maxrss;
  if (json) {
    std::cout << report.dump(2) << "\n";
  } else {
    std::cout << "peak memory of this program: " << usage.ru_maxrss / 1024
              << " MiB\n";
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace ovpress

int main(int argc, char** argv) {
  CLI::App app{"ovpress against the copy limit", "engine_bench"};
  std::string input, work = ".", only;
  ovpress::Bench bench;
  bench.threads = 0;
  bool json = false;
  app.add_option("input", input, "An .xml, e.g. from make_ir")->required();
  app.add_option("--work", work, "Where the outputs go")->capture_default_str();
  app.add_option("--rounds", bench.rounds)
      ->check(CLI::Range(1, 1000))
      ->capture_default_str();
  app.add_option("--threads", bench.threads, "0: all")->capture_default_str();
  app.add_option("--only", only, "Modes whose name holds this text");
  app.add_option("--memory-budget", bench.memory_budget_bytes,
                 "The engine's, in bytes; small ones make small windows")
      ->transform(CLI::AsSizeValue(false))
      ->capture_default_str();
  app.add_flag("--discard", bench.discard,
               "Write nothing: neither the engine nor the copy limit");
  app.add_flag("--cold", bench.cold,
               "Drop the input from the page cache before each run");
  app.add_flag("--json", json);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = ovpress::Main(input, work, bench, json, only);
  if (!status.ok()) {
    std::cerr << "engine_bench: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
