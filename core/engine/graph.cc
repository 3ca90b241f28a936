#include "core/engine/graph.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <queue>
#include <set>

#include "absl/container/flat_hash_set.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"

namespace ovpress {
namespace {

bool IsSinkWithBody(const Layer& layer) {
  // If, Loop and TensorIterator are sinks only if a body holds a state.
  return layer.has_body &&
         !layer.node
              .find_node([](pugi::xml_node node) {
                return absl::string_view(node.name()) == "layer" &&
                       absl::string_view(node.attribute("type").value()) ==
                           "Assign";
              })
              .empty();
}

// OpenVINO's Model::get_ops(): depth first from Results, then sinks, then
// Parameters, all pushed on one stack, so that the last pushed is walked first.
std::vector<size_t> OpsOrder(const Model& model, std::vector<bool>* alive) {
  const std::vector<Layer>& layers = model.layers();
  // The IR reader creates only what Results and Assigns need, plus all
  // Parameters.
  alive->assign(layers.size(), false);
  std::vector<size_t> stack;
  for (size_t i = 0; i < layers.size(); ++i) {
    const absl::string_view type = layers[i].type;
    if (type == "Result" || type == "Assign") stack.push_back(i);
    if (type == "Parameter") (*alive)[i] = true;
  }
  while (!stack.empty()) {
    const size_t at = stack.back();
    stack.pop_back();
    if ((*alive)[at] && layers[at].type != "Parameter") continue;
    (*alive)[at] = true;
    for (const Producer& producer : layers[at].producers) {
      if (producer.layer != kNone && !(*alive)[producer.layer]) {
        stack.push_back(producer.layer);
      }
    }
  }

  std::vector<size_t> results, sinks, parameters;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (!(*alive)[i]) continue;
    const Layer& layer = layers[i];
    if (layer.type == "Result") {
      results.push_back(i);
    } else if (layer.type == "Assign" || IsSinkWithBody(layer)) {
      sinks.push_back(i);
    } else if (layer.type == "Parameter") {
      parameters.push_back(i);
    }
  }
  stack.clear();
  for (const auto* group : {&results, &sinks, &parameters}) {
    stack.insert(stack.end(), group->begin(), group->end());
  }
  std::vector<size_t> ops;
  std::vector<bool> seen(layers.size(), false);
  while (!stack.empty()) {
    const size_t at = stack.back();
    stack.pop_back();
    if (seen[at]) continue;
    seen[at] = true;
    ops.push_back(at);
    for (const Producer& producer : layers[at].producers) {
      if (producer.layer != kNone) stack.push_back(producer.layer);
    }
  }
  return ops;
}

// Names as NNCF would make them unique. It does so once in a model's life: the
// flag in rt_info says it was done.
void MakeNamesUnique(const Model& model, const std::vector<size_t>& ops,
                     NodeGraph* graph) {
  const std::vector<Layer>& layers = model.layers();
  graph->names.resize(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) {
    graph->names[i] = std::string(layers[i].name);
  }
  const pugi::xml_node flag =
      model.document().child("net").child("rt_info").child("nncf").child(
          "friendly_names_were_updated");
  if (absl::string_view(flag.attribute("value").value()) == "True") return;
  absl::flat_hash_set<std::string> existing;
  for (const size_t at : ops) {
    std::string& name = graph->names[at];
    if (existing.contains(name)) {
      // NNCF appends one "0" and stops if that name is taken, too.
      do {
        name += "0";
      } while (existing.contains(name));
      graph->renamed.push_back(at);
    }
    existing.insert(name);
  }
}

// Ids: breadth first from Parameters and states along consumers sorted by name,
// then the rest in ops order. Order: Kahn's algorithm, smallest id first.
void Sort(const Model& model, const std::vector<size_t>& ops,
          NodeGraph* graph) {
  const std::vector<Layer>& layers = model.layers();
  std::vector<size_t> id(layers.size(), kNone);
  size_t next_id = 0;
  std::deque<size_t> queue;
  for (size_t i = 0; i < layers.size(); ++i) {
    if (layers[i].type == "Parameter") queue.push_back(i);
  }
  for (const size_t at : ops) {
    if (layers[at].type == "ReadValue") queue.push_back(at);
  }
  graph->from_parameter.assign(layers.size(), false);
  std::vector<size_t> readers;
  while (!queue.empty()) {
    const size_t at = queue.front();
    queue.pop_front();
    if (id[at] != kNone) continue;
    id[at] = next_id++;
    graph->from_parameter[at] = true;
    for (const std::vector<Consumer>& consumers : layers[at].consumers) {
      readers.clear();
      for (const Consumer& consumer : consumers) {
        if (graph->alive[consumer.layer]) readers.push_back(consumer.layer);
      }
      std::stable_sort(readers.begin(), readers.end(), [&](size_t a, size_t b) {
        return graph->names[a] < graph->names[b];
      });
      for (const size_t reader : readers) {
        if (id[reader] == kNone) queue.push_back(reader);
      }
    }
  }
  for (const size_t at : ops) {
    if (id[at] == kNone) id[at] = next_id++;
  }

  std::vector<size_t> waiting(layers.size(), 0);
  using Entry = std::pair<size_t, size_t>;  // id, layer
  std::priority_queue<Entry, std::vector<Entry>, std::greater<>> ready;
  for (const size_t at : ops) {
    for (const Producer& producer : layers[at].producers) {
      if (producer.layer != kNone) ++waiting[at];
    }
    if (waiting[at] == 0) ready.emplace(id[at], at);
  }
  graph->order.reserve(ops.size());
  while (!ready.empty()) {
    const size_t at = ready.top().second;
    ready.pop();
    graph->order.push_back(at);
    for (const std::vector<Consumer>& consumers : layers[at].consumers) {
      for (const Consumer& consumer : consumers) {
        if (!graph->alive[consumer.layer]) continue;
        if (--waiting[consumer.layer] == 0) {
          ready.emplace(id[consumer.layer], consumer.layer);
        }
      }
    }
  }
}

// Walks up through Convert, FakeQuantize, FakeConvert and Reshape (input 0) to
// a constant; kNone if anything else comes first.
size_t FindConstant(const Model& model, size_t layer) {
  const std::vector<Layer>& layers = model.layers();
  while (layer != kNone) {
    const Layer& at = layers[layer];
    if (at.type == "Const") return at.constant;
    if (at.type != "Convert" && at.type != "FakeQuantize" &&
        at.type != "FakeConvert" && at.type != "Reshape") {
      return kNone;
    }
    if (at.producers.empty()) return kNone;
    layer = at.producers[0].layer;
  }
  return kNone;
}

ElementType InputType(const Model& model, const Layer& layer, size_t input) {
  if (input >= layer.producers.size()) return ElementType::kDynamic;
  const Producer& producer = layer.producers[input];
  if (producer.layer == kNone) return ElementType::kDynamic;
  return model.layers()[producer.layer].outputs[producer.output].type;
}

bool IsEmbedding(const Model& model, const Layer& layer,
                 absl::string_view name) {
  if (layer.type != "Gather" || layer.producers.empty()) return false;
  if (absl::EndsWith(name, "nncf_codebook")) return false;
  const ElementType type = InputType(model, layer, 0);
  if (type != ElementType::kF16 && type != ElementType::kF32 &&
      type != ElementType::kF64) {
    return false;
  }
  return FindConstant(model, layer.producers[0].layer) != kNone;
}

NodeKind KindOf(const Model& model, const Layer& layer,
                absl::string_view name) {
  const absl::string_view type = layer.type;
  if (type == "MatMul") return NodeKind::kMatMul;
  if (type == "GroupedMatMul") return NodeKind::kGroupedMatMul;
  if (type == "Convolution") return NodeKind::kConvolution;
  if (type == "ConvolutionBackpropData") {
    return NodeKind::kConvolutionBackpropData;
  }
  if (type == "GroupConvolution") return NodeKind::kGroupConvolution;
  if (type == "GroupConvolutionBackpropData") {
    return NodeKind::kGroupConvolutionBackpropData;
  }
  if (IsEmbedding(model, layer, name)) return NodeKind::kEmbedding;
  return NodeKind::kOther;
}

void FindWeights(const Model& model, NodeGraph* graph) {
  const std::vector<Layer>& layers = model.layers();
  graph->kind.assign(layers.size(), NodeKind::kOther);
  for (const size_t at : graph->order) {
    const Layer& layer = layers[at];
    const NodeKind kind = KindOf(model, layer, graph->names[at]);
    graph->kind[at] = kind;
    if (kind == NodeKind::kOther || !graph->from_parameter[at]) continue;
    size_t first = 0;
    size_t last = layer.producers.size();
    if (kind == NodeKind::kConvolutionBackpropData ||
        kind == NodeKind::kGroupConvolutionBackpropData) {
      last = std::min<size_t>(last, 2);  // input 2 is the output shape
    } else if (kind == NodeKind::kGroupedMatMul) {
      first = std::min<size_t>(last, 1);
      last = std::min<size_t>(last, 2);
    }
    for (size_t input = first; input < last; ++input) {
      const size_t producer = layer.producers[input].layer;
      if (producer == kNone || graph->from_parameter[producer]) continue;
      const size_t constant = FindConstant(model, producer);
      if (constant == kNone) continue;
      if (!IsFloatingPoint(model.constants()[constant].type)) continue;
      graph->weights.push_back({at, static_cast<int64_t>(input), constant});
    }
  }
}

}  // namespace

