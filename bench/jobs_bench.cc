// How jobs share the machine: eight at once against the same eight one after
// another, and a small job beside a huge one against the small one alone. The
// scheduler and the engine of the server without network and store.
//
//   make_ir big --layers 18; make_ir huge --layers 200 --sparse
//   make_ir small --layers 1 --hidden 512 --intermediate 1536 --vocabulary 2000
//   jobs_bench --model big.xml --huge huge.xml --small small.xml
#include <algorithm>
#include <atomic>
#include <chrono>
#include <iostream>
#include <string>
#include <thread>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "core/engine/compression.h"
#include "nlohmann/json.hpp"
#include "server/jobs/fair_executor.h"

namespace ovpress {
namespace {

struct Flags {
  std::string model;
  std::string huge;
  std::string small;
  int jobs = 8;
  int rounds = 3;
  int threads = 0;
  bool json = false;
};

double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Adds the bytes up, so that rounds can be compared, and keeps none: the disk
// is not what is shared here.
class SumSink final : public ByteSink {
 public:
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    uint64_t sum = offset * 0x9E3779B97F4A7C15u;
    for (size_t i = 0; i < bytes.size(); i += 64) {
      sum += static_cast<uint64_t>(bytes[i]) * (offset + i + 1);
    }
    sum_ += sum;
    return absl::OkStatus();
  }
  uint64_t sum() const { return sum_; }

