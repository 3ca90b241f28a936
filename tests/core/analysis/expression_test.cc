// Each graph that ovpress and NNCF write, with values computed by hand; pieces
// equal the whole; what is not understood is said.
#include "core/analysis/expression.h"

#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/ir_builder.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using ::ovpress::testing::IrBuilder;
using ::ovpress::testing::StatusIs;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using Node = IrBuilder::Node;

constexpr const char* kNumpy = "<data auto_broadcast=\"numpy\"/>";

std::string Raw(std::initializer_list<int> bytes) {
  std::string out;
  for (const int byte : bytes) out.push_back(static_cast<char>(byte));
  return out;
}
// f16 of small values, written out: 1 is 3c00.
std::string Halves(std::initializer_list<float> values) {
  std::string out(values.size() * 2, '\0');
  FromFloat(ElementType::kF16, values.begin(), values.size(), out.data());
  return out;
}

// A graph whose last node is looked at.
class Graph {
 public:
  IrBuilder ir;

  Node Const(ElementType type, const std::vector<uint64_t>& shape,
             const std::string& bytes) {
    return ir.Constant(Name(), type, shape, bytes);
  }
  Node Half(const Node& input) {
    return ir.Convert(Name(), input, ElementType::kF16);
  }
  Node To(const Node& input, ElementType type) {
    return ir.Convert(Name(), input, type);
  }
  Node Op(const char* type, const Node& a, const Node& b,
          const std::vector<int64_t>& dims) {
    return ir.Op(Name(), type, "opset1", kNumpy, {a, b}, dims);
  }
  Node Reshape(const Node& input, const std::vector<int64_t>& dims) {
    const Node shape = Const(ElementType::kI64, {dims.size()},
                             std::string(dims.size() * 8, '\0'));
    return ir.Op(Name(), "Reshape", "opset1", "<data special_zero=\"false\"/>",
                 {input, shape}, dims);
  }
  Node Gather(const Node& table, const Node& indices) {
    const Node axis = Const(ElementType::kI64, {}, std::string(8, '\0'));
    return ir.Op(Name(), "Gather", "opset8", "<data batch_dims=\"0\"/>",
                 {table, indices, axis}, indices.dims);
  }

  // Takes the graph into its final form.
  absl::StatusOr<std::vector<float>> Evaluate(const Node& node) {
    const absl::StatusOr<Model> model = Model::Parse(ir.Xml());
    if (!model.ok()) return model.status();
    const auto expression = WeightExpression::Build(*model, node.id);
    if (!expression.has_value()) return absl::NotFoundError("not understood");
    storage = expression->StorageText();
    main_name =
        std::string(model->constants()[expression->main_constant()].name);
    const auto source = MakeMemorySource(AsBytes(ir.Bin()));
    const uint64_t size = expression->element_count();
    std::vector<float> whole(size);
    const absl::Status status =
        expression->Evaluate(*source, 0, size, whole.data());
    if (!status.ok()) return status;
    // Every piece is the same part of the whole.
    const uint64_t step = size > 64 ? 7 : 1;
    for (uint64_t first = 0; first < size; first += step) {
      for (uint64_t count = 1; count <= size - first; count += step) {
        std::vector<float> piece(count);
        EXPECT_TRUE(
            expression->Evaluate(*source, first, count, piece.data()).ok());
        EXPECT_TRUE(std::equal(piece.begin(), piece.end(),
                               whole.begin() + static_cast<int64_t>(first)))
            << first << " " << count;
      }
    }
    return whole;
  }

  std::string storage;
  std::string main_name;

 private:
  std::string Name() { return absl::StrCat("n", next_++); }
  int next_ = 0;
};

TEST(WeightExpression, PlainConstantBehindAConvert) {
  Graph g;
  const Node w = g.Const(ElementType::kF16, {2, 2}, Halves({1, -2, 0.5f, 4}));
  EXPECT_THAT(*g.Evaluate(g.To(w, ElementType::kF32)),
              ElementsAre(1, -2, 0.5f, 4));
  EXPECT_EQ(g.storage, "f16");
  EXPECT_EQ(g.main_name, "n0");
}

