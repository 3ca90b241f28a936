// The graph as NNCF sees it: which layers are alive, in which order it walks
// them, which inputs hold weights. Orders and rules are those of NNCF 3.4
// (nncf_graph_builder.py) on a model that OpenVINO read from this IR.
#ifndef OVPRESS_CORE_ENGINE_GRAPH_H_
#define OVPRESS_CORE_ENGINE_GRAPH_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/ir/model.h"

namespace ovpress {

enum class NodeKind : uint8_t {
  kOther,
  kMatMul,
  kGroupedMatMul,
  kEmbedding,  // a Gather that NNCF classes as an embedding
  kConvolution,
  kConvolutionBackpropData,
  kGroupConvolution,  // depthwise included
  kGroupConvolutionBackpropData,
};

struct WeightInput {
  size_t layer = kNone;     // the node, position in Model::layers
  int64_t port = 0;         // input index of the node
  size_t constant = kNone;  // position in Model::constants
};

// Pure function of the model; immutable.
struct NodeGraph {
  // Alive layers (those that some Result, sink or Parameter needs) in NNCF's
  // topological order. Positions in Model::layers.
  std::vector<size_t> order;
  std::vector<bool> alive;           // by layer
  std::vector<bool> from_parameter;  // by layer: depends on an input or state
  std::vector<NodeKind> kind;        // by layer
  // Friendly names after NNCF made them unique: a repeated name gets a "0".
  std::vector<std::string> names;  // by layer
  std::vector<size_t> renamed;     // layers whose name changed
  // Weight inputs of alive nodes: in `order`, ports ascending.
  std::vector<WeightInput> weights;
};

NodeGraph BuildNodeGraph(const Model& model);

// OpenVINO's type name: "Const" of the XML is "Constant".
absl::string_view NodeTypeName(const Layer& layer);

// Layers of the two patterns that NNCF always ignores: RoPE (MatMul, then
// Transpose and/or a Concat with itself, then both Sin and Cos) and SAM's
// positional embedding (MatMul, Multiply, Sin and Cos, Concat). Only the
// MatMuls are returned; nothing else in the patterns can hold a weight.
std::vector<size_t> FindAlwaysIgnored(const Model& model,
                                      const NodeGraph& graph);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_GRAPH_H_
