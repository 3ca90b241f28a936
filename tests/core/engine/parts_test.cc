// A compression that is shared out gives the bytes of one that is not: however
// many parts, whoever runs them, each output byte written once.
#include <algorithm>
#include <cstring>
#include <mutex>

#include "core/engine/compression.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/ir_builder.h"

namespace ovpress {
namespace {

using ::ovpress::testing::IrBuilder;
using ::testing::HasSubstr;
using Node = IrBuilder::Node;

// Takes writes in [begin, end) only and counts how often each byte was written.
class CountingSink : public ByteSink {
 public:
  explicit CountingSink(size_t size) : bytes_(size, '\xAA'), writes_(size, 0) {}
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (bytes.empty()) return absl::OkStatus();
    if (offset < begin || offset + bytes.size() > end) {
      return absl::InternalError("write outside of the part");
    }
    std::memcpy(bytes_.data() + offset, bytes.data(), bytes.size());
    for (size_t i = 0; i < bytes.size(); ++i) ++writes_[offset + i];
    return absl::OkStatus();
  }
  const std::string& bytes() const { return bytes_; }
  bool EachByteOnce() const {
    return std::all_of(writes_.begin(), writes_.end(),
                       [](int count) { return count == 1; });
  }
  uint64_t begin = 0;
  uint64_t end = 0;

