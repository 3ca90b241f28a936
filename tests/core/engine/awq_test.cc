// Which AWQ matches are taken: only those that keep the model's function. One
// test for each difference on purpose from NNCF.
#include "core/engine/awq.h"

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

}  // namespace
}  // namespace ovpress