TEST(WeightExpression, Int8AsymPerChannel) {
  Graph g;
  const Node codes =
      g.Const(ElementType::kU8, {2, 3}, Raw({0, 128, 255, 1, 2, 3}));
  const Node zero = g.Const(ElementType::kU8, {2, 1}, Raw({128, 0}));
  const Node scale = g.Const(ElementType::kF16, {2, 1}, Halves({0.5f, 2}));
  const Node centred = g.Op("Subtract", g.Half(codes), g.Half(zero), {2, 3});
  const Node scaled = g.Op("Multiply", centred, scale, {2, 3});
  EXPECT_THAT(*g.Evaluate(g.To(scaled, ElementType::kF32)),
              ElementsAre(-64, 0, 63.5f, 2, 4, 6));
  EXPECT_EQ(g.storage, "u8");
  EXPECT_EQ(g.main_name, "n0");
}

TEST(WeightExpression, Int4SymInGroups) {
  Graph g;
  // -8 7 | 1 -1
  const Node codes = g.Const(ElementType::kI4, {1, 2, 2}, Raw({0x78, 0xf1}));
  const Node scale = g.Const(ElementType::kF16, {1, 2, 1}, Halves({0.25f, 4}));
  const Node scaled = g.Op("Multiply", g.Half(codes), scale, {1, 2, 2});
  EXPECT_THAT(*g.Evaluate(g.Reshape(scaled, {1, 4})),
              ElementsAre(-2, 1.75f, 4, -4));
  EXPECT_EQ(g.storage, "i4 g2");
}

TEST(WeightExpression, Int4AsymInGroupsDownTheRows) {
  Graph g;
  // Two groups of two rows, three columns.
  const Node codes = g.Const(ElementType::kU4, {2, 2, 3},
                             Raw({0x21, 0x43, 0x65, 0x87, 0xa9, 0xcb}));
  const Node zero = g.Const(ElementType::kU4, {2, 1, 3}, Raw({0x10, 0x32, 4}));
  const Node scale =
      g.Const(ElementType::kF16, {2, 1, 3}, Halves({1, 2, 4, 1, 0.5f, 0.25f}));
  const Node centred = g.Op("Subtract", g.Half(codes), g.Half(zero), {2, 2, 3});
  const Node scaled = g.Op("Multiply", centred, scale, {2, 2, 3});
  // Rows 1 2 3 / 4 5 6 minus 0 1 2, times 1 2 4; rows 7 8 9 / 10 11 12 minus
  // 3 4 0, times 1 .5 .25.
  EXPECT_THAT(*g.Evaluate(g.Reshape(scaled, {4, 3})),
              ElementsAre(1, 2, 4, 4, 8, 16, 4, 2, 2.25f, 7, 3.5f, 3));
  EXPECT_EQ(g.storage, "u4 g2");
}

TEST(WeightExpression, Int2AndInt3HaveOneZeroPoint) {
  Graph g;
  const Node codes = g.Const(ElementType::kU2, {1, 4}, Raw({0b11100100}));
  const Node zero = g.Const(ElementType::kI8, {}, Raw({2}));
  const Node scale = g.Const(ElementType::kF16, {1, 1}, Halves({0.5f}));
  const Node centred = g.Op("Subtract", g.Half(codes), g.Half(zero), {1, 4});
  EXPECT_THAT(*g.Evaluate(g.Op("Multiply", centred, scale, {1, 4})),
              ElementsAre(-1, -0.5f, 0, 0.5f));
  Graph h;
  const Node three = h.Const(ElementType::kU3, {1, 8},
                             Raw({0b00011011, 0b00011011, 0b00001111}));
  const Node four = h.Const(ElementType::kI8, {}, Raw({4}));
  const Node one = h.Const(ElementType::kF16, {1, 1}, Halves({1}));
  const Node diff = h.Op("Subtract", h.Half(three), h.Half(four), {1, 8});
  EXPECT_THAT(*h.Evaluate(h.Op("Multiply", diff, one, {1, 8})),
              ElementsAre(-4, -3, -2, -1, 0, 1, 2, 3));
}

