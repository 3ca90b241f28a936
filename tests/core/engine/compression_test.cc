// Whole runs in memory: the bytes depend on model and options only; errors are
// single, early and name what is wrong.
#include "core/engine/compression.h"

#include <atomic>
#include <limits>
#include <mutex>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hwy/highway.h"
#include "hwy/targets.h"
#include "tests/testing/ir_builder.h"

namespace ovpress {
namespace {

using ::ovpress::testing::IrBuilder;
using ::testing::HasSubstr;

class MemorySink : public ByteSink {
 public:
  explicit MemorySink(size_t size) : bytes_(size, '\xAA') {}
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (offset + bytes.size() > bytes_.size()) {
      return absl::InternalError("write beyond the planned size");
    }
    if (!bytes.empty()) {
      std::memcpy(bytes_.data() + offset, bytes.data(), bytes.size());
    }
    return absl::OkStatus();
  }
  const std::string& bytes() const { return bytes_; }

 private:
  std::mutex mutex_;
  std::string bytes_;
};

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

struct Output {
  std::string xml;
  std::string bin;
  Report report;
};

absl::StatusOr<Output> Compress(const IrBuilder& ir,
                                const CompressionOptions& options,
                                Executor* executor,
                                uint64_t budget = kDefaultMemoryBudgetBytes) {
  auto compression = Compression::Create(ir.Xml(), options);
  if (!compression.ok()) return compression.status();
  const auto source = MakeMemorySource(Bytes(ir.Bin()));
  RunOptions run;
  run.executor = executor;
  run.memory_budget_bytes = budget;
  run.measure_error = true;
  if ((*compression)->needs_scores()) {
    const absl::Status status = (*compression)->ComputeScores(*source, run);
    if (!status.ok()) return status;
  }
  MemorySink sink((*compression)->output_bin_bytes());
  const absl::Status status = (*compression)->Run(*source, sink, run);
  if (!status.ok()) return status;
  EXPECT_EQ((*compression)->output_prefix_bytes(), sink.bytes().size());
  return Output{(*compression)->OutputXml(), sink.bytes(),
                (*compression)->report()};
}

// Weights in every layout: rows, columns, three axes, a convolution; odd sizes,
// so that codes of regions do not end on bytes; larger and smaller than a
// window of the least budget.
IrBuilder AllLayouts() {
  IrBuilder ir;
  auto x = ir.Parameter("x", {-1, 513});
  x = ir.MatMul("rows", x,
                ir.Weights("w_rows", ElementType::kF32, {1031, 513}, 1), false,
                true, {-1, 1031});
  x = ir.MatMul("columns", x,
                ir.Weights("w_columns", ElementType::kF32, {1031, 1027}, 2),
                false, false, {-1, 1027});
  x = ir.MatMul(
      "half", x,
      ir.Convert("c", ir.Weights("w_half", ElementType::kF16, {640, 1027}, 3),
                 ElementType::kF32),
      false, true, {-1, 640});
  x = ir.MatMul("batch", x,
                ir.Weights("w_batch", ElementType::kF32, {3, 640, 1023}, 4),
                false, false, {3, -1, 1023});
  x = ir.MatMul("last", x,
                ir.Weights("w_last", ElementType::kBf16, {33, 1023}, 5), false,
                true, {3, -1, 33});
  ir.Result("y", x);
  return ir;
}

TEST(Compression, BytesDoNotDependOnThreadsOrBudget) {
  const IrBuilder ir = AllLayouts();
  const CompressionOptions options[] = {
      {.mode = Mode::kInt8Asym},
      {.mode = Mode::kInt8Sym},
      {.mode = Mode::kInt4Asym, .group_size = -1},
      {.mode = Mode::kInt4Sym, .group_size = -1, .all_layers = true},
      {.mode = Mode::kInt4Asym, .ratio = 0.6, .group_size = -1},
      {.mode = Mode::kInt3Sym, .group_size = -1},
      {.mode = Mode::kInt2Sym, .group_size = -1},
      {.mode = Mode::kNf4, .ratio = 0.7, .group_size = -1}};
  const auto serial = MakeSerialExecutor();
  const auto two = MakeThreadsExecutor(2);
  const auto many = MakeTbbExecutor(16);
  for (const CompressionOptions& option : options) {
    SCOPED_TRACE(CanonicalOptions(option));
    const auto reference = Compress(ir, option, serial.get());
    ASSERT_TRUE(reference.ok()) << reference.status();
    const auto other = Compress(ir, option, two.get(), kMinMemoryBudgetBytes);
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_EQ(reference->bin, other->bin);
    EXPECT_EQ(reference->xml, other->xml);
    // The smallest windows: large weights are read in pieces.
    const auto third = Compress(ir, option, many.get(), kMinMemoryBudgetBytes);
    ASSERT_TRUE(third.ok()) << third.status();
    EXPECT_EQ(reference->bin, third->bin);
  }
}

// From the scores to the last byte of every mode, weights on both sides of
// 10,000 elements, an awq rescale among them.
TEST(Compression, BytesDoNotDependOnTheInstructionSet) {
  IrBuilder ir;
  auto x = ir.Parameter("x", {-1, 96});
  x = ir.MatMul("rows", x,
                ir.Weights("w_rows", ElementType::kF32, {128, 96}, 1), false,
                true, {-1, 128});
  x = ir.Op("act", "ReLU", "opset1", "", {x}, {-1, 128});
  x = ir.MatMul("columns", x,
                ir.Weights("w_columns", ElementType::kF32, {128, 64}, 2), false,
                false, {-1, 64});
  x = ir.MatMul(
      "half", x,
      ir.Convert("c", ir.Weights("w_half", ElementType::kF16, {160, 64}, 3),
                 ElementType::kF32),
      false, true, {-1, 160});
  x = ir.MatMul("batch", x,
                ir.Weights("w_batch", ElementType::kBf16, {3, 160, 32}, 4),
                false, false, {3, -1, 32});
  ir.Result("y", x);

  auto table = std::make_shared<Codebook>();
  table->type = ElementType::kF32;
  for (int i = -20; i < 20; ++i) {
    const float value = static_cast<float>(i) / 20.0f;
    table->values.push_back(value);
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    table->stored.insert(table->stored.end(), bytes, bytes + sizeof(value));
  }
  std::vector<CompressionOptions> sets;
  for (const Mode mode : kAllModes) {
    CompressionOptions options{.mode = mode};
    if (mode == Mode::kCodebook) options.codebook = table;
    if (!ModeTraitsOf(mode).is_int8) {
      options.group_size_fallback = GroupSizeFallback::kIgnore;
      if (!ModeTraitsOf(mode).group_size_fixed) options.group_size = 32;
      options.backup_mode = BackupMode::kInt8Sym;
      options.ratio = 0.8;
      options.all_layers = true;
    }
    sets.push_back(options);
  }
  sets.push_back({.mode = Mode::kInt4Asym, .group_size = -1, .awq = true});
  const std::unique_ptr<Executor> serial = MakeSerialExecutor();
  for (const CompressionOptions& options : sets) {
    std::string first;
    for (const int64_t target : hwy::SupportedAndGeneratedTargets()) {
      hwy::SetSupportedTargetsForTest(target);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      const auto result = Compress(ir, options, serial.get());
      hwy::SetSupportedTargetsForTest(0);
      hwy::GetChosenTarget().Update(hwy::SupportedTargets());
      ASSERT_TRUE(result.ok()) << result.status();
      const std::string bytes = result->xml + result->bin;
      if (first.empty()) first = bytes;
      EXPECT_TRUE(bytes == first) << ModeTraitsOf(options.mode).name << " on "
                                  << hwy::TargetName(target);
    }
  }
}

TEST(Compression, StreamedInputGivesTheSameBytes) {
  const IrBuilder ir = AllLayouts();
  const CompressionOptions option_sets[] = {
      {.mode = Mode::kInt4Asym, .group_size = -1},
      {.mode = Mode::kNvfp4, .group_size_fallback = GroupSizeFallback::kIgnore},
      {.mode = Mode::kInt4Sym, .group_size = -1, .awq = true}};
  for (const CompressionOptions& options : option_sets) {
    SCOPED_TRACE(CanonicalOptions(options));
    const auto executor = MakeThreadsExecutor(2);
    const auto whole = Compress(ir, options, executor.get());
    ASSERT_TRUE(whole.ok()) << whole.status();

    // Bytes beyond what has arrived, and those that are needed no more, are
    // unreadable.
    class Arriving : public ByteSource {
     public:
      explicit Arriving(std::span<const std::byte> bytes)
          : all_(MakeMemorySource(bytes)) {}
      uint64_t size_bytes() const override { return all_->size_bytes(); }
      absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override {
        if (offset + out.size() > available) {
          return absl::InternalError("read what has not arrived");
        }
        if (offset < dropped && !out.empty()) {
          return absl::InternalError("read what is needed no more");
        }
        return all_->ReadAt(offset, out);
      }
      std::atomic<uint64_t> available{0};
      std::atomic<uint64_t> dropped{0};

     private:
      std::unique_ptr<ByteSource> all_;
    };
    Arriving source(Bytes(ir.Bin()));
    auto compression = Compression::Create(ir.Xml(), options);
    ASSERT_TRUE(compression.ok()) << compression.status();
    RunOptions run;
    run.executor = executor.get();
    run.memory_budget_bytes = kMinMemoryBudgetBytes;
    MemorySink sink((*compression)->output_bin_bytes());
    uint64_t prefix = 0;
    bool some_early = false;
    bool some_dropped = false;
    while (source.available < source.size_bytes()) {
      source.available = std::min(source.size_bytes(),
                                  source.available.load() + uint64_t{123457});
      const absl::Status status =
          (*compression)->RunAvailable(source, source.available, sink, run);
      ASSERT_TRUE(status.ok()) << status;
      const uint64_t now = (*compression)->output_prefix_bytes();
      ASSERT_GE(now, prefix);
      // What is called final is final.
      ASSERT_EQ(sink.bytes().substr(prefix, now - prefix),
                whole->bin.substr(prefix, now - prefix));
      if (now > 0 && source.available < source.size_bytes()) some_early = true;
      prefix = now;
      ASSERT_GE((*compression)->input_needed_from(), source.dropped);
      source.dropped = (*compression)->input_needed_from();
      if (source.dropped > 0 && source.available < source.size_bytes()) {
        some_dropped = true;
      }
    }
    EXPECT_TRUE(some_early);
    EXPECT_TRUE(some_dropped);
    EXPECT_EQ(prefix, sink.bytes().size());
    EXPECT_EQ(sink.bytes(), whole->bin);
  }
}

TEST(Compression, KeptConstantsAreCopiedAndSharedOnesStoredOnce) {
  IrBuilder ir;
  const auto x = ir.Parameter("x", {-1, 4});
  const auto w = ir.Weights("w", ElementType::kF32, {4, 4}, 1);
  const auto y = ir.MatMul("mm", x, w, false, true, {-1, 4});
  const std::string bias(16, '\x01');
  const auto a = ir.Constant("bias_a", ElementType::kF32, {1, 4}, bias);
  const auto b = ir.ConstantAt("bias_b", ElementType::kF32, {1, 4},
                               ir.Bin().size() - 16, 16);
  const auto s = ir.Op("add_a", "Add", "opset1",
                       "<data auto_broadcast=\"numpy\"/>", {y, a}, {-1, 4});
  const auto t = ir.Op("add_b", "Add", "opset1",
                       "<data auto_broadcast=\"numpy\"/>", {s, b}, {-1, 4});
  ir.Result("r", t);
  const auto executor = MakeSerialExecutor();
  const auto output = Compress(ir, {.mode = Mode::kInt8Asym}, executor.get());
  ASSERT_TRUE(output.ok()) << output.status();
  // 16 codes, 4 zero points, 4 f16 scales, one bias.
  EXPECT_EQ(output->bin.size(), 16u + 4 + 8 + 16);
  EXPECT_EQ(output->bin.substr(28), bias);
}

TEST(Compression, RefusesNonFiniteWeightsByName) {
  for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                          std::numeric_limits<float>::infinity(),
                          -std::numeric_limits<float>::infinity()}) {
    for (const bool transposed : {false, true}) {
      IrBuilder ir;
      const auto x = ir.Parameter("x", {-1, 8});
      std::string bytes(8 * 8 * 4, '\0');
      std::memcpy(bytes.data() + 4 * 37, &bad, 4);
      const auto w =
          ir.Constant("the_weight", ElementType::kF32, {8, 8}, bytes);
      ir.Result("r", ir.MatMul("mm", x, w, false, transposed, {-1, 8}));
      const auto executor = MakeSerialExecutor();
      const auto output =
          Compress(ir, {.mode = Mode::kInt8Asym}, executor.get());
      EXPECT_EQ(output.status().code(), absl::StatusCode::kInvalidArgument);
      EXPECT_THAT(std::string(output.status().message()),
                  HasSubstr("'the_weight' has NaN or infinite"));
      EXPECT_TRUE(Compress(ir,
                           {.mode = Mode::kInt8Asym, .allow_non_finite = true},
                           executor.get())
                      .ok());
    }
  }
}

