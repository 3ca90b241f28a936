// The engine against the copy limit, side by side in one run: reading the whole
// input with all threads and writing as many fresh output bytes. Contestants
// take turns; every result is checked before a figure is reported (equal bytes
// in every round).
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <filesystem>
#include <iostream>
#include <map>
#include <thread>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
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

// A plain file; no fsync, as in the copy limit.
class PlainFile : public ByteSink {
 public:
  explicit PlainFile(const std::string& path)
      : fd_(::open(path.c_str(), O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC,
                   0600)) {}
  ~PlainFile() override { ::close(fd_); }
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    size_t done = 0;
    while (done < bytes.size()) {
      const ssize_t n = ::pwrite(fd_, bytes.data() + done, bytes.size() - done,
                                 static_cast<off_t>(offset + done));
      if (n <= 0) return ErrnoToStatus(errno, "writing the benchmark's output");
      done += static_cast<size_t>(n);
    }
    return absl::OkStatus();
  }

 private:
  const int fd_;
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

// Reads everything with `threads` threads and writes `out_bytes` fresh bytes.
absl::StatusOr<double> CopyLimit(ByteSource& bin, uint64_t out_bytes,
                                 int threads, const std::string& out_path) {
  std::filesystem::remove(out_path);
  const double start = Seconds();
  PlainFile out(out_path);
  constexpr uint64_t kBlock = 1 << 20;
  const uint64_t reads = (bin.size_bytes() + kBlock - 1) / kBlock;
  const uint64_t writes = (out_bytes + kBlock - 1) / kBlock;
  const auto executor = MakeTbbExecutor(threads);
  OVPRESS_RETURN_IF_ERROR(executor->ParallelFor(reads, [&](size_t i) {
    thread_local std::vector<std::byte> buffer(kBlock);
    const uint64_t at = i * kBlock;
    const uint64_t size = std::min(kBlock, bin.size_bytes() - at);
    absl::Status status =
        bin.ReadAt(at, std::span<std::byte>(buffer.data(), size));
    // Every line of the cache is looked at once, as a kernel would.
    uint64_t sum = 0;
    for (size_t k = 0; k < size; k += 64) {
      sum += static_cast<uint64_t>(buffer[k]);
    }
    if (sum == ~uint64_t{0}) return absl::InternalError("impossible");
    // Writes are spread between the reads.
    const uint64_t first = i * writes / reads;
    const uint64_t last = (i + 1) * writes / reads;
    for (uint64_t w = first; w < last && status.ok(); ++w) {
      status = out.WriteAt(
          w * kBlock,
          std::span<const std::byte>(buffer.data(),
                                     std::min(kBlock, out_bytes - w * kBlock)));
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

absl::Status Main(const std::string& in_xml, const std::string& work,
                  int rounds, int threads, bool json, const std::string& only) {
  const std::string in_bin = in_xml.substr(0, in_xml.size() - 4) + ".bin";
  OVPRESS_ASSIGN_OR_RETURN(const std::string xml,
                           ReadSmallFile(in_xml, IrLimits().xml_bytes_max));
  OVPRESS_ASSIGN_OR_RETURN(const auto bin, OpenFileSource(in_bin));
  if (threads == 0)
    threads = static_cast<int>(std::thread::hardware_concurrency());
  std::vector<Case> cases = {
      {"int8_asym", {.mode = Mode::kInt8Asym}},
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
  const std::string out_path = work + "/ovpress-bench.bin";
  nlohmann::ordered_json report;
  report["input_bytes"] = bin->size_bytes();
  report["threads"] = threads;
  report["rounds"] = rounds;
  if (!json) {
    std::cout << absl::StrFormat(
        "input %.2f GB, %d threads, %d rounds, medians; seconds\n%-26s %9s "
        "%10s %7s %9s\n",
        static_cast<double>(bin->size_bytes()) / 1e9, threads, rounds, "mode",
        "ovpress", "copy limit", "ratio", "GB/s");
  }
  for (const Case& c : cases) {
    if (!only.empty() && c.name.find(only) == std::string::npos) continue;
    std::vector<double> ours, limit, ratios;
    uint64_t fingerprint = 0;
    uint64_t out_bytes = 0;
    // One round more than counted: the first warms the page cache up.
    for (int round = 0; round <= rounds; ++round) {
      std::filesystem::remove(out_path);
      const double start = Seconds();
      {
        OVPRESS_ASSIGN_OR_RETURN(const auto compression,
                                 Compression::Create(xml, c.options));
        PlainFile out(out_path);
        const auto executor = MakeTbbExecutor(threads);
        RunOptions run;
        run.executor = executor.get();
        if (compression->needs_scores()) {
          OVPRESS_RETURN_IF_ERROR(compression->ComputeScores(*bin, run));
        }
        OVPRESS_RETURN_IF_ERROR(compression->Run(*bin, out, run));
        (void)compression->OutputXml();
        out_bytes = compression->output_bin_bytes();
      }
      const double took = Seconds() - start;
      OVPRESS_ASSIGN_OR_RETURN(const uint64_t now, Fingerprint(out_path));
      if (round > 0 && now != fingerprint) {
        return absl::InternalError(absl::StrCat(c.name, ": rounds differ"));
      }
      fingerprint = now;
      OVPRESS_ASSIGN_OR_RETURN(const double copy,
                               CopyLimit(*bin, out_bytes, threads, out_path));
      if (round == 0) continue;
      ours.push_back(took);
      limit.push_back(copy);
      ratios.push_back(took / copy);
    }
    if (json) {
      report["modes"].push_back({{"mode", c.name},
                                 {"seconds", Median(ours)},
                                 {"copy_limit_seconds", Median(limit)},
                                 {"ratio", Median(ratios)},
                                 {"output_bytes", out_bytes}});
    } else {
      std::cout << absl::StrFormat("%-26s %9.3f %10.3f %7.2f %9.2f\n", c.name,
                                   Median(ours), Median(limit), Median(ratios),
                                   static_cast<double>(bin->size_bytes()) /
                                       1e9 / Median(ours))
                << std::flush;
    }
  }
  std::filesystem::remove(out_path);
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
  int rounds = 5, threads = 0;
  bool json = false;
  app.add_option("input", input, "An .xml, e.g. from make_ir")->required();
  app.add_option("--work", work, "Where the outputs go")->capture_default_str();
  app.add_option("--rounds", rounds)->capture_default_str();
  app.add_option("--threads", threads, "0: all")->capture_default_str();
  app.add_option("--only", only, "Modes whose name holds this text");
  app.add_flag("--json", json);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status =
      ovpress::Main(input, work, rounds, threads, json, only);
  if (!status.ok()) {
    std::cerr << "engine_bench: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
