// A weight as its reader sees it: constants through the operations with which
// OpenVINO decompresses them, evaluated piece by piece.
#ifndef OVPRESS_CORE_ANALYSIS_EXPRESSION_H_
#define OVPRESS_CORE_ANALYSIS_EXPRESSION_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "core/base/io.h"
#include "core/ir/model.h"

namespace ovpress {

// Made of Const, Convert, Add, Subtract, Multiply, Divide (NumPy broadcasting),
// Reshape, Squeeze, Unsqueeze and Gather from a one-dimensional table: every
// graph that NNCF and ovpress write, and the plain constant behind a Convert.
//
// Values are those that OpenVINO's CPU plugin computes with the inference
// precision f32 (and its ConstantFolding pass): stored constants exactly, a
// Convert rounded to its type, the arithmetic in f32 even where the ports say
// f16. A plugin that computes in f16 rounds more. f64 is read as f32.
// tests/quality checks this bit for bit, for all modes.
//
// Immutable; safe to share between threads. The model must outlive it.
class WeightExpression {
 public:
  // The expression that ends in output 0 of this layer; nullopt if something
  // else takes part in it, a shape is dynamic, or it has more than 64 nodes.
  static std::optional<WeightExpression> Build(const Model& model,
                                               size_t layer);

  const std::vector<uint64_t>& shape() const { return nodes_.back().shape; }
  uint64_t element_count() const { return nodes_.back().count; }
  ElementType type() const { return nodes_.back().type; }

  // The constant that carries the weight's name: the one below the first
  // inputs, or the table of a codebook. In Model::constants.
  size_t main_constant() const { return main_constant_; }
  // All constants with values: codes, scales, zero points, tables.
  const std::vector<size_t>& constants() const { return constants_; }
  // How it is stored, for people: "f16", "u4 g64", "u4 codebook", "i8".
  std::string StorageText() const;

  // Elements [first, first + count) in C order. Memory: a few times `count`
  // floats, and a codebook's table. kDataLoss if the .bin is too short or an
  // index leaves its table. REQUIRES: first + count <= element_count().
  absl::Status Evaluate(ByteSource& bin, uint64_t first, uint64_t count,
                        float* out) const;

 private:
  enum class Op : uint8_t {
    kConst,
    kSame,     // Reshape and the like, Convert to a type that holds all values
    kConvert,  // rounds
    kAdd,
    kSubtract,
    kMultiply,
    kDivide,
    kLookup,  // inputs: table, indices
  };
  // Axes of a binary operation's output, neighbours merged where both operands
  // run through them alike; strides in elements of each operand, 0: broadcast.
  struct Axis {
    uint64_t size = 1;
    uint64_t stride[2] = {0, 0};
  };
  struct Node {
    Op op = Op::kConst;
    ElementType type = ElementType::kF32;
    std::vector<uint64_t> shape;
    uint64_t count = 0;
    size_t constant = kNone;
    size_t inputs[2] = {kNone, kNone};
    std::vector<Axis> axes;  // binary operations only
  };
  class Builder;

  WeightExpression() = default;
  absl::Status EvaluateNode(ByteSource& bin, const Node& node, uint64_t first,
                            uint64_t count, float* out) const;
  absl::Status EvaluateConstant(ByteSource& bin, const Constant& constant,
                                uint64_t first, uint64_t count,
                                float* out) const;
  absl::Status EvaluateLookup(ByteSource& bin, const Node& node, uint64_t first,
                              uint64_t count, float* out) const;
  absl::Status EvaluateBinary(ByteSource& bin, const Node& node, uint64_t first,
                              uint64_t count, float* out) const;

  const Model* model_ = nullptr;
  std::vector<Node> nodes_;  // inputs before their readers; the last is the end
  std::vector<size_t> constants_;
  size_t main_constant_ = kNone;
};

}  // namespace ovpress

#endif  // OVPRESS_CORE_ANALYSIS_EXPRESSION_H_