 private:
  std::mutex mutex_;
  std::string bytes_;
  std::vector<int> writes_;
};

std::vector<uint64_t> Shape(int64_t a, int64_t b) {
  return {static_cast<uint64_t>(a), static_cast<uint64_t>(b)};
}

// Two gated blocks: of extended AWQ's matches one scales what another measures,
// and one scales two weights. A copy between the weights, odd sizes, 3-D,
// weights above 10,000 elements.
IrBuilder Chain() {
  IrBuilder ir;
  const auto linear = [&](const std::string& name, const Node& x, int64_t out,
                          int64_t in, bool transpose = true) {
    return ir.MatMul(name, x,
                     ir.Weights(name + ".w", ElementType::kF32,
                                transpose ? Shape(out, in) : Shape(in, out),
                                static_cast<uint32_t>(name.size() + 7)),
                     false, transpose, {-1, out});
  };
  const auto multiply = [&](const std::string& name, const Node& a,
                            const Node& b, int64_t size) {
    return ir.Op(name, "Multiply", "opset1", "<data auto_broadcast=\"numpy\"/>",
                 {a, b}, {-1, size});
  };
  const Node x = ir.Parameter("x", {-1, 96});
  const Node act = ir.Op("act", "ReLU", "opset1", "",
                         {linear("first", x, 64, 96)}, {-1, 64});
  const Node up = linear("up_one", act, 160, 64);
  const Node gate = ir.Op("gate_act", "Swish", "opset4", "",
                          {linear("gate", x, 160, 96)}, {-1, 160});
  const Node down =
      linear("down_three", multiply("m", gate, up, 160), 96, 160, false);
  const Node bias = ir.Constant("bias", ElementType::kF32, {1, 96},
                                std::string(96 * 4, '\x01'));
  Node y = ir.Op("add", "Add", "opset1", "<data auto_broadcast=\"numpy\"/>",
                 {down, bias}, {-1, 96});
  const Node second_gate = ir.Op("second_act", "Swish", "opset4", "",
                                 {linear("second_gate", y, 96, 96)}, {-1, 96});
  const Node second_up = linear("second_up", y, 96, 96);
  y = linear("tall", multiply("n", second_gate, second_up, 96), 33, 96);
  y = ir.MatMul("batch", y,
                ir.Weights("batch.w", ElementType::kBf16, {3, 33, 31}, 4),
                false, false, {3, -1, 31});
  y = ir.MatMul(
      "half", y,
      ir.Convert("c", ir.Weights("half.w", ElementType::kF16, {64, 31}, 3),
                 ElementType::kF32),
      false, true, {3, -1, 64});
  ir.Result("y", y);
  return ir;
}

std::unique_ptr<Compression> MakeCompression(
    const IrBuilder& ir, const CompressionOptions& options) {
  auto compression = Compression::Create(ir.Xml(), options);
  EXPECT_TRUE(compression.ok()) << compression.status();
  return compression.ok() ? *std::move(compression) : nullptr;
}

struct Fixture {
  explicit Fixture(const IrBuilder& model)
      : ir(model), source(MakeMemorySource(AsBytes(ir.Bin()))) {
    run.executor = executor.get();
    run.measure_error = true;
  }
  std::string Whole(Compression& compression) {
    if (compression.needs_scores()) {
      EXPECT_TRUE(compression.ComputeScores(*source, run).ok());
    }
    CountingSink sink(compression.output_bin_bytes());
    sink.end = sink.bytes().size();
    const absl::Status status = compression.Run(*source, sink, run);
    EXPECT_TRUE(status.ok()) << status;
    return sink.bytes();
  }
  IrBuilder ir;
  std::unique_ptr<Executor> executor = MakeThreadsExecutor(2);
  std::unique_ptr<ByteSource> source;
  RunOptions run;
};

std::vector<CompressionOptions> OptionSets() {
  std::vector<CompressionOptions> sets;
  auto table = std::make_shared<Codebook>();
  table->type = ElementType::kF32;
  for (int i = -8; i < 8; ++i) {
    const float value = static_cast<float>(i) / 8.0f;
    table->values.push_back(value);
    const auto* bytes = reinterpret_cast<const std::byte*>(&value);
    table->stored.insert(table->stored.end(), bytes, bytes + sizeof(value));
  }
  for (const Mode mode : kAllModes) {
    CompressionOptions options{.mode = mode};
    if (mode == Mode::kCodebook) options.codebook = table;
    sets.push_back(options);
    if (ModeTraitsOf(mode).is_int8) continue;
    sets.back().group_size_fallback = GroupSizeFallback::kIgnore;
    if (!ModeTraitsOf(mode).group_size_fixed) sets.back().group_size = 32;
    sets.back().all_layers = true;
    options = sets.back();
    options.ratio = 0.6;
    options.backup_mode = BackupMode::kInt8Sym;
    options.all_layers = false;
    sets.push_back(options);
  }
  for (const bool extended : {false, true}) {
    sets.push_back({.mode = Mode::kInt4Asym,
                    .group_size = -1,
                    .all_layers = true,
                    .awq = true,
                    .awq_extended = extended});
    sets.push_back({.mode = Mode::kInt4Sym,
                    .ratio = 0.7,
                    .group_size = -1,
                    .awq = true,
                    .awq_extended = extended});
  }
  return sets;
}

TEST(Parts, TogetherAreTheWhole) {
  Fixture f(Chain());
  for (const CompressionOptions& options : OptionSets()) {
    SCOPED_TRACE(CanonicalOptions(options));
    const auto reference = MakeCompression(f.ir, options);
    ASSERT_NE(reference, nullptr);
    const std::string whole = f.Whole(*reference);
    for (const size_t count : {1, 2, 3, 5, 1000}) {
      SCOPED_TRACE(count);
      // One that plans, scores and cuts, and one for each part, as on other
      // machines.
      const auto holder = MakeCompression(f.ir, options);
      std::vector<double> scores;
      if (holder->needs_scores()) {
        for (size_t at = 0; at < holder->score_count(); at += count) {
          const auto other = MakeCompression(f.ir, options);
          const auto some = other->ScorePart(
              *f.source, at, std::min(at + count, holder->score_count()),
              f.run);
          ASSERT_TRUE(some.ok()) << some.status();
          scores.insert(scores.end(), some->begin(), some->end());
        }
        ASSERT_TRUE(holder->SetScores(scores).ok());
      }
      EXPECT_EQ(holder->OutputXml(), reference->OutputXml());
      const std::vector<Part> parts = holder->Cut(count);
      ASSERT_LE(parts.size(), count);
      if (count <= 3) {
        EXPECT_EQ(parts.size(), count);
      }
      CountingSink sink(holder->output_bin_bytes());
      std::vector<PartResult> results;
      for (auto part = parts.rbegin(); part != parts.rend(); ++part) {
        const auto other = MakeCompression(f.ir, options);
        if (other->needs_scores()) {
          ASSERT_TRUE(other->SetScores(scores).ok());
        }
        sink.begin = part->output_begin;
        sink.end = part->output_end;
        auto result = other->RunPart(*f.source, *part, sink, f.run);
        ASSERT_TRUE(result.ok()) << result.status();
        results.push_back(*std::move(result));
      }
      EXPECT_TRUE(sink.EachByteOnce());
      EXPECT_TRUE(sink.bytes() == whole);
      const absl::Status set =
          holder->SetPartResults(f.source->size_bytes(), results);
      ASSERT_TRUE(set.ok()) << set;
      const Report one = reference->report();
      const Report many = holder->report();
      EXPECT_EQ(many.bin_bytes_before, one.bin_bytes_before);
      EXPECT_EQ(many.bin_bytes_after, one.bin_bytes_after);
      EXPECT_EQ(many.primary_share, one.primary_share);
      ASSERT_EQ(many.weights.size(), one.weights.size());
      for (size_t i = 0; i < one.weights.size(); ++i) {
        EXPECT_EQ(many.weights[i].to, one.weights[i].to);
        EXPECT_EQ(many.weights[i].score, one.weights[i].score);
        ASSERT_EQ(many.weights[i].has_error, one.weights[i].has_error);
        // Sums of a few thousand doubles in another order.
        EXPECT_NEAR(many.weights[i].relative_error,
                    one.weights[i].relative_error, 1e-12);
      }
    }
  }
}

TEST(Parts, AreOfAboutEqualCost) {
  IrBuilder ir;
  Node x = ir.Parameter("x", {-1, 64});
  for (int i = 0; i < 40; ++i) {
    const std::string name = "w" + std::to_string(i);
    x = ir.MatMul("mm" + name, x,
                  ir.Weights(name, ElementType::kF32, {64, 64},
                             static_cast<uint32_t>(i + 1)),
                  false, true, {-1, 64});
  }
  ir.Result("y", x);
  const auto compression = MakeCompression(ir, {.mode = Mode::kInt8Asym});
  ASSERT_NE(compression, nullptr);
  for (const size_t count : {1, 3, 7, 40}) {
    const std::vector<Part> parts = compression->Cut(count);
    ASSERT_EQ(parts.size(), count);
    uint64_t output = 0;
    for (const Part& part : parts) {
      EXPECT_EQ(part.output_begin, output);
      output = part.output_end;
      // Each end is off by half a weight at most.
      EXPECT_NEAR(static_cast<double>(part.input_bytes),
                  40.0 * 64 * 64 * 4 / static_cast<double>(count),
                  64.0 * 64 * 4);
    }
    EXPECT_EQ(output, compression->output_bin_bytes());
  }
}

// One weight with nine tenths of the bytes: no part but its own grows with it,
// and what comes behind it is one part, not many small ones.
TEST(Parts, AWeightAboveItsShareIsAPartOfItsOwn) {
  IrBuilder ir;
  Node x = ir.Parameter("x", {-1, 32});
  const auto linear = [&](const std::string& name, int64_t out, int64_t in) {
    x = ir.MatMul("mm" + name, x,
                  ir.Weights(name, ElementType::kF32, Shape(out, in), 1), false,
                  true, {-1, out});
  };
  linear("a", 32, 32);
  linear("b", 2048, 32);
  linear("c", 1, 2048);
  linear("d", 1024, 1);
  linear("e", 1, 1024);
  ir.Result("y", x);
  const auto compression = MakeCompression(ir, {.mode = Mode::kInt8Asym});
  ASSERT_NE(compression, nullptr);
  std::vector<uint64_t> bytes;
  for (const Part& part : compression->Cut(4)) {
    bytes.push_back(part.input_bytes / 4);
  }
  EXPECT_THAT(bytes,
              ::testing::ElementsAre(32 * 32, 2048 * 32, 2048 + 1024 + 1024));
}

TEST(Parts, SmallOnesAreJoined) {
  const auto compression = MakeCompression(Chain(), {.mode = Mode::kInt8Asym});
  ASSERT_NE(compression, nullptr);
  const uint64_t size = compression->output_bin_bytes();
  for (const uint64_t least :
       {uint64_t{1}, size / 9, size / 3, size, 2 * size}) {
    const std::vector<Part> parts = compression->Cut(20, least);
    uint64_t next = 0;
    uint64_t unit = 0;
    for (const Part& part : parts) {
      EXPECT_EQ(part.output_begin, next);
      EXPECT_EQ(part.unit_begin, unit);
      if (parts.size() > 1) {
        EXPECT_GE(part.output_end - part.output_begin, least);
      }
      next = part.output_end;
      unit = part.unit_end;
    }
    EXPECT_EQ(next, size);
    EXPECT_EQ(parts.size() == 1, least >= size) << least;
    // They can be run as they are.
    EXPECT_LE(parts.size(), compression->Cut(20).size());
  }
}

TEST(Parts, OfAnotherCompressionAreRefused) {
  Fixture f(Chain());
  const auto compression = MakeCompression(f.ir, {.mode = Mode::kInt8Asym});
  const auto other = MakeCompression(f.ir, {.mode = Mode::kInt8Sym});
  ASSERT_NE(compression, nullptr);
  ASSERT_NE(other, nullptr);
  CountingSink sink(compression->output_bin_bytes());
  std::vector<Part> bad = {compression->Cut(3)[1], compression->Cut(3)[1],
                           compression->Cut(3)[1], other->Cut(3)[1]};
  bad[0].unit_end = bad[0].unit_begin;
  bad[1].unit_end = ~uint64_t{0};
  ++bad[2].output_end;
  for (const Part& part : bad) {
    const auto result =
        compression->RunPart(*f.source, part, sink, f.run).status();
    EXPECT_EQ(result.code(), absl::StatusCode::kInvalidArgument);
    EXPECT_THAT(std::string(result.message()), HasSubstr("another model"));
  }
  std::vector<PartResult> results;
  for (const Part& part : compression->Cut(3)) results.push_back({part, {}});
  const auto set = [&](const std::vector<PartResult>& some) {
    return compression->SetPartResults(1, some);
  };
  EXPECT_TRUE(set(results).ok());
  EXPECT_EQ(set({results[0], results[2]}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(set({results[0], results[1]}).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(set({results[0], results[1], results[1], results[2]}).code(),
            absl::StatusCode::kInvalidArgument);
  results[0].errors.resize(1000);
  EXPECT_EQ(set(results).code(), absl::StatusCode::kInvalidArgument);
}

TEST(Parts, ScoresThatDoNotFitAreRefused) {
  Fixture f(Chain());
  const auto compression = MakeCompression(
      f.ir, {.mode = Mode::kInt4Asym, .ratio = 0.8, .group_size = -1});
  ASSERT_NE(compression, nullptr);
  ASSERT_TRUE(compression->needs_scores());
  const size_t count = compression->score_count();
  EXPECT_EQ(
      compression->ScorePart(*f.source, 0, count + 1, f.run).status().code(),
      absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(compression->ScorePart(*f.source, 2, 1, f.run).status().code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_EQ(compression->SetScores(std::vector<double>(count - 1)).code(),
            absl::StatusCode::kInvalidArgument);
  EXPECT_TRUE(compression->needs_scores());
}

}  // namespace
}  // namespace ovpress
