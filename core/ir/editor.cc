#include "core/ir/editor.h"

#include <cstring>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/check.h"

namespace ovpress {
namespace {

using PortKey = std::pair<uint64_t, int64_t>;

// pugixml appends to a string; std::ostream costs a virtual call per chunk.
class StringWriter final : public pugi::xml_writer {
 public:
  void write(const void* data, size_t size) override {
    text.append(static_cast<const char*>(data), size);
  }
  std::string text;
};

void SetNumber(pugi::xml_node node, const char* name, uint64_t value) {
  pugi::xml_attribute attribute = node.attribute(name);
  if (!attribute) attribute = node.append_attribute(name);
  attribute.set_value(static_cast<unsigned long long>(value));
}

void SetText(pugi::xml_node node, const char* name, const std::string& value) {
  pugi::xml_attribute attribute = node.attribute(name);
  if (!attribute) attribute = node.append_attribute(name);
  attribute.set_value(value.c_str());
}

void AppendPort(pugi::xml_node parent, int64_t id, const NewPort& port) {
  pugi::xml_node node = parent.append_child("port");
  node.append_attribute("id").set_value(static_cast<long long>(id));
  node.append_attribute("precision")
      .set_value(std::string(PortPrecisionName(port.type)).c_str());
  for (const int64_t dim : port.dims) {
    node.append_child("dim").text().set(static_cast<long long>(dim));
  }
}

void Fill(pugi::xml_node node, uint64_t id, const NewLayer& layer) {
  SetNumber(node, "id", id);
  SetText(node, "name", layer.name);
  SetText(node, "type", layer.type);
  SetText(node, "version", layer.version);
  if (!layer.attributes.empty()) {
    pugi::xml_node data = node.append_child("data");
    for (const auto& [name, value] : layer.attributes) {
      SetText(data, name.c_str(), value);
    }
  }
  int64_t port = 0;
  if (!layer.inputs.empty()) {
    pugi::xml_node inputs = node.append_child("input");
    for (const NewPort& input : layer.inputs) AppendPort(inputs, port++, input);
  }
  if (!layer.outputs.empty()) {
    pugi::xml_node outputs = node.append_child("output");
    for (const NewPort& output : layer.outputs) {
      AppendPort(outputs, port++, output);
    }
  }
}

}  // namespace

struct ModelEditor::Impl {
  pugi::xml_document document;
  pugi::xml_node net;
  pugi::xml_node layers;
  pugi::xml_node edges;
  uint64_t next_id = 0;
  absl::flat_hash_map<uint64_t, pugi::xml_node> nodes;
  // Where the next layer behind an anchor goes.
  absl::flat_hash_map<uint64_t, pugi::xml_node> last_after;
  absl::flat_hash_map<PortKey, pugi::xml_node> edge_to;
  // Edges by their source layer; may hold edges that were since redirected.
  absl::flat_hash_map<uint64_t, std::vector<PortKey>> edges_from;
  std::vector<pugi::xml_node> constants;  // <data> elements, document order