TEST(Compression, GroupSizeThatDoesNotDivideFollowsTheFallback) {
  IrBuilder ir;
  auto x = ir.Parameter("x", {-1, 96});
  x = ir.MatMul("a", x, ir.Weights("wa", ElementType::kF32, {100, 96}, 1),
                false, true, {-1, 100});
  x = ir.MatMul("b", x, ir.Weights("wb", ElementType::kF32, {64, 100}, 2),
                false, true, {-1, 64});
  ir.Result("r", x);
  CompressionOptions options{
      .mode = Mode::kInt4Sym, .group_size = 64, .all_layers = true};
  auto compression = Compression::Create(ir.Xml(), options);
  EXPECT_EQ(compression.status().code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(
      std::string(compression.status().message()),
      HasSubstr("group size 64 does not divide the channel size of 2 "
                "layers: 'a' (channel size 96), 'b' (channel size 100)"));
  options.group_size_fallback = GroupSizeFallback::kIgnore;
  compression = Compression::Create(ir.Xml(), options);
  ASSERT_TRUE(compression.ok());
  EXPECT_THAT((*compression)->PlanText(), HasSubstr("[100,96] -> kept"));
  options.group_size_fallback = GroupSizeFallback::kAdjust;
  compression = Compression::Create(ir.Xml(), options);
  ASSERT_TRUE(compression.ok());
  // 96 = 32 * 3; 100 = 4 * 25 has no power of two of at least 32.
  EXPECT_THAT((*compression)->PlanText(),
              HasSubstr("[100,96] -> int4_sym g32"));
  EXPECT_THAT((*compression)->PlanText(), HasSubstr("[64,100] -> int8_asym"));
}

TEST(Compression, IgnoredPatternsMatchAtTheStartAndAreRe2) {
  IrBuilder ir;
  auto x = ir.Parameter("x", {-1, 4});
  x = ir.MatMul("first_mm", x, ir.Weights("w1", ElementType::kF32, {4, 4}, 1),
                false, true, {-1, 4});
  x = ir.MatMul("mm_second", x, ir.Weights("w2", ElementType::kF32, {4, 4}, 2),
                false, true, {-1, 4});
  ir.Result("r", x);
  CompressionOptions options;
  options.ignored.patterns = {"mm"};  // a prefix, not a search
  auto compression = Compression::Create(ir.Xml(), options);
  ASSERT_TRUE(compression.ok()) << compression.status();
  EXPECT_THAT((*compression)->PlanText(),
              HasSubstr("f32[4,4] -> int8_asym  w1"));
  EXPECT_THAT((*compression)->PlanText(), HasSubstr("f32[4,4] -> kept  w2"));
  for (const char* pattern : {"(?=mm)", "(a", "nothing_has_this_name"}) {
    options.ignored.patterns = {pattern};
    compression = Compression::Create(ir.Xml(), options);
    EXPECT_EQ(compression.status().code(), absl::StatusCode::kInvalidArgument)
        << pattern;
    EXPECT_THAT(std::string(compression.status().message()),
                HasSubstr(pattern));
  }
  options.ignored.validate = false;
  EXPECT_TRUE(Compression::Create(ir.Xml(), options).ok());
}

TEST(Compression, ConstantBeyondTheFileIsDataLoss) {
  IrBuilder ir;
  const auto x = ir.Parameter("x", {-1, 4});
  const auto w = ir.Weights("w", ElementType::kF32, {4, 4}, 1);
  ir.Result("r", ir.MatMul("mm", x, w, false, true, {-1, 4}));
  auto compression = Compression::Create(ir.Xml(), {});
  ASSERT_TRUE(compression.ok());
  const std::string cut = ir.Bin().substr(0, 63);
  const auto source = MakeMemorySource(Bytes(cut));
  const auto executor = MakeSerialExecutor();
  RunOptions run;
  run.executor = executor.get();
  MemorySink sink((*compression)->output_bin_bytes());
  const absl::Status status = (*compression)->Run(*source, sink, run);
  EXPECT_EQ(status.code(), absl::StatusCode::kDataLoss);
  EXPECT_THAT(std::string(status.message()), HasSubstr("'w'"));
}

TEST(Compression, StopFlagEndsTheRun) {
  const IrBuilder ir = AllLayouts();
  auto compression = Compression::Create(ir.Xml(), {.mode = Mode::kInt8Asym});
  ASSERT_TRUE(compression.ok());
  const auto source = MakeMemorySource(Bytes(ir.Bin()));
  const auto executor = MakeThreadsExecutor(2);
  std::atomic<bool> stop{true};
  RunOptions run;
  run.executor = executor.get();
  run.stop = &stop;
  MemorySink sink((*compression)->output_bin_bytes());
  EXPECT_EQ((*compression)->Run(*source, sink, run).code(),
            absl::StatusCode::kCancelled);
}

TEST(Compression, EstimateBoundsTheResult) {
  const IrBuilder ir = AllLayouts();
  const CompressionOptions options{
      .mode = Mode::kInt4Asym, .ratio = 0.5, .group_size = -1};
  auto compression = Compression::Create(ir.Xml(), options);
  ASSERT_TRUE(compression.ok());
  const Estimate estimate = (*compression)->EstimateSizes();
  EXPECT_LT(estimate.output_bin_bytes_min, estimate.output_bin_bytes_max);
  EXPECT_TRUE(estimate.reads_weights_twice);
  const auto executor = MakeSerialExecutor();
  const auto output = Compress(ir, options, executor.get());
  ASSERT_TRUE(output.ok());
  EXPECT_GE(output->bin.size(), estimate.output_bin_bytes_min);
  EXPECT_LE(output->bin.size(), estimate.output_bin_bytes_max);
}

TEST(Compression, ReportAddsUp) {
  const IrBuilder ir = AllLayouts();
  const auto executor = MakeSerialExecutor();
  const auto output = Compress(ir, {.mode = Mode::kInt8Asym}, executor.get());
  ASSERT_TRUE(output.ok());
  const Report& report = output->report;
  ASSERT_EQ(report.weights.size(), 5u);
  uint64_t after = 0;
  for (const WeightReport& weight : report.weights) {
    after += weight.bytes_after;
    EXPECT_TRUE(weight.has_error);
    // Half a step of 255 over a range of about 8 sigma, uniform: 0.9 %.
    EXPECT_GT(weight.relative_error, 0.001);
    EXPECT_LT(weight.relative_error, 0.02);
  }
  EXPECT_EQ(after, report.bin_bytes_after);
  EXPECT_EQ(report.bin_bytes_before, ir.Bin().size());
  EXPECT_EQ(report.primary_share, 1.0);
}

}  // namespace
}  // namespace ovpress
