// Known distances, matching, and independence of threads; over all modes the
// same error that compression measures.
#include "core/analysis/compare.h"

#include <cmath>
#include <limits>

#include "core/engine/compression.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/ir_builder.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using ::ovpress::testing::IrBuilder;
using ::ovpress::testing::StatusIs;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::SizeIs;

std::string Floats(const std::vector<float>& values) {
  std::string out(values.size() * 4, '\0');
  std::memcpy(out.data(), values.data(), out.size());
  return out;
}

// x -> MatMul `reader` with a weight [1, n].
IrBuilder OneWeight(const std::string& name, const std::vector<float>& values,
                    const std::string& reader = "mm") {
  IrBuilder ir;
  const auto x = ir.Parameter("x", {-1, static_cast<int64_t>(values.size())});
  const auto w =
      ir.Constant(name, ElementType::kF32, {1, values.size()}, Floats(values));
  ir.Result("r", ir.MatMul(reader, x, w, false, true, {-1, 1}));
  return ir;
}

absl::StatusOr<ModelComparison> Compare(const std::string& xml_a,
                                        const std::string& bin_a,
                                        const std::string& xml_b,
                                        const std::string& bin_b,
                                        int threads = 1) {
  const absl::StatusOr<Model> a = Model::Parse(xml_a);
  const absl::StatusOr<Model> b = Model::Parse(xml_b);
  EXPECT_TRUE(a.ok() && b.ok()) << a.status() << b.status();
  const auto source_a = MakeMemorySource(AsBytes(bin_a));
  const auto source_b = MakeMemorySource(AsBytes(bin_b));
  const auto executor = MakeThreadsExecutor(threads);
  return CompareModels(*a, *source_a, *b, *source_b,
                       {.executor = executor.get()});
}
absl::StatusOr<ModelComparison> Compare(const IrBuilder& a, const IrBuilder& b,
                                        int threads = 1) {
  return Compare(a.Xml(), a.Bin(), b.Xml(), b.Bin(), threads);
}

TEST(CompareModels, KnownDistance) {
  // ||w||^2 = 25, ||d - w||^2 = 0.25: a tenth, 20 dB.
  const auto result =
      Compare(OneWeight("w", {3, 4}), OneWeight("w", {3, 3.5f}));
  ASSERT_TRUE(result.ok());
  ASSERT_THAT(result->weights, SizeIs(1));
  const ComparedWeight& weight = result->weights[0];
  EXPECT_EQ(weight.a.name, "w");
  EXPECT_EQ(weight.reader, "mm");
  EXPECT_EQ(weight.reader_type, "MatMul");
  EXPECT_TRUE(weight.is_weight);
  EXPECT_EQ(weight.a.storage, "f32");
  EXPECT_EQ(weight.a.bytes, 8u);
  EXPECT_DOUBLE_EQ(weight.distance.relative_error(), 0.1);
  EXPECT_DOUBLE_EQ(weight.distance.sqnr_db(), 20.0);
  EXPECT_EQ(weight.distance.max_abs_error, 0.5f);
  // <w,d> = 9 + 14, ||d||^2 = 21.25.
  EXPECT_DOUBLE_EQ(weight.distance.cosine(), 23 / (5 * std::sqrt(21.25)));
  EXPECT_DOUBLE_EQ(result->total.sqnr_db(), 20.0);
  EXPECT_EQ(result->elements, 2u);
}