  pugi::xml_node NodeOf(uint64_t id) const {
    const auto found = nodes.find(id);
    OVPRESS_CHECK(found != nodes.end());
    return found->second;
  }
  uint64_t NewId() {
    // Wraps if the file uses the largest id; each id is tried once at most.
    while (nodes.contains(next_id)) ++next_id;
    return next_id;
  }
  void RemoveEdgeTo(const PortKey& key) {
    const auto found = edge_to.find(key);
    if (found == edge_to.end()) return;
    edges.remove_child(found->second);
    edge_to.erase(found);
  }
};

ModelEditor::ModelEditor(const Model& model) : impl_(std::make_unique<Impl>()) {
  Impl& impl = *impl_;
  impl.document.reset(model.document());
  impl.net = impl.document.child("net");
  impl.layers = impl.net.child("layers");
  impl.edges = impl.net.child("edges");
  if (!impl.edges) {
    impl.edges = impl.net.insert_child_after("edges", impl.layers);
  }
  for (const pugi::xml_node node : impl.layers.children("layer")) {
    const uint64_t id = node.attribute("id").as_ullong();
    impl.nodes[id] = node;
    // The largest id there is has no successor: NewId() looks for a free one.
    impl.next_id = std::max(impl.next_id, id);
  }
  for (const pugi::xml_node edge : impl.edges.children("edge")) {
    const PortKey to{edge.attribute("to-layer").as_ullong(),
                     edge.attribute("to-port").as_llong()};
    impl.edge_to[to] = edge;
    impl.edges_from[edge.attribute("from-layer").as_ullong()].push_back(to);
  }
  // The constants in the order in which Model::Parse found them: in or below
  // the elements <layer> directly under <layers>, nowhere else.
  std::vector<pugi::xml_node> stack;
  for (pugi::xml_node node = impl.layers.last_child(); node;
       node = node.previous_sibling()) {
    if (std::strcmp(node.name(), "layer") == 0) stack.push_back(node);
  }
  while (!stack.empty()) {
    const pugi::xml_node at = stack.back();
    stack.pop_back();
    if (std::strcmp(at.name(), "layer") == 0 &&
        std::strcmp(at.attribute("type").value(), "Const") == 0) {
      impl.constants.push_back(at.child("data"));
      continue;
    }
    for (pugi::xml_node child = at.last_child(); child;
         child = child.previous_sibling()) {
      if (child.type() == pugi::node_element) stack.push_back(child);
    }
  }
  OVPRESS_CHECK(impl.constants.size() == model.constants().size());
}

ModelEditor::~ModelEditor() = default;

uint64_t ModelEditor::AddLayerAfter(uint64_t anchor_id, const NewLayer& layer) {
  const auto found = impl_->last_after.find(anchor_id);
  const pugi::xml_node after = found != impl_->last_after.end()
                                   ? found->second
                                   : impl_->NodeOf(anchor_id);
  const pugi::xml_node node = impl_->layers.insert_child_after("layer", after);
  const uint64_t id = impl_->NewId();
  Fill(node, id, layer);
  impl_->last_after[anchor_id] = node;
  impl_->nodes[id] = node;
  return id;
}

uint64_t ModelEditor::AddLayerBefore(uint64_t anchor_id,
                                     const NewLayer& layer) {
  const pugi::xml_node node =
      impl_->layers.insert_child_before("layer", impl_->NodeOf(anchor_id));
  const uint64_t id = impl_->NewId();
  Fill(node, id, layer);
  impl_->nodes[id] = node;
  return id;
}

void ModelEditor::Connect(PortRef from, PortRef to) {
  const PortKey key{to.layer_id, to.port_id};
  pugi::xml_node& edge = impl_->edge_to[key];
  if (!edge) edge = impl_->edges.append_child("edge");
  SetNumber(edge, "from-layer", from.layer_id);
  SetNumber(edge, "from-port", static_cast<uint64_t>(from.port_id));
  SetNumber(edge, "to-layer", to.layer_id);
  SetNumber(edge, "to-port", static_cast<uint64_t>(to.port_id));
  impl_->edges_from[from.layer_id].push_back(key);
}

void ModelEditor::SetLayerName(uint64_t layer_id, const std::string& name) {
  SetText(impl_->NodeOf(layer_id), "name", name);
}

void ModelEditor::RemoveLayer(uint64_t layer_id) {
  const pugi::xml_node node = impl_->NodeOf(layer_id);
  for (const pugi::xml_node port : node.child("input").children("port")) {
    impl_->RemoveEdgeTo({layer_id, port.attribute("id").as_llong()});
  }
  const auto found = impl_->edges_from.find(layer_id);
  if (found != impl_->edges_from.end()) {
    for (const PortKey& key : found->second) {
      const auto edge = impl_->edge_to.find(key);
      // Redirected edges stay: they no longer come from here.
      if (edge != impl_->edge_to.end() &&
          edge->second.attribute("from-layer").as_ullong() == layer_id) {
        impl_->RemoveEdgeTo(key);
      }
    }
    impl_->edges_from.erase(found);
  }
  // Layers placed behind this one go on behind its predecessor.
  const auto last = impl_->last_after.find(layer_id);
  if (last != impl_->last_after.end()) impl_->last_after.erase(last);
  impl_->layers.remove_child(node);
  impl_->nodes.erase(layer_id);
}

void ModelEditor::SetConstant(uint64_t layer_id, ElementType type,
                              const std::vector<uint64_t>& shape,
                              uint64_t offset_bytes, uint64_t size_bytes,
                              bool drop_metadata) {
  pugi::xml_node node = impl_->NodeOf(layer_id);
  pugi::xml_node data = node.child("data");
  SetText(data, "element_type", std::string(ElementTypeName(type)));
  SetText(data, "shape", absl::StrJoin(shape, ", "));
  SetNumber(data, "offset", offset_bytes);
  SetNumber(data, "size", size_bytes);
  pugi::xml_node port = node.child("output").child("port");
  SetText(port, "precision", std::string(PortPrecisionName(type)));
  while (port.remove_child("dim")) {
  }
  // Dimensions stand before the port's rt_info.
  const pugi::xml_node behind = port.first_child();
  for (const uint64_t dim : shape) {
    pugi::xml_node child = behind ? port.insert_child_before("dim", behind)
                                  : port.append_child("dim");
    child.text().set(static_cast<unsigned long long>(dim));
  }
  if (drop_metadata) {
    port.remove_attribute("names");
    port.remove_child("rt_info");
    node.remove_child("rt_info");
  }
}

void ModelEditor::SetConstantOffset(size_t index, uint64_t offset_bytes) {
  OVPRESS_CHECK(index < impl_->constants.size());
  SetNumber(impl_->constants[index], "offset", offset_bytes);
}

void ModelEditor::SetRtInfo(const std::vector<std::string>& path,
                            const std::string& value) {
  pugi::xml_node at = impl_->net.child("rt_info");
  if (!at) at = impl_->net.append_child("rt_info");
  for (const std::string& key : path) {
    pugi::xml_node child = at.child(key.c_str());
    if (!child) {
      // <info> stands first in OpenVINO's files, the rest is sorted.
      pugi::xml_node before;
      for (const pugi::xml_node sibling : at.children()) {
        if (std::strcmp(sibling.name(), "info") != 0 &&
            std::strcmp(sibling.name(), key.c_str()) > 0) {
          before = sibling;
          break;
        }
      }
      child = before ? at.insert_child_before(key.c_str(), before)
                     : at.append_child(key.c_str());
    }
    at = child;
  }
  while (at.remove_child(at.first_child())) {
  }
  SetText(at, "value", value);
}

void ModelEditor::AdoptLegacyMetadata() {
  pugi::xml_node net = impl_->net;
  const pugi::xml_node meta = net.child("meta_data");
  const pugi::xml_node quantization = net.child("quantization_parameters");
  if (!net.child("rt_info") && (meta || quantization)) {
    pugi::xml_node rt_info = net.append_child("rt_info");
    for (const pugi::xml_node child : meta.children()) {
      if (child.type() != pugi::node_element) continue;
      pugi::xml_node copy = rt_info.append_copy(child);
      if (std::strcmp(child.name(), "cli_parameters") == 0) {
        copy.set_name("conversion_parameters");
      }
    }
    if (quantization) {
      pugi::xml_node copy = rt_info.append_copy(quantization);
      copy.set_name("optimization");
      // Python text that the tool of that time wrote between the tags.
      if (pugi::xml_node config = copy.child("config");
          config && !config.attribute("value")) {
        StringWriter text;
        for (const pugi::xml_node part : config.children()) {
          part.print(text, "", pugi::format_raw);
        }
        std::string line;
        for (const char c : text.text) {
          if (c == '\n' || (c == ' ' && !line.empty() && line.back() == ' ')) {
            continue;
          }
          line += c;
        }
        while (config.remove_child(config.first_child())) {
        }
        SetText(config, "value", line);
      }
    }
  }
  net.remove_child("meta_data");
  net.remove_child("quantization_parameters");
}

void ModelEditor::RemoveRtInfo(const std::vector<std::string>& path) {
  pugi::xml_node at = impl_->net.child("rt_info");
  for (const std::string& key : path) at = at.child(key.c_str());
  if (at) at.parent().remove_child(at);
}

std::string ModelEditor::Serialize() const {
  StringWriter writer;
  impl_->document.save(writer, "\t");
  return std::move(writer.text);
}

}  // namespace ovpress
