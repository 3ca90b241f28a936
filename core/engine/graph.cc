#include "core/engine/graph.h"

#include <algorithm>
#include <deque>
#include <functional>
#include <queue>
#include <set>

#include "absl/container/flat_hash_map.h"
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

// Appends "0" until the name is free, four times at most: with a million equal
// names the zeros alone would fill terabytes, so further ones are numbered.
std::string FreeName(const std::string& name,
                     const absl::flat_hash_set<std::string>& existing,
                     absl::flat_hash_map<std::string, uint64_t>* next_number) {
  constexpr int kZerosMax = 4;
  std::string free = name;
  for (int zeros = 0; zeros < kZerosMax; ++zeros) {
    free += "0";
    if (!existing.contains(free)) return free;
  }
  uint64_t& number = (*next_number)[name];
  std::string numbered;
  do {
    numbered = absl::StrCat(free, "_", ++number);
  } while (existing.contains(numbered));
  return numbered;
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
  absl::flat_hash_map<std::string, uint64_t> next_number;
  for (const size_t at : ops) {
    std::string& name = graph->names[at];
    if (existing.contains(name)) {
      // NNCF appends one "0" and stops if that name is taken, too.
      name = FreeName(name, existing, &next_number);
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
// a constant. Remembers what it found for each layer on the way: a long chain
// with many readers would otherwise take time by the square.
class ConstantFinder {
 public:
  explicit ConstantFinder(const Model& model)
      : layers_(model.layers()), found_(layers_.size(), kUnknown) {}

  // kNone if anything else comes first.
  size_t Find(size_t layer) {
    path_.clear();
    size_t result = kNone;
    while (layer != kNone) {
      if (found_[layer] != kUnknown) {
        result = found_[layer];
        break;
      }
      path_.push_back(layer);
      const Layer& at = layers_[layer];
      if (at.type == "Const") {
        result = at.constant;
        break;
      }
      if ((at.type != "Convert" && at.type != "FakeQuantize" &&
           at.type != "FakeConvert" && at.type != "Reshape") ||
          at.producers.empty()) {
        break;
      }
      layer = at.producers[0].layer;
    }
    for (const size_t passed : path_) found_[passed] = result;
    return result;
  }

 private:
  static constexpr size_t kUnknown = kNone - 1;
  const std::vector<Layer>& layers_;
  std::vector<size_t> found_;
  std::vector<size_t> path_;
};

ElementType InputType(const Model& model, const Layer& layer, size_t input) {
  if (input >= layer.producers.size()) return ElementType::kDynamic;
  const Producer& producer = layer.producers[input];
  if (producer.layer == kNone) return ElementType::kDynamic;
  return model.layers()[producer.layer].outputs[producer.output].type;
}

bool IsEmbedding(const Model& model, const Layer& layer, absl::string_view name,
                 ConstantFinder* finder) {
  if (layer.type != "Gather" || layer.producers.empty()) return false;
  if (absl::EndsWith(name, "nncf_codebook")) return false;
  const ElementType type = InputType(model, layer, 0);
  if (type != ElementType::kF16 && type != ElementType::kF32 &&
      type != ElementType::kF64) {
    return false;
  }
  return finder->Find(layer.producers[0].layer) != kNone;
}

NodeKind KindOf(const Model& model, const Layer& layer, absl::string_view name,
                ConstantFinder* finder) {
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
  if (IsEmbedding(model, layer, name, finder)) return NodeKind::kEmbedding;
  return NodeKind::kOther;
}

void FindWeights(const Model& model, NodeGraph* graph) {
  const std::vector<Layer>& layers = model.layers();
  graph->kind.assign(layers.size(), NodeKind::kOther);
  ConstantFinder finder(model);
  for (const size_t at : graph->order) {
    const Layer& layer = layers[at];
    const NodeKind kind = KindOf(model, layer, graph->names[at], &finder);
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
      const size_t constant = finder.Find(producer);
      if (constant == kNone) continue;
      if (!IsFloatingPoint(model.constants()[constant].type)) continue;
      graph->weights.push_back({at, static_cast<int64_t>(input), constant});
    }
  }
}

}  // namespace

absl::string_view NodeTypeName(const Layer& layer) {
  return layer.type == "Const" ? absl::string_view("Constant") : layer.type;
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

// The patterns that NNCF always ignores. Answers about a layer are remembered,
// and what OpenVINO knows to have one input is looked at only then: the time is
// linear in the edges, whatever the file connects.
class IgnoredPatterns {
 public:
  IgnoredPatterns(const Model& model, const NodeGraph& graph)
      : model_(model),
        graph_(graph),
        feeds_(model.layers().size(), kUnknown),
        feeds_by_concat_(model.layers().size(), kUnknown),
        sam_(model.layers().size(), kUnknown) {}

  bool IsRope(size_t matmul) {
    if (FeedsSinAndCosByConcat(matmul)) return true;
    for (const size_t transpose : ReadersOfType(matmul, "Transpose")) {
      if (FeedsSinAndCos(transpose) || FeedsSinAndCosByConcat(transpose)) {
        return true;
      }
    }
    return false;
  }

  bool IsSamPositionalEmbedding(size_t matmul) {
    for (const size_t multiply : ReadersOfType(matmul, "Multiply")) {
      if (IsSamMultiply(multiply)) return true;
    }
    return false;
  }

 private:
  enum Answer : uint8_t { kNo, kYes, kUnknown };

  // Consumers of all outputs of `at` that have this type; one entry per edge.
  std::vector<size_t> ReadersOfType(size_t at, absl::string_view type) const {
    std::vector<size_t> found;
    for (const auto& consumers : model_.layers()[at].consumers) {
      for (const Consumer& consumer : consumers) {
        if (graph_.alive[consumer.layer] &&
            model_.layers()[consumer.layer].type == type) {
          found.push_back(consumer.layer);
        }
      }
    }
    return found;
  }

  template <typename Function>
  static bool Remember(Answer* answer, const Function& function) {
    if (*answer == kUnknown) *answer = function() ? kYes : kNo;
    return *answer == kYes;
  }

  bool FeedsSinAndCos(size_t at) {
    return Remember(&feeds_[at], [&] {
      return !ReadersOfType(at, "Sin").empty() &&
             !ReadersOfType(at, "Cos").empty();
    });
  }

  // at -> Concat, with exactly two edges, -> Sin and Cos.
  bool FeedsSinAndCosByConcat(size_t at) {
    return Remember(&feeds_by_concat_[at], [&] {
      std::vector<size_t> concats = ReadersOfType(at, "Concat");
      std::sort(concats.begin(), concats.end());
      for (size_t i = 0; i < concats.size();) {
        const size_t first = i;
        while (i < concats.size() && concats[i] == concats[first]) ++i;
        if (i - first == 2 && FeedsSinAndCos(concats[first])) return true;
      }
      return false;
    });
  }

  // multiply -> Sin and Cos -> one Concat.
  bool IsSamMultiply(size_t multiply) {
    return Remember(&sam_[multiply], [&] {
      absl::flat_hash_set<size_t> of_sin;
      for (const size_t sin : ReadersOfType(multiply, "Sin")) {
        if (model_.layers()[sin].producers.size() != 1) continue;
        for (const size_t concat : ReadersOfType(sin, "Concat")) {
          of_sin.insert(concat);
        }
      }
      for (const size_t cos : ReadersOfType(multiply, "Cos")) {
        if (model_.layers()[cos].producers.size() != 1) continue;
        for (const size_t concat : ReadersOfType(cos, "Concat")) {
          if (of_sin.contains(concat)) return true;
        }
      }
      return false;
    });
  }

  const Model& model_;
  const NodeGraph& graph_;
  std::vector<Answer> feeds_;
  std::vector<Answer> feeds_by_concat_;
  std::vector<Answer> sam_;
};

}  // namespace

std::vector<size_t> FindAlwaysIgnored(const Model& model,
                                      const NodeGraph& graph) {
  std::vector<size_t> found;
  IgnoredPatterns patterns(model, graph);
  for (const size_t at : graph.order) {
    if (model.layers()[at].type != "MatMul") continue;
    if (patterns.IsRope(at) || patterns.IsSamPositionalEmbedding(at)) {
      found.push_back(at);
    }
  }
  return found;
}

}  // namespace ovpress