 private:
  std::atomic<uint64_t> sum_{0};
};

struct Input {
  std::string xml;
  std::unique_ptr<ByteSource> bin;
};

absl::StatusOr<Input> OpenInput(const std::string& path) {
  Input input;
  OVPRESS_ASSIGN_OR_RETURN(input.xml, ReadSmallFile(path, 256 << 20));
  OVPRESS_ASSIGN_OR_RETURN(input.bin, OpenFileSource(BinPathOf(path)));
  return input;
}

// One job on a view of its own; returns what its output adds up to.
absl::StatusOr<uint64_t> RunJob(FairExecutor* pool, const Input& input,
                                const std::atomic<bool>* stop) {
  OVPRESS_ASSIGN_OR_RETURN(
      const std::unique_ptr<Compression> compression,
      Compression::Create(input.xml, {.mode = Mode::kInt8Asym}));
  const std::unique_ptr<Executor> view = pool->MakeView(1);
  SumSink out;
  OVPRESS_RETURN_IF_ERROR(compression->Run(
      *input.bin, out, {.executor = view.get(), .stop = stop}));
  return out.sum();
}

absl::StatusOr<double> TimeJobs(FairExecutor* pool, const Input& input,
                                int jobs, bool at_once, uint64_t* sum) {
  std::vector<absl::StatusOr<uint64_t>> results(static_cast<size_t>(jobs),
                                                absl::StatusOr<uint64_t>(0));
  const double start = Seconds();
  std::vector<std::thread> threads;
  for (auto& result : results) {
    const auto run = [&result, pool, &input] {
      result = RunJob(pool, input, nullptr);
    };
    if (at_once) {
      threads.emplace_back(run);
    } else {
      run();
    }
  }
  for (std::thread& thread : threads) thread.join();
  const double took = Seconds() - start;
  for (const auto& result : results) {
    OVPRESS_RETURN_IF_ERROR(result.status());
    if (*sum == 0) *sum = *result;
    if (*result != *sum) return absl::InternalError("two jobs differ");
  }
  return took;
}

absl::Status CompareThroughput(const Flags& flags, FairExecutor* pool,
                               nlohmann::ordered_json* report) {
  OVPRESS_ASSIGN_OR_RETURN(const Input input, OpenInput(flags.model));
  std::vector<double> serial, parallel, ratio;
  uint64_t sum = 0;
  OVPRESS_RETURN_IF_ERROR(
      TimeJobs(pool, input, 1, false, &sum).status());  // warms up
  for (int round = 0; round < flags.rounds; ++round) {
    OVPRESS_ASSIGN_OR_RETURN(const double one,
                             TimeJobs(pool, input, flags.jobs, false, &sum));
    OVPRESS_ASSIGN_OR_RETURN(const double all,
                             TimeJobs(pool, input, flags.jobs, true, &sum));
    serial.push_back(one);
    parallel.push_back(all);
    ratio.push_back(one / all);
  }
  (*report)["jobs"] = flags.jobs;
  (*report)["one_after_another_seconds"] = Median(serial);
  (*report)["at_once_seconds"] = Median(parallel);
  (*report)["throughput_ratio"] = Median(ratio);
  return absl::OkStatus();
}

absl::Status CompareLatency(const Flags& flags, FairExecutor* pool,
                            nlohmann::ordered_json* report) {
  OVPRESS_ASSIGN_OR_RETURN(const Input small, OpenInput(flags.small));
  OVPRESS_ASSIGN_OR_RETURN(const Input huge, OpenInput(flags.huge));
  std::vector<double> alone, beside, ratio;
  for (int round = 0; round < flags.rounds; ++round) {
    uint64_t sum = 0;
    OVPRESS_ASSIGN_OR_RETURN(const double one,
                             TimeJobs(pool, small, 1, false, &sum));
    std::atomic<bool> stop{false};
    absl::Status huge_status;
    std::thread other(
        [&] { huge_status = RunJob(pool, huge, &stop).status(); });
    // Let it get into its stride.
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    const absl::StatusOr<double> shared = TimeJobs(pool, small, 1, false, &sum);
    stop = true;
    other.join();
    OVPRESS_RETURN_IF_ERROR(shared.status());
    if (!absl::IsCancelled(huge_status)) {
      return absl::FailedPreconditionError(
          absl::StrCat("the huge job did not outlast the small one: ",
                       huge_status.message()));
    }
    alone.push_back(one);
    beside.push_back(*shared);
    ratio.push_back(*shared / one);
  }
  (*report)["small_bytes"] = small.bin->size_bytes();
  (*report)["huge_bytes"] = huge.bin->size_bytes();
  (*report)["small_alone_seconds"] = Median(alone);
  (*report)["small_beside_huge_seconds"] = Median(beside);
  (*report)["small_ratio"] = Median(ratio);
  return absl::OkStatus();
}

absl::Status Main(const Flags& flags) {
  const std::unique_ptr<FairExecutor> pool =
      FairExecutor::Create({.threads = flags.threads});
  nlohmann::ordered_json report;
  report["threads"] = pool->threads();
  report["rounds"] = flags.rounds;
  if (!flags.model.empty()) {
    OVPRESS_RETURN_IF_ERROR(CompareThroughput(flags, pool.get(), &report));
  }
  if (!flags.huge.empty() && !flags.small.empty()) {
    OVPRESS_RETURN_IF_ERROR(CompareLatency(flags, pool.get(), &report));
  }
  if (flags.json) {
    std::cout << report.dump(2) << "\n";
    return absl::OkStatus();
  }
  for (const auto& [name, value] : report.items()) {
    std::cout << absl::StrFormat("%-28s %s\n", name, value.dump());
  }
  return absl::OkStatus();
}

}  // namespace
}  // namespace ovpress

int main(int argc, char** argv) {
  CLI::App app{"How jobs share the machine", "jobs_bench"};
  ovpress::Flags flags;
  app.add_option("--model", flags.model, "An .xml for the jobs at once");
  app.add_option("--huge", flags.huge, "The .xml of the huge job");
  app.add_option("--small", flags.small, "The .xml of the small one");
  app.add_option("--jobs", flags.jobs)->capture_default_str();
  app.add_option("--rounds", flags.rounds)->capture_default_str();
  app.add_option("--threads", flags.threads, "0: all")->capture_default_str();
  app.add_flag("--json", flags.json);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = ovpress::Main(flags);
  if (!status.ok()) {
    std::cerr << "jobs_bench: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
