// The kernels alone, on one thread and one window of f16 weights: nanoseconds
// a weight for each mode and vector target, beside the plain scalar code. The
// bytes of both are compared before a figure is reported.
#include <algorithm>
#include <chrono>
#include <cstring>
#include <iostream>
#include <random>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"
#include "core/quant/kernels.h"
#include "hwy/highway.h"
#include "hwy/targets.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

void Use(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

struct Block {
  ElementType type = ElementType::kF16;
  size_t rows = 0;
  size_t length = 0;
  std::vector<std::byte> weights;
};

Block MakeBlock(ElementType type, size_t rows, size_t length) {
  std::mt19937 random(1);
  std::normal_distribution<float> normal(0.0f, 0.02f);
  std::vector<float> values(rows * length);
  for (float& value : values) value = normal(random);
  Block block{type, rows, length, {}};
  block.weights.resize(values.size() *
                       static_cast<size_t>(BitsPerElement(type)) / 8);
  FromFloat(type, values.data(), values.size(), block.weights.data());
  return block;
}

struct Output {
  std::vector<float> step;
  std::vector<uint8_t> zero_point;
  std::vector<std::byte> scales;
  std::vector<std::byte> codes;
};

// What the engine does with a window between reading and writing. `plain` takes
// the scalar code.
void Run(const Encoding& encoding, const Block& block, bool plain,
         Output* out) {
  const bool asym = ModeTraitsOf(encoding.mode).zero_point_per_group;
  (plain ? reference::QuantizeRows : QuantizeRows)(
      encoding, block.weights.data(), block.rows, block.length,
      out->step.data(), asym ? out->zero_point.data() : nullptr,
      out->codes.data());
  StoreScales(encoding, out->step.data(), block.rows, 1.0f, out->scales.data());
}

Output MakeOutput(const Block& block) {
  Output out;
  out.step.resize(block.rows);
  out.zero_point.resize(block.rows);
  out.scales.resize(block.rows * 2);
  out.codes.resize(block.rows * block.length + 64);
  return out;
}

// Nanoseconds a weight: the fastest of many runs, for what else happens on the
// machine only ever adds.
double Measure(const Encoding& encoding, const Block& block, bool plain,
               double seconds) {
  Output out = MakeOutput(block);
  double best = 1e9;
  const double end = Seconds() + seconds;
  do {
    const double start = Seconds();
    Run(encoding, block, plain, &out);
    best = std::min(best, Seconds() - start);
  } while (Seconds() < end);
  return best * 1e9 / static_cast<double>(block.rows * block.length);
}

absl::Status Main(double seconds, ElementType type, const std::string& only,
                  bool all_targets, bool json) {
  constexpr size_t kWeights = 1 << 18;
  nlohmann::ordered_json report;
  if (!json) {
    std::cout << absl::StrFormat("%-14s %7s %-10s %10s %10s %10s\n", "mode",
                                 "group", "target", "ns/weight", "plain",
                                 "x int4_sym");
  }
  std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  if (!all_targets) targets.resize(1);  // the best comes first
  for (const int64_t target : targets) {
    double int4_sym = 0;
    for (const Mode mode :
         {Mode::kInt4Sym, Mode::kInt4Asym, Mode::kInt8Asym, Mode::kInt8Sym,
          Mode::kInt3Sym, Mode::kInt2Sym, Mode::kNf4, Mode::kFp4,
          Mode::kFp8E4m3, Mode::kMxfp4, Mode::kMxfp8E4m3, Mode::kNvfp4,
          Mode::kCb4}) {
      const ModeTraits& traits = ModeTraitsOf(mode);
      const std::string name(traits.name);
      if (mode != Mode::kInt4Sym && !only.empty() &&
          name.find(only) == std::string::npos) {
        continue;
      }
      const size_t length = traits.default_group_size > 0
                                ? static_cast<size_t>(traits.default_group_size)
                                : 2048;
      const Block block = MakeBlock(type, kWeights / length, length);
      Encoding encoding{mode, Numerics::kOpenVino, type, nullptr};
      if (mode == Mode::kCb4) encoding.codebook = &Cb4Codebook();
      Use(target);
      Output fast = MakeOutput(block);
      Output slow = MakeOutput(block);
      Run(encoding, block, false, &fast);
      Run(encoding, block, true, &slow);
      if (fast.codes != slow.codes || fast.scales != slow.scales ||
          fast.zero_point != slow.zero_point) {
        return absl::InternalError(
            absl::StrCat(name,
                         ": the vector code's bytes are not the plain "
                         "code's"));
      }
      const double ours = Measure(encoding, block, false, seconds);
      const double plain = Measure(encoding, block, true, seconds);
      if (mode == Mode::kInt4Sym) int4_sym = ours;
      if (json) {
        report.push_back({{"mode", name},
                          {"group_size", length},
                          {"target", hwy::TargetName(target)},
                          {"ns_per_weight", ours},
                          {"plain_ns_per_weight", plain},
                          {"relative_to_int4_sym", ours / int4_sym}});
      } else {
        std::cout << absl::StrFormat("%-14s %7d %-10s %10.3f %10.3f %10.2f\n",
                                     name, length, hwy::TargetName(target),
                                     ours, plain, ours / int4_sym)
                  << std::flush;
      }
    }
  }
  if (json) std::cout << report.dump(2) << "\n";
  return absl::OkStatus();
}

}  // namespace
}  // namespace ovpress

int main(int argc, char** argv) {
  CLI::App app{"The kernels alone, one thread", "kernel_bench"};
  double seconds = 0.2;
  std::string only, type = "f16";
  bool json = false, all_targets = false;
  app.add_option("--seconds", seconds, "For each figure")
      ->capture_default_str();
  app.add_option("--only", only, "Modes whose name holds this text");
  app.add_option("--type", type, "Of the weights: f16, bf16 or f32")
      ->check(CLI::IsMember({"f16", "bf16", "f32"}))
      ->capture_default_str();
  app.add_flag("--all-targets", all_targets, "Not only the best one");
  app.add_flag("--json", json);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status =
      ovpress::Main(seconds,
                    type == "f16"    ? ovpress::ElementType::kF16
                    : type == "bf16" ? ovpress::ElementType::kBf16
                                     : ovpress::ElementType::kF32,
                    only, all_targets, json);
  if (!status.ok()) {
    std::cerr << "kernel_bench: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
