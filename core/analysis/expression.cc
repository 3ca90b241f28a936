#include "core/analysis/expression.h"

#include <algorithm>
#include <limits>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/quant/decode.h"

namespace ovpress {
namespace {

// The deepest graph that NNCF writes (nvfp4) has 11 nodes. A limit rather than
// memory of visited nodes: a hostile graph of n doublings has 2^n paths.
constexpr size_t kNodesMax = 64;
// Tables are evaluated whole for each piece; NNCF's largest has 65536 entries.
constexpr uint64_t kTableEntriesMax = 1 << 16;

// The dimensions of an output port; nullopt if some is dynamic or their product
// overflows.
std::optional<std::vector<uint64_t>> StaticShape(const Port& port) {
  std::vector<uint64_t> shape;
  uint64_t count = 1;
  for (const int64_t dim : port.dims) {
    if (dim < 0) return std::nullopt;
    const uint64_t size = static_cast<uint64_t>(dim);
    if (size != 0 && count > std::numeric_limits<uint64_t>::max() / size) {
      return std::nullopt;
    }
    count *= size;
    shape.push_back(size);
  }
  return shape;
}

uint64_t Product(const std::vector<uint64_t>& shape) {
  uint64_t count = 1;
  for (const uint64_t dim : shape) count *= dim;
  return count;
}

bool IsUnsigned(ElementType type) {
  return type == ElementType::kU2 || type == ElementType::kU3 ||
         type == ElementType::kU4 || type == ElementType::kU8 ||
         type == ElementType::kU16 || type == ElementType::kU32 ||
         type == ElementType::kU64;
}

// Integers of `from` are integers of `to`.
bool Holds(ElementType to, ElementType from) {
  const int more = BitsPerElement(to) - BitsPerElement(from);
  if (IsUnsigned(to)) return IsUnsigned(from) && more >= 0;
  return IsUnsigned(from) ? more > 0 : more >= 0;
}

// Where an operand is read while the output runs over [first, last]: the lowest
// and the highest of its elements, and the block of output elements after which
// a new run through the operand starts.
struct OperandRange {
  uint64_t low = 0;
  uint64_t high = 0;
  uint64_t block = 1;
};

template <typename Axes>
OperandRange RangeOf(const Axes& axes, int side, uint64_t first,
                     uint64_t last) {
  OperandRange range;
  uint64_t block = 1;
  for (const auto& axis : axes) block *= axis.size;
  bool split = false;  // the coordinates of first and last differ from here on
  for (const auto& axis : axes) {
    block /= axis.size;
    const uint64_t a = first / block % axis.size;
    const uint64_t b = last / block % axis.size;
    if (split) {
      range.high += (axis.size - 1) * axis.stride[side];
      continue;
    }
    range.low += a * axis.stride[side];
    range.high += b * axis.stride[side];
    range.block = block;
    split = a != b;
  }
  return range;
}

}  // namespace

class WeightExpression::Builder {
 public:
  explicit Builder(const Model& model) : model_(model) {}

  // Index of the node, kNone if the graph is not understood.
  size_t Visit(size_t layer);
  std::vector<Node> TakeNodes() { return std::move(nodes_); }

 private:
  size_t Add(Node node);
  size_t VisitConvert(const Layer& layer, Node node);
  size_t VisitBinary(const Layer& layer, Op op, Node node);
  size_t VisitLookup(const Layer& layer, Node node);

