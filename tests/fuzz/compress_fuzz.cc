// A whole compression of a tiny hostile model: never a crash, memory within
// bounds, every output byte written once, the same bytes for other windows,
// and an OK result that our own reader reads and plans.
#include <algorithm>
#include <mutex>
#include <vector>

#include "core/base/executor.h"
#include "core/engine/compression.h"
#include "tests/fuzz/input.h"

namespace {

using namespace ovpress;  // NOLINT(google-build-using-namespace): one file

// Larger outputs are only planned: an input of a few KB cannot hold them but
// by sharing, and filling them tells nothing new.
constexpr uint64_t kOutputBytesMax = 8 << 20;

class CheckedSink final : public ByteSink {
 public:
  explicit CheckedSink(uint64_t size) : bytes_(size), writes_(size) {}
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    std::lock_guard<std::mutex> lock(mutex_);
    OVPRESS_FUZZ_ASSERT(
        offset <= bytes_.size() && bytes.size() <= bytes_.size() - offset,
        "a write beyond the planned size");
    for (size_t i = 0; i < bytes.size(); ++i) {
      OVPRESS_FUZZ_ASSERT(writes_[offset + i]++ == 0, "a byte written twice");
      bytes_[offset + i] = bytes[i];
    }
    return absl::OkStatus();
  }
  void CheckComplete() const {
    OVPRESS_FUZZ_ASSERT(std::count(writes_.begin(), writes_.end(), 1) ==
                            static_cast<ptrdiff_t>(writes_.size()),
                        "bytes that were never written");
  }
  const std::vector<std::byte>& bytes() const { return bytes_; }

 private:
  std::mutex mutex_;
  std::vector<std::byte> bytes_;
  std::vector<uint8_t> writes_;
};

struct Output {
  std::string xml;
  std::vector<std::byte> bin;
};

absl::StatusOr<Output> Run(const fuzz::ModelInput& input,
                           const CompressionOptions& options,
                           uint64_t budget_bytes, bool in_steps) {
  auto created = Compression::Create(input.xml, options);
  if (!created.ok()) return created.status();
  Compression& compression = **created;
  const auto source = MakeMemorySource(AsBytes(input.bin));
  const auto executor = MakeSerialExecutor();
  RunOptions run;
  run.executor = executor.get();
  run.memory_budget_bytes = budget_bytes;
  run.measure_error = !in_steps;
  if (compression.needs_scores()) {
    const absl::Status scored = compression.ComputeScores(*source, run);
    if (!scored.ok()) return scored;
  }
  const absl::Status ranges =
      compression.model().CheckConstantRanges(source->size_bytes());
  if (compression.output_bin_bytes() > kOutputBytesMax) return Output{};
  CheckedSink sink(compression.output_bin_bytes());
  absl::Status status;
  if (in_steps) {
    for (uint64_t at = 0; at < input.bin.size() && status.ok();
         at += 1 + input.bin.size() / 3) {
      status = compression.RunAvailable(*source, at, sink, run);
    }
  }
  if (status.ok()) status = compression.Run(*source, sink, run);
  if (!status.ok()) return status;
  OVPRESS_FUZZ_ASSERT(ranges.ok(), "ran with ranges that leave the .bin");
  sink.CheckComplete();
  OVPRESS_FUZZ_ASSERT(
      compression.output_prefix_bytes() == compression.output_bin_bytes(), "");
  (void)compression.report().ToJson();
  (void)compression.report().ToTable();
  return Output{compression.OutputXml(), sink.bytes()};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const fuzz::ModelInput input =
      fuzz::SplitModelInput({reinterpret_cast<const char*>(data), size});
  const CompressionOptions options = fuzz::OptionsFromBytes(input.options);
  const auto whole = Run(input, options, kDefaultMemoryBudgetBytes, false);
  if (!whole.ok()) {
    OVPRESS_FUZZ_ASSERT(!whole.status().message().empty(), "no message");
    OVPRESS_FUZZ_ASSERT(!absl::IsInternal(whole.status()),
                        whole.status().ToString());
    return 0;
  }
  if (whole->xml.empty()) return 0;
  const auto steps = Run(input, options, kMinMemoryBudgetBytes, true);
  OVPRESS_FUZZ_ASSERT(steps.ok(), steps.status().ToString());
  OVPRESS_FUZZ_ASSERT(steps->xml == whole->xml, "the XML depends on windows");
  OVPRESS_FUZZ_ASSERT(steps->bin == whole->bin, "bytes depend on windows");
  // Compressed models pass through: the result must read and plan.
  const auto again = Compression::Create(whole->xml, CompressionOptions());
  // Other options may ask for more than any file holds.
  OVPRESS_FUZZ_ASSERT(again.ok() || absl::IsInvalidArgument(again.status()) ||
                          absl::IsResourceExhausted(again.status()),
                      again.status().ToString());
  const auto model = Model::Parse(whole->xml);
  OVPRESS_FUZZ_ASSERT(model.ok(), model.status().ToString());
  OVPRESS_FUZZ_ASSERT(model->CheckConstantRanges(whole->bin.size()).ok(),
                      "the result's constants leave its .bin");
  return 0;
}