TEST(CompareModels, EqualAndUnusable) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
  const auto equal = Compare(OneWeight("w", {1, 2}), OneWeight("w", {1, 2}));
  EXPECT_TRUE(equal->weights[0].distance.equal());
  EXPECT_EQ(equal->weights[0].distance.sqnr_db(), kInfinity);
  EXPECT_EQ(equal->weights[0].distance.cosine(), 1.0);
  const auto zero = Compare(OneWeight("w", {0, 0}), OneWeight("w", {0, 1}));
  EXPECT_EQ(zero->weights[0].distance.sqnr_db(), -kInfinity);
  const auto broken =
      Compare(OneWeight("w", {1, 2}), OneWeight("w", {1, kNan}));
  EXPECT_FALSE(broken->weights[0].distance.equal());
  EXPECT_EQ(broken->weights[0].distance.non_finite_b, 1u);
  EXPECT_EQ(broken->weights[0].distance.sqnr_db(), -kInfinity);
  const auto both =
      Compare(OneWeight("w", {1, kNan}), OneWeight("w", {1, kNan}));
  EXPECT_TRUE(both->weights[0].distance.equal());
}

TEST(CompareModels, MatchesByNameThenByReader) {
  const auto renamed =
      Compare(OneWeight("w", {1, 2}), OneWeight("other", {1, 2}));
  ASSERT_THAT(renamed->weights, SizeIs(1));
  EXPECT_EQ(renamed->weights[0].b.name, "other");
  const auto moved =
      Compare(OneWeight("w", {1, 2}, "mm"), OneWeight("w", {1, 2}, "nn"));
  EXPECT_THAT(moved->weights, SizeIs(1));
  const auto strange =
      Compare(OneWeight("w", {1, 2}, "mm"), OneWeight("v", {1, 2}, "nn"));
  EXPECT_THAT(strange->weights, IsEmpty());
  ASSERT_THAT(strange->only_in_a, SizeIs(1));
  ASSERT_THAT(strange->only_in_b, SizeIs(1));
  EXPECT_EQ(strange->only_in_a[0].weight.name, "w");
  EXPECT_EQ(strange->only_in_b[0].reader, "nn");
}

TEST(CompareModels, ShapesThatDifferAreNotCompared) {
  const auto result =
      Compare(OneWeight("w", {1, 2}), OneWeight("w", {1, 2, 3}));
  EXPECT_THAT(result->weights, IsEmpty());
  ASSERT_THAT(result->shape_mismatches, SizeIs(1));
  EXPECT_EQ(result->shape_mismatches[0].b.shape, (std::vector<uint64_t>{1, 3}));
}

TEST(CompareModels, BiasesAreCountedApart) {
  const auto make = [](float bias) {
    IrBuilder ir;
    const auto x = ir.Parameter("x", {-1, 2});
    const auto w = ir.Constant("w", ElementType::kF32, {1, 2}, Floats({1, 2}));
    const auto b = ir.Constant("b", ElementType::kF32, {1, 1}, Floats({bias}));
    const auto y = ir.MatMul("mm", x, w, false, true, {-1, 1});
    ir.Result("r", ir.Op("add", "Add", "opset1",
                         "<data auto_broadcast=\"numpy\"/>", {y, b}, {-1, 1}));
    return ir;
  };
  const auto result = Compare(make(1), make(2));
  ASSERT_THAT(result->weights, SizeIs(2));
  EXPECT_TRUE(result->total.equal());
  EXPECT_FALSE(result->weights[1].is_weight);
  EXPECT_FALSE(result->weights[1].distance.equal());
}

TEST(CompareModels, AShortBinIsDataLoss) {
  const IrBuilder a = OneWeight("w", {1, 2});
  EXPECT_THAT(Compare(a.Xml(), a.Bin(), a.Xml(), a.Bin().substr(1)),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("w")));
}

class MemorySink : public ByteSink {
 public:
  explicit MemorySink(size_t size) : bytes(size, '\0') {}
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> part) override {
    std::memcpy(bytes.data() + offset, part.data(), part.size());
    return absl::OkStatus();
  }
  std::string bytes;
};

IrBuilder TwoLayers(ElementType type) {
  IrBuilder ir;
  auto x = ir.Parameter("x", {-1, 1024});
  x = ir.MatMul("rows", x, ir.Weights("w_rows", type, {1536, 1024}, 1), false,
                true, {-1, 1536});
  x = ir.MatMul("columns", x, ir.Weights("w_columns", type, {1536, 96}, 2),
                false, false, {-1, 96});
  ir.Result("y", x);
  return ir;
}