  const Model& model_;
  std::vector<Node> nodes_;
  size_t visits_ = 0;
};

size_t WeightExpression::Builder::Add(Node node) {
  node.count = Product(node.shape);
  nodes_.push_back(std::move(node));
  return nodes_.size() - 1;
}

size_t WeightExpression::Builder::Visit(size_t at) {
  if (at == kNone || ++visits_ > kNodesMax) return kNone;
  const Layer& layer = model_.layers()[at];
  if (layer.outputs.size() != 1) return kNone;
  Node node;
  node.type = layer.outputs[0].type;
  if (layer.type == "Const") {
    const Constant& constant = model_.constants()[layer.constant];
    if (!IsDecodable(constant.type)) return kNone;
    node.type = constant.type;
    node.shape = constant.shape;
    node.constant = layer.constant;
    return Add(std::move(node));
  }
  const std::optional<std::vector<uint64_t>> shape =
      StaticShape(layer.outputs[0]);
  if (!shape.has_value() || layer.producers.empty()) return kNone;
  node.shape = *shape;
  if (layer.type == "Convert") return VisitConvert(layer, std::move(node));
  if (layer.type == "Reshape" || layer.type == "Squeeze" ||
      layer.type == "Unsqueeze") {
    node.op = Op::kSame;
    node.inputs[0] = Visit(layer.producers[0].layer);
    if (node.inputs[0] == kNone) return kNone;
    const Node& input = nodes_[node.inputs[0]];
    if (input.count != Product(node.shape)) return kNone;
    node.type = input.type;
    return Add(std::move(node));
  }
  if (layer.type == "Gather") return VisitLookup(layer, std::move(node));
  const std::pair<const char*, Op> kBinary[] = {{"Add", Op::kAdd},
                                                {"Subtract", Op::kSubtract},
                                                {"Multiply", Op::kMultiply},
                                                {"Divide", Op::kDivide}};
  for (const auto& [name, op] : kBinary) {
    if (layer.type == name) return VisitBinary(layer, op, std::move(node));
  }
  return kNone;
}

size_t WeightExpression::Builder::VisitConvert(const Layer& layer, Node node) {
  const std::optional<ElementType> type =
      ParseElementType(layer.Attribute("destination_type"));
  node.inputs[0] = Visit(layer.producers[0].layer);
  if (node.inputs[0] == kNone || !type.has_value()) return kNone;
  const Node& input = nodes_[node.inputs[0]];
  if (input.shape != node.shape) return kNone;
  node.type = *type;
  if (IsFloatingPoint(*type)) {
    if (!CanRoundTo(*type)) return kNone;
    node.op = Op::kConvert;
  } else {
    if (IsFloatingPoint(input.type) || !IsDecodable(*type) ||
        !Holds(*type, input.type)) {
      return kNone;
    }
    node.op = Op::kSame;
  }
  return Add(std::move(node));
}

size_t WeightExpression::Builder::VisitBinary(const Layer& layer, Op op,
                                              Node node) {
  if (layer.producers.size() != 2) return kNone;
  const absl::string_view broadcast = layer.Attribute("auto_broadcast");
  if (!broadcast.empty() && broadcast != "numpy" && broadcast != "none") {
    return kNone;
  }
  node.op = op;
  for (size_t side = 0; side < 2; ++side) {
    node.inputs[side] = Visit(layer.producers[side].layer);
    if (node.inputs[side] == kNone) return kNone;
  }
  const Node* const operands[2] = {&nodes_[node.inputs[0]],
                                   &nodes_[node.inputs[1]]};
  node.type = operands[0]->type;
  // f64 is held as f32 here, so its arithmetic would be another one.
  if (operands[1]->type != node.type || !CanRoundTo(node.type) ||
      node.type == ElementType::kF64) {
    return kNone;
  }
  const size_t rank =
      std::max(operands[0]->shape.size(), operands[1]->shape.size());
  if (node.shape.size() != rank) return kNone;
  // From the innermost axis outwards.
  std::vector<Axis> axes;
  uint64_t stride[2] = {1, 1};
  for (size_t i = 0; i < rank; ++i) {
    Axis axis;
    uint64_t dims[2];
    for (size_t side = 0; side < 2; ++side) {
      const std::vector<uint64_t>& shape = operands[side]->shape;
      dims[side] = i < shape.size() ? shape[shape.size() - 1 - i] : 1;
    }
    if (dims[0] != dims[1] && dims[0] != 1 && dims[1] != 1) return kNone;
    axis.size = dims[0] == 1 ? dims[1] : dims[0];
    if (axis.size != node.shape[rank - 1 - i]) return kNone;
    if (axis.size == 1) continue;
    for (size_t side = 0; side < 2; ++side) {
      if (dims[side] == 1) continue;
      axis.stride[side] = stride[side];
      stride[side] *= dims[side];
    }
    const auto continues = [&](size_t side) {
      return axis.stride[side] == axes.back().stride[side] * axes.back().size;
    };
    if (!axes.empty() && continues(0) && continues(1)) {
      axes.back().size *= axis.size;
    } else {
      axes.push_back(axis);
    }
  }
  if (axes.empty()) axes.push_back({});
  std::reverse(axes.begin(), axes.end());
  node.axes = std::move(axes);
  return Add(std::move(node));
}

size_t WeightExpression::Builder::VisitLookup(const Layer& layer, Node node) {
  if (layer.producers.size() != 3) return kNone;
  const absl::string_view batch_dims = layer.Attribute("batch_dims");
  if (!batch_dims.empty() && batch_dims != "0") return kNone;
  node.op = Op::kLookup;
  for (size_t side = 0; side < 2; ++side) {
    node.inputs[side] = Visit(layer.producers[side].layer);
    if (node.inputs[side] == kNone) return kNone;
  }
  const Node& table = nodes_[node.inputs[0]];
  const Node& indices = nodes_[node.inputs[1]];
  // A table of one dimension has one axis, whatever the third input says.
  if (table.shape.size() != 1 || table.count > kTableEntriesMax ||
      IsFloatingPoint(indices.type) || indices.shape != node.shape) {
    return kNone;
  }
  node.type = table.type;
  return Add(std::move(node));
}

std::optional<WeightExpression> WeightExpression::Build(const Model& model,
                                                        size_t layer) {
  Builder builder(model);
  if (builder.Visit(layer) == kNone) return std::nullopt;
  WeightExpression out;
  out.model_ = &model;
  out.nodes_ = builder.TakeNodes();
  for (const Node& node : out.nodes_) {
    if (node.op == Op::kConst) out.constants_.push_back(node.constant);
  }
  // Down the first inputs, but towards the larger operand.
  size_t at = out.nodes_.size() - 1;
  while (out.nodes_[at].op != Op::kConst) {
    const Node& node = out.nodes_[at];
    const bool binary =
        node.inputs[1] != kNone && node.op != Op::kLookup &&
        out.nodes_[node.inputs[1]].count > out.nodes_[node.inputs[0]].count;
    at = node.inputs[binary ? 1 : 0];
  }
  out.main_constant_ = out.nodes_[at].constant;
  return out;
}

std::string WeightExpression::StorageText() const {
  // The constant with the most elements holds the codes, the first of equals.
  const Constant* codes = nullptr;
  const Node* lookup = nullptr;
  const Node* scaled = nullptr;
  for (const Node& node : nodes_) {
    if (node.op == Op::kLookup) lookup = &node;
    if (node.op == Op::kMultiply) scaled = &node;  // the last one
    if (node.op != Op::kConst) continue;
    const Constant& constant = model_->constants()[node.constant];
    if (codes == nullptr || constant.element_count > codes->element_count) {
      codes = &constant;
    }
  }
  std::string text(ElementTypeName(codes->type));
  if (lookup != nullptr) text += " codebook";
  // A group is the axis along which codes run and the scale does not, if it
  // was split off.
  if (scaled != nullptr && scaled->shape.size() > shape().size()) {
    const std::vector<uint64_t>& scale = nodes_[scaled->inputs[1]].shape;
    if (scale.size() == scaled->shape.size()) {
      for (size_t axis = 0; axis < scale.size(); ++axis) {
        if (scale[axis] == 1 && scaled->shape[axis] > 1) {
          absl::StrAppend(&text, " g", scaled->shape[axis]);
          break;
        }
      }
    }
  }
  return text;
}

absl::Status WeightExpression::Evaluate(ByteSource& bin, uint64_t first,
                                        uint64_t count, float* out) const {
  if (count == 0) return absl::OkStatus();
  return EvaluateNode(bin, nodes_.back(), first, count, out);
}

absl::Status WeightExpression::EvaluateNode(ByteSource& bin, const Node& node,
                                            uint64_t first, uint64_t count,
                                            float* out) const {
  switch (node.op) {
    case Op::kConst:
      return EvaluateConstant(bin, model_->constants()[node.constant], first,
                              count, out);
    case Op::kSame:
      return EvaluateNode(bin, nodes_[node.inputs[0]], first, count, out);
    case Op::kConvert:
      OVPRESS_RETURN_IF_ERROR(
          EvaluateNode(bin, nodes_[node.inputs[0]], first, count, out));
      RoundTo(node.type, out, count);
      return absl::OkStatus();
    case Op::kLookup:
      return EvaluateLookup(bin, node, first, count, out);
    default:
      return EvaluateBinary(bin, node, first, count, out);
  }
}

absl::Status WeightExpression::EvaluateConstant(ByteSource& bin,
                                                const Constant& constant,
                                                uint64_t first, uint64_t count,
                                                float* out) const {
  // Eight elements of any type begin on a byte.
  const uint64_t skip = first % 8;
  const uint64_t start = first - skip;
  const uint64_t bits = static_cast<uint64_t>(BitsPerElement(constant.type));
  const uint64_t offset = start / 8 * bits;
  const uint64_t size = std::min(*PackedSizeBytes(constant.type, skip + count),
                                 constant.size_bytes - offset);
  std::vector<std::byte> bytes(size);
  OVPRESS_RETURN_IF_ERROR(bin.ReadAt(constant.offset_bytes + offset, bytes));
  Decode(constant.type, bytes.data(), skip, count, out);
  return absl::OkStatus();
}

absl::Status WeightExpression::EvaluateLookup(ByteSource& bin, const Node& node,
                                              uint64_t first, uint64_t count,
                                              float* out) const {
  const Node& table_node = nodes_[node.inputs[0]];
  std::vector<float> table(table_node.count);
  OVPRESS_RETURN_IF_ERROR(
      EvaluateNode(bin, table_node, 0, table_node.count, table.data()));
  OVPRESS_RETURN_IF_ERROR(
      EvaluateNode(bin, nodes_[node.inputs[1]], first, count, out));
  for (uint64_t i = 0; i < count; ++i) {
    // Gather counts negative indices from the end.
    const float index =
        out[i] < 0 ? out[i] + static_cast<float>(table.size()) : out[i];
    if (!(index >= 0 && index < static_cast<float>(table.size()))) {
      return absl::DataLossError(absl::StrCat(
          "constant '", model_->constants()[main_constant_].name, "': index ",
          out[i], " leaves its table of ", table.size(), " entries"));
    }
    out[i] = table[static_cast<size_t>(index)];
  }
  return absl::OkStatus();
}

absl::Status WeightExpression::EvaluateBinary(ByteSource& bin, const Node& node,
                                              uint64_t first, uint64_t count,
                                              float* out) const {
  std::vector<float> values[2];
  uint64_t done = 0;
  while (done < count) {
    const uint64_t begin = first + done;
    uint64_t take = count - done;
    // A piece that runs through an operand twice would need all of it: cut
    // where the second run starts.
    for (int side = 0; side < 2; ++side) {
      for (;;) {
        const OperandRange range =
            RangeOf(node.axes, side, begin, begin + take - 1);
        if (range.high - range.low < take) break;
        take = range.block - begin % range.block;
      }
    }
    const OperandRange ranges[2] = {
        RangeOf(node.axes, 0, begin, begin + take - 1),
        RangeOf(node.axes, 1, begin, begin + take - 1)};
    for (int side = 0; side < 2; ++side) {
      const uint64_t size = ranges[side].high - ranges[side].low + 1;
      values[side].resize(size);
      OVPRESS_RETURN_IF_ERROR(EvaluateNode(bin, nodes_[node.inputs[side]],
                                           ranges[side].low, size,
                                           values[side].data()));
    }
    // Runs along the innermost axis.
    const Axis& inner = node.axes.back();
    uint64_t at = begin;
    while (at < begin + take) {
      const uint64_t column = at % inner.size;
      const uint64_t run = std::min(inner.size - column, begin + take - at);
      const float* operand[2];
      for (int side = 0; side < 2; ++side) {
        uint64_t rest = at / inner.size;
        uint64_t index = column * inner.stride[side];
        for (size_t axis = node.axes.size() - 1; axis-- > 0;) {
          index += rest % node.axes[axis].size * node.axes[axis].stride[side];
          rest /= node.axes[axis].size;
        }
        operand[side] = values[side].data() + (index - ranges[side].low);
      }
      float* const to = out + (at - first);
      const auto apply = [&](auto f) {
        const float* const a = operand[0];
        const float* const b = operand[1];
        if (inner.stride[0] != 0 && inner.stride[1] != 0) {
          for (uint64_t i = 0; i < run; ++i) to[i] = f(a[i], b[i]);
        } else if (inner.stride[0] != 0) {
          for (uint64_t i = 0; i < run; ++i) to[i] = f(a[i], *b);
        } else if (inner.stride[1] != 0) {
          for (uint64_t i = 0; i < run; ++i) to[i] = f(*a, b[i]);
        } else {
          for (uint64_t i = 0; i < run; ++i) to[i] = f(*a, *b);
        }
      };
      switch (node.op) {
        case Op::kAdd:
          apply([](float a, float b) { return a + b; });
          break;
        case Op::kSubtract:
          apply([](float a, float b) { return a - b; });
          break;
        case Op::kMultiply:
          apply([](float a, float b) { return a * b; });
          break;
        default:
          apply([](float a, float b) { return a / b; });
          break;
      }
      at += run;
    }
    done += take;
  }
  return absl::OkStatus();
}

}  // namespace ovpress