TEST(WeightExpression, Mxfp4HasPowersOfTwo) {
  Graph g;
  const Node codes = g.Const(ElementType::kF4e2m1, {1, 2, 2},
                             Raw({0x71, 0xfa}));  // .5 6 | -1 -6
  const Node scale = g.Const(ElementType::kF8e8m0, {1, 2, 1}, Raw({126, 130}));
  const Node scaled = g.Op("Multiply", g.Half(codes), g.Half(scale), {1, 2, 2});
  EXPECT_THAT(*g.Evaluate(g.Reshape(scaled, {1, 4})),
              ElementsAre(0.25f, 3, -8, -48));
  EXPECT_EQ(g.storage, "f4e2m1 g2");
}

TEST(WeightExpression, Nvfp4HasASecondScale) {
  Graph g;
  const Node codes =
      g.Const(ElementType::kF4e2m1, {1, 2, 2}, Raw({0x72, 0x3b}));
  const Node scale =
      g.Const(ElementType::kF8e4m3, {1, 2, 1}, Raw({0x38, 0x40}));  // 1 2
  std::string half_bytes(4, '\0');
  const float half = 0.5f;
  std::memcpy(half_bytes.data(), &half, 4);
  const Node second = g.Const(ElementType::kF32, {1, 1, 1}, half_bytes);
  const Node both =
      g.Op("Multiply", g.To(scale, ElementType::kF32), second, {1, 2, 1});
  const Node scaled = g.Op("Multiply", g.Half(codes), g.Half(both), {1, 2, 2});
  // 1 6 | -1.5 1.5
  EXPECT_THAT(*g.Evaluate(g.Reshape(scaled, {1, 4})),
              ElementsAre(0.5f, 3, -1.5f, 1.5f));
  EXPECT_EQ(g.storage, "f4e2m1 g2");
}

TEST(WeightExpression, Nf4AndFp8) {
  Graph g;
  const Node codes = g.Const(ElementType::kNf4, {1, 2}, Raw({0x0f}));
  const Node scale = g.Const(ElementType::kF16, {1, 1}, Halves({2}));
  EXPECT_THAT(*g.Evaluate(g.Op("Multiply", g.Half(codes), scale, {1, 2})),
              ElementsAre(2, -2));
  Graph h;
  const Node eight =
      h.Const(ElementType::kF8e4m3, {1, 2}, Raw({0x7e, 0xb8}));  // 448 -1
  const Node quarter = h.Const(ElementType::kF16, {1, 1}, Halves({0.25f}));
  EXPECT_THAT(*h.Evaluate(h.Op("Multiply", h.Half(eight), quarter, {1, 2})),
              ElementsAre(112, -0.25f));
}

TEST(WeightExpression, ConvertRoundsArithmeticDoesNot) {
  Graph g;
  // 0.7229568362 of nf4 becomes the f16 0.72314453125; times the f16 nearest to
  // 0.1, 0.0999755859375, has 22 bits and is kept.
  const Node codes = g.Const(ElementType::kNf4, {1, 1}, Raw({14}));
  const Node scale = g.Const(ElementType::kF16, {1, 1}, Halves({0.1f}));
  EXPECT_THAT(*g.Evaluate(g.Op("Multiply", g.Half(codes), scale, {1, 1})),
              ElementsAre(0.72314453125f * 0.0999755859375f));
}

TEST(WeightExpression, CodebookOf4BitIndices) {
  Graph g;
  const Node table =
      g.Const(ElementType::kF8e4m3, {4}, Raw({0xb8, 0x00, 0x30, 0x38}));
  const Node codes = g.Const(ElementType::kU4, {1, 2, 2}, Raw({0x30, 0x21}));
  const Node values =
      g.Gather(g.Half(table), g.To(codes, ElementType::kU8));  // -1 1 | 0 .5
  const Node scale = g.Const(ElementType::kF16, {1, 2, 1}, Halves({1, 8}));
  const Node scaled = g.Op("Multiply", values, scale, {1, 2, 2});
  EXPECT_THAT(*g.Evaluate(g.Reshape(scaled, {1, 4})), ElementsAre(-1, 1, 0, 4));
  EXPECT_EQ(g.storage, "f8e4m3 codebook g2");  // as many codes as entries
  EXPECT_EQ(g.main_name, "n0");  // the table has the weight's name
}