absl::string_view NodeTypeName(const Layer& layer) {
  // The names that OpenVINO writes differently from what it calls them.
  if (layer.type == "Const") return "Constant";
  if (layer.type == "ReLU") return "Relu";
  if (layer.type == "PReLU") return "PRelu";
  if (layer.type == "SoftMax") return "Softmax";
  return layer.type;
}

NodeGraph BuildNodeGraph(const Model& model) {
  NodeGraph graph;
  const std::vector<size_t> ops = OpsOrder(model, &graph.alive);
  MakeNamesUnique(model, ops, &graph);
  Sort(model, ops, &graph);
  FindWeights(model, &graph);
  return graph;
}

namespace {

// Consumers of all outputs of `at` that have this type; one entry per edge.
std::vector<size_t> ReadersOfType(const Model& model, const NodeGraph& graph,
                                  size_t at, absl::string_view type) {
  std::vector<size_t> found;
  for (const std::vector<Consumer>& consumers : model.layers()[at].consumers) {
    for (const Consumer& consumer : consumers) {
      if (graph.alive[consumer.layer] &&
          model.layers()[consumer.layer].type == type) {
        found.push_back(consumer.layer);
      }
    }
  }
  return found;
}

bool FeedsSinAndCos(const Model& model, const NodeGraph& graph, size_t at) {
  return !ReadersOfType(model, graph, at, "Sin").empty() &&
         !ReadersOfType(model, graph, at, "Cos").empty();
}

// at -> Concat, with exactly two edges, -> Sin and Cos.
bool FeedsSinAndCosByConcat(const Model& model, const NodeGraph& graph,
                            size_t at) {
  const std::vector<size_t> concats = ReadersOfType(model, graph, at, "Concat");
  for (const size_t concat : concats) {
    if (std::count(concats.begin(), concats.end(), concat) == 2 &&
        FeedsSinAndCos(model, graph, concat)) {
      return true;
    }
  }
  return false;
}

bool IsRope(const Model& model, const NodeGraph& graph, size_t matmul) {
  if (FeedsSinAndCosByConcat(model, graph, matmul)) return true;
  for (const size_t transpose :
       ReadersOfType(model, graph, matmul, "Transpose")) {
    if (FeedsSinAndCos(model, graph, transpose) ||
        FeedsSinAndCosByConcat(model, graph, transpose)) {
      return true;
    }
  }
  return false;
}

bool IsSamPositionalEmbedding(const Model& model, const NodeGraph& graph,
                              size_t matmul) {
  for (const size_t multiply :
       ReadersOfType(model, graph, matmul, "Multiply")) {
    for (const size_t sin : ReadersOfType(model, graph, multiply, "Sin")) {
      for (const size_t cos : ReadersOfType(model, graph, multiply, "Cos")) {
        const std::vector<size_t> a =
            ReadersOfType(model, graph, sin, "Concat");
        const std::vector<size_t> b =
            ReadersOfType(model, graph, cos, "Concat");
        if (std::find_first_of(a.begin(), a.end(), b.begin(), b.end()) !=
            a.end()) {
          return true;
        }
      }
    }
  }
  return false;
}

}  // namespace

std::vector<size_t> FindAlwaysIgnored(const Model& model,
                                      const NodeGraph& graph) {
  std::vector<size_t> found;
  for (const size_t at : graph.order) {
    if (model.layers()[at].type != "MatMul") continue;
    if (IsRope(model, graph, at) ||
        IsSamPositionalEmbedding(model, graph, at)) {
      found.push_back(at);
    }
  }
  return found;
}

}  // namespace ovpress