TEST(CompareModels, GivesTheErrorThatCompressionMeasures) {
  const IrBuilder ir = TwoLayers(ElementType::kF32);
  const auto executor = MakeSerialExecutor();
  Codebook table;
  table.type = ElementType::kF32;
  for (int i = 0; i < 20; ++i) table.values.push_back((i - 10) / 10.0);
  std::vector<float> stored(table.values.begin(), table.values.end());
  for (double& value : table.values) {
    value = static_cast<double>(static_cast<float>(value));
  }
  const std::string bytes = Floats(stored);
  table.stored.assign(AsBytes(bytes).begin(), AsBytes(bytes).end());
  for (const Mode mode : kAllModes) {
    CompressionOptions options{.mode = mode, .all_layers = true};
    if (ModeTraitsOf(mode).is_int8) options.all_layers.reset();
    if (mode == Mode::kCodebook) {
      options.codebook = std::make_shared<const Codebook>(table);
    }
    const auto compression = Compression::Create(ir.Xml(), options);
    ASSERT_TRUE(compression.ok()) << compression.status();
    const auto source = MakeMemorySource(AsBytes(ir.Bin()));
    MemorySink sink((*compression)->output_bin_bytes());
    ASSERT_TRUE((*compression)
                    ->Run(*source, sink,
                          {.executor = executor.get(), .measure_error = true})
                    .ok());
    const auto result =
        Compare(ir.Xml(), ir.Bin(), (*compression)->OutputXml(), sink.bytes);
    ASSERT_TRUE(result.ok()) << result.status();
    ASSERT_THAT(result->weights, SizeIs(2)) << ModeTraitsOf(mode).name;
    const Report report = (*compression)->report();
    for (size_t i = 0; i < 2; ++i) {
      const ComparedWeight& weight = result->weights[i];
      ASSERT_EQ(weight.a.name, report.weights[i].name);
      EXPECT_FALSE(weight.distance.equal());
      EXPECT_EQ(weight.b.bytes >= report.weights[i].bytes_after, true);
      // The graph rounds nf4's values, tables of f32 and nvfp4's product of
      // scales to f16, the report does not: 2^-11 of each decompressed value,
      // so by the triangle inequality at most 2^-11 (1 + r) in the relative
      // error r < 1. Otherwise only the order of sums differs.
      const bool exact =
          mode != Mode::kNf4 && mode != Mode::kCodebook && mode != Mode::kNvfp4;
      const double expected = report.weights[i].relative_error;
      EXPECT_NEAR(weight.distance.relative_error(), expected,
                  exact ? 1e-9 * expected : 0x1p-10)
          << ModeTraitsOf(mode).name;
    }
  }
}

TEST(CompareModels, ThreadsDoNotChangeTheBits) {
  const IrBuilder a = TwoLayers(ElementType::kF32);
  const IrBuilder b = TwoLayers(ElementType::kBf16);  // rounded: small errors
  const auto one = Compare(a, b, 1);
  const auto four = Compare(a, b, 4);
  ASSERT_TRUE(one.ok() && four.ok());
  ASSERT_THAT(one->weights, SizeIs(2));
  EXPECT_GT(one->weights[0].elements, 1u << 20);  // more than one block
  for (size_t i = 0; i < 2; ++i) {
    const WeightDistance& x = one->weights[i].distance;
    const WeightDistance& y = four->weights[i].distance;
    EXPECT_GT(x.error, 0);
    EXPECT_EQ(x.error, y.error);
    EXPECT_EQ(x.signal, y.signal);
    EXPECT_EQ(x.product, y.product);
    EXPECT_EQ(x.max_abs_error, y.max_abs_error);
  }
}

}  // namespace
}  // namespace ovpress