TEST(WeightExpression, AnIndexThatLeavesItsTableIsDataLoss) {
  Graph g;
  const Node table = g.Const(ElementType::kF16, {2}, Halves({1, 2}));
  const Node codes = g.Const(ElementType::kU8, {3}, Raw({0, 1, 2}));
  EXPECT_THAT(g.Evaluate(g.Gather(table, codes)),
              StatusIs(absl::StatusCode::kDataLoss,
                       HasSubstr("index 2 leaves its table of 2 entries")));
}

TEST(WeightExpression, EitherOperandMayBroadcast) {
  Graph g;
  std::string rows;
  for (int i = 0; i < 60; ++i) rows.push_back(static_cast<char>(i));
  const Node codes = g.Const(ElementType::kU8, {3, 4, 5}, rows);
  const Node middle =
      g.Const(ElementType::kF16, {4, 1}, Halves({1, 10, 100, 1000}));
  const auto values =
      *g.Evaluate(g.Op("Multiply", middle, g.Half(codes), {3, 4, 5}));
  const float factors[] = {1, 10, 100, 1000};
  for (size_t i = 0; i < 60; ++i) {
    EXPECT_EQ(values[i], static_cast<float>(i) * factors[i / 5 % 4]) << i;
  }
  EXPECT_EQ(g.main_name, "n0");
  EXPECT_EQ(g.storage, "u8");
}

TEST(WeightExpression, LongRowsSharedByAllRowsAreReadInPieces) {
  // Pieces begin and end within a row and across rows.
  Graph g;
  std::string rows;
  for (int i = 0; i < 150; ++i) rows.push_back(static_cast<char>(i));
  std::vector<float> factors;
  std::string stored(50 * 2, '\0');
  for (int i = 0; i < 50; ++i) factors.push_back(static_cast<float>(i - 20));
  FromFloat(ElementType::kF16, factors.data(), 50, stored.data());
  const Node codes = g.Const(ElementType::kU8, {3, 50}, rows);
  const Node scale = g.Const(ElementType::kF16, {1, 50}, stored);
  const auto values =
      *g.Evaluate(g.Op("Subtract", g.Half(codes), scale, {3, 50}));
  for (size_t i = 0; i < 150; ++i) {
    EXPECT_EQ(values[i], static_cast<float>(i) - factors[i % 50]) << i;
  }
}

TEST(WeightExpression, OtherGraphsAreNotUnderstood) {
  Graph g;
  const Node w = g.Const(ElementType::kF16, {2, 2}, Halves({1, 2, 3, 4}));
  const Node order = g.Const(ElementType::kI64, {2}, std::string(16, '\0'));
  const Node transposed =
      g.ir.Op("t", "Transpose", "opset1", "", {w, order}, {2, 2});
  EXPECT_THAT(g.Evaluate(transposed),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("understood")));
  // A shape that contradicts its operands.
  Graph h;
  const Node a = h.Const(ElementType::kF16, {2, 2}, Halves({1, 2, 3, 4}));
  const Node b = h.Const(ElementType::kF16, {2, 1}, Halves({1, 2}));
  EXPECT_FALSE(h.Evaluate(h.Op("Multiply", a, b, {2, 3})).ok());
  // Eight doublings: nine nodes, but 511 on all paths.
  Graph k;
  Node at = k.Const(ElementType::kF16, {1}, Halves({1}));
  for (int i = 0; i < 8; ++i) at = k.Op("Add", at, at, {1});
  EXPECT_FALSE(k.Evaluate(at).ok());
}

}  // namespace
}  // namespace ovpress
