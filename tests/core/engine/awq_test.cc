// Which AWQ matches are taken: only those that keep the model's function. One
// test for each difference on purpose from NNCF.
#include "core/engine/awq.h"

#include <cstring>

#include "absl/strings/str_cat.h"
#include "core/engine/compression.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/ir_builder.h"

namespace ovpress {
namespace {

using ::ovpress::testing::IrBuilder;
using ::testing::HasSubstr;
using ::testing::Not;
using Node = IrBuilder::Node;

std::string PlanOf(const IrBuilder& ir, CompressionOptions options = {}) {
  options.mode = Mode::kInt4Sym;
  options.group_size = -1;
  options.all_layers = true;
  options.awq = true;
  auto compression = Compression::Create(ir.Xml(), options);
  EXPECT_TRUE(compression.ok()) << compression.status();
  return compression.ok() ? (*compression)->PlanText() : "";
}

Node Linear(IrBuilder& ir, const std::string& name, const Node& x,
            bool transpose = true) {
  const Node w = ir.Weights(absl::StrCat(name, ".w"), ElementType::kF32, {8, 8},
                            static_cast<uint32_t>(name.size()));
  return ir.MatMul(name, x, w, false, transpose, {-1, 8});
}
Node Relu(IrBuilder& ir, const std::string& name, const Node& x) {
  return ir.Op(name, "ReLU", "opset1", "", {x}, {-1, 8});
}
Node Multiply(IrBuilder& ir, const std::string& name, const Node& a,
              const Node& b) {
  return ir.Op(name, "Multiply", "opset1", "<data auto_broadcast=\"numpy\"/>",
               {a, b}, {-1, 8});
}

TEST(Awq, ActivationBeforeAMatMulGetsAMultiply) {
  IrBuilder ir;
  const Node x = ir.Parameter("x", {-1, 8});
  ir.Result("r", Linear(ir, "down", Relu(ir, "act", x)));
  EXPECT_THAT(PlanOf(ir),
              HasSubstr("awq: down.w scaled, inverse multiplied behind act"));
}

TEST(Awq, GeluIsTakenOnlyIfAskedFor) {
  IrBuilder ir;
  const Node x = ir.Parameter("x", {-1, 8});
  const Node act = ir.Op("act", "Gelu", "opset7", "", {x}, {-1, 8});
  ir.Result("r", Linear(ir, "down", act));
  EXPECT_THAT(PlanOf(ir), Not(HasSubstr("awq:")));
  CompressionOptions options;
  options.awq_extended = true;
  EXPECT_THAT(PlanOf(ir, options),
              HasSubstr("awq: down.w scaled, inverse multiplied behind act"));
}

TEST(Awq, GatedBlockFoldsTheInverseIntoTheFirstMatMul) {
  IrBuilder ir;
  const Node x = ir.Parameter("x", {-1, 8});
  const Node gate = ir.Op("gate_act", "Swish", "opset4", "",
                          {Linear(ir, "gate", x)}, {-1, 8});
  ir.Result("r",
            Linear(ir, "down", Multiply(ir, "m", gate, Linear(ir, "up", x))));
  EXPECT_THAT(PlanOf(ir),
              HasSubstr("awq: down.w scaled, inverse folded into up.w"));
}

TEST(Awq, SeveralReadersOfTheActivationAreLeftAlone) {
  IrBuilder ir;
  const Node x = ir.Parameter("x", {-1, 8});
  const Node act = Relu(ir, "act", x);
  ir.Result("r1", Linear(ir, "a", act));
  ir.Result("r2", Linear(ir, "b", act));
  EXPECT_THAT(PlanOf(ir), Not(HasSubstr("awq:")));
  IrBuilder second;
  const Node y = second.Parameter("x", {-1, 8});
  const Node shown = Relu(second, "act", y);
  second.Result("r1", Linear(second, "a", shown));
  second.Result("r2", shown);
  EXPECT_THAT(PlanOf(second), Not(HasSubstr("awq:")));
}

TEST(Awq, AnIgnoredMatMulIsNotChanged) {
  IrBuilder ir;
  const Node x = ir.Parameter("x", {-1, 8});
  const Node gate = ir.Op("gate_act", "Swish", "opset4", "",
                          {Linear(ir, "gate", x)}, {-1, 8});
  ir.Result("r",
            Linear(ir, "down", Multiply(ir, "m", gate, Linear(ir, "up", x))));
  CompressionOptions options;
  options.ignored.names = {"up"};
  EXPECT_THAT(PlanOf(ir, options),
              HasSubstr("awq: down.w scaled, inverse multiplied behind up"));
}

TEST(Awq, OfTwoMatMulsTheFirstInputOfTheMultiplyIsMerged) {
  for (const bool swapped : {false, true}) {
    IrBuilder ir;
    const Node x = ir.Parameter("x", {-1, 8});
    const Node a = Linear(ir, "a", x);
    const Node b = Linear(ir, "b", x);
    ir.Result("r", Linear(ir, "down",
                          swapped ? Multiply(ir, "m", b, a)
                                  : Multiply(ir, "m", a, b)));
    EXPECT_THAT(PlanOf(ir),
                HasSubstr(swapped ? "folded into b.w" : "folded into a.w"));
  }
}

TEST(Awq, SharedAndFakeQuantizedWeightsAreLeftAlone) {
  IrBuilder ir;
  const Node x = ir.Parameter("x", {-1, 8});
  const Node w = ir.Weights("w", ElementType::kF32, {8, 8}, 1);
  const Node y = ir.MatMul("mm1", Relu(ir, "act1", x), w, false, true, {-1, 8});
  ir.Result("r",
            ir.MatMul("mm2", Relu(ir, "act2", y), w, false, true, {-1, 8}));
  EXPECT_THAT(PlanOf(ir), Not(HasSubstr("awq:")));
}

TEST(Awq, MergedScaleFollowsTheOutputAxisOfEitherLayout) {
  for (const bool transpose : {false, true}) {
    IrBuilder ir;
    const Node x = ir.Parameter("x", {-1, 8});
    const Node gate = ir.Op("gate_act", "Swish", "opset4", "",
                            {Linear(ir, "gate", x)}, {-1, 8});
    const Node up = Linear(ir, "up", x, transpose);
    ir.Result("r", Linear(ir, "down", Multiply(ir, "m", gate, up)));
    EXPECT_THAT(PlanOf(ir), HasSubstr("folded into up.w"));
  }
}

// x -> Multiply by `norm` [1, 4] -> two MatMuls. The weights of one are 1.5
// times 2^channel, of the other 0.5 times: the mean over both is 2^channel.
IrBuilder NormAndTwo(bool multiply_by_constant = true,
                     bool transpose_a = false) {
  IrBuilder ir;
  const auto floats = [](const std::vector<float>& values) {
    std::string out(values.size() * 4, '\0');
    std::memcpy(out.data(), values.data(), out.size());
    return out;
  };
  const Node x = ir.Parameter("x", {4, 4});
  const Node other =
      multiply_by_constant
          ? ir.Constant("norm", ElementType::kF32, {1, 4}, floats({3, 5, 7, 9}))
          : ir.Parameter("factor", {4, 4});
  const Node y = ir.Op("scaled", "Multiply", "opset1",
                       "<data auto_broadcast=\"numpy\"/>", {x, other}, {4, 4});
  for (const float factor : {1.5f, 0.5f}) {
    std::vector<float> values;
    for (int row = 0; row < 4; ++row) {
      for (const float value : {1.0f, 2.0f, 4.0f, 8.0f}) {
        values.push_back(factor * value);
      }
    }
    const std::string name = factor > 1 ? "large" : "small";
    const Node w = ir.Constant(absl::StrCat("w_", name), ElementType::kF32,
                               {4, 4}, floats(values));
    ir.Result(absl::StrCat("r_", name),
              ir.MatMul(absl::StrCat("m_", name), y, w,
                        transpose_a && factor < 1, true, {4, 4}));
  }
  return ir;
}

TEST(AwqExtended, ReadersOfANormAreScaledTogether) {
  EXPECT_THAT(PlanOf(NormAndTwo()), Not(HasSubstr("awq:")));
  CompressionOptions options;
  options.awq_extended = true;
  EXPECT_THAT(PlanOf(NormAndTwo(), options),
              HasSubstr("scaled together, inverse folded into norm"));
  EXPECT_THAT(PlanOf(NormAndTwo(false), options),
              HasSubstr("scaled together, inverse multiplied behind scaled"));
  // Another reader, even one that is ignored, and nothing may change.
  IrBuilder shown = NormAndTwo();
  shown.Result("more", IrBuilder::Node{2, 2, ElementType::kF32, {4, 4}});
  EXPECT_THAT(PlanOf(shown, options), Not(HasSubstr("awq:")));
  // Here the channels of one reader lie along the other axis.
  EXPECT_THAT(PlanOf(NormAndTwo(true, true), options), Not(HasSubstr("awq:")));
  options.ignored.names = {"m_small"};
  EXPECT_THAT(PlanOf(NormAndTwo(), options), Not(HasSubstr("awq:")));
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

TEST(AwqExtended, TheProductOfNormAndWeightIsKept) {
  // sc = 1, 1/2, 1/4, 1/8, so the scaled weights are 1.5 and 0.5: all codes are
  // equal, and the inverse 1, 2, 4, 8 goes into the norm or the new Multiply.
  for (const bool folded : {true, false}) {
    const IrBuilder ir = NormAndTwo(folded);
    CompressionOptions options{.mode = Mode::kNf4,
                               .group_size = -1,
                               .all_layers = true,
                               .awq = true,
                               .awq_extended = true};
    const auto compression = Compression::Create(ir.Xml(), options);
    ASSERT_TRUE(compression.ok()) << compression.status();
    const auto source = MakeMemorySource(AsBytes(ir.Bin()));
    MemorySink sink((*compression)->output_bin_bytes());
    const auto executor = MakeSerialExecutor();
    ASSERT_TRUE(
        (*compression)->Run(*source, sink, {.executor = executor.get()}).ok());
    const auto model = Model::Parse((*compression)->OutputXml());
    ASSERT_TRUE(model.ok());
    int seen = 0;
    for (const Constant& constant : model->constants()) {
      const std::string bytes =
          sink.bytes.substr(constant.offset_bytes, constant.size_bytes);
      if (constant.name == "w_large" || constant.name == "w_small") {
        // All codes of nf4 are 15, the value 1.
        EXPECT_EQ(bytes, std::string(constant.element_count / 2, '\xff'));
        ++seen;
      } else if (constant.name == "norm" ||
                 constant.name == "scaled/awq_mul/scale") {
        std::vector<float> values(4);
        std::memcpy(values.data(), bytes.data(), 16);
        EXPECT_EQ(values, folded ? (std::vector<float>{3, 10, 28, 72})
                                 : (std::vector<float>{1, 2, 4, 8}));
        ++seen;
      } else if (constant.name == "w_large/scale" ||
                 constant.name == "w_small/scale") {
        std::vector<float> values(constant.element_count);
        ToFloat(ElementType::kF16, bytes.data(), values.size(), values.data());
        EXPECT_THAT(
            values,
            ::testing::Each(constant.name == "w_large/scale" ? 1.5f : 0.5f));
        ++seen;
      }
    }
    EXPECT_EQ(seen, 5) << folded;
  }
}

}  // namespace
}  // namespace ovpress
