#include "core/ir/model.h"

#include <algorithm>
#include <cstdlib>
#include <limits>
#include <new>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

// pugixml answers a lack of memory with null nodes, on which every edit does
// nothing: the result would be a wrong document and no error. So it throws.
void* AllocateOrThrow(size_t size) {
  void* const memory = std::malloc(size);
  if (memory == nullptr) throw std::bad_alloc();
  return memory;
}
[[maybe_unused]] const bool kMemoryFunctionsSet = [] {
  pugi::set_memory_management_functions(AllocateOrThrow, std::free);
  return true;
}();

// Messages quote names from the file; a hostile one may be megabytes long.
std::string Quote(absl::string_view name) {
  constexpr size_t kMax = 200;
  if (name.size() <= kMax) return absl::StrCat("'", name, "'");
  return absl::StrCat("'", name.substr(0, kMax), "...'");
}

// Depth and kind of every node, without recursion (pugixml's walker is
// iterative, as are its parser and writer).
class DepthChecker : public pugi::xml_tree_walker {
 public:
  explicit DepthChecker(int depth_max) : depth_max_(depth_max) {}
  bool for_each(pugi::xml_node& node) override {
    if (node.type() == pugi::node_doctype) {
      has_doctype_ = true;
      return false;
    }
    if (depth() >= depth_max_) {
      too_deep_ = true;
      return false;
    }
    return true;
  }
  bool too_deep() const { return too_deep_; }
  bool has_doctype() const { return has_doctype_; }

 private:
  const int depth_max_;
  bool too_deep_ = false;
  bool has_doctype_ = false;
};

// An unsigned attribute; kDataLoss if absent or not a plain number.
absl::StatusOr<uint64_t> UnsignedAttribute(pugi::xml_node node,
                                           const char* name,
                                           absl::string_view where) {
  const pugi::xml_attribute attribute = node.attribute(name);
  uint64_t value = 0;
  if (!attribute) {
    return absl::DataLossError(
        absl::StrCat(where, " has no attribute '", name, "'"));
  }
  if (!absl::SimpleAtoi(attribute.value(), &value)) {
    return absl::DataLossError(absl::StrCat(where, ": attribute ", name, "=",
                                            Quote(attribute.value()),
                                            " is not an unsigned number"));
  }
  return value;
}

// OpenVINO looks operations up whatever the case of their type, but finds the
// ends of a graph by "Result" and "Assign" alone. The engine compares exactly,
// with these:
constexpr absl::string_view kTypes[] = {"Add",
                                        "Clamp",
                                        "Concat",
                                        "Constant",
                                        "Convert",
                                        "Convolution",
                                        "ConvolutionBackpropData",
                                        "Cos",
                                        "Divide",
                                        "Elu",
                                        "FakeConvert",
                                        "FakeQuantize",
                                        "Gather",
                                        "Gelu",
                                        "GroupConvolution",
                                        "GroupConvolutionBackpropData",
                                        "GroupedMatMul",
                                        "HSigmoid",
                                        "HSwish",
                                        "HardSigmoid",
                                        "MatMul",
                                        "Multiply",
                                        "PRelu",
                                        "Parameter",
                                        "ReadValue",
                                        "Relu",
                                        "Reshape",
                                        "Selu",
                                        "ShapeOf",
                                        "Sigmoid",
                                        "Sin",
                                        "Softmax",
                                        "Squeeze",
                                        "Subtract",
                                        "Swish",
                                        "Transpose",
                                        "Unsqueeze"};

absl::string_view CanonicalType(absl::string_view type) {
  static const auto* const kByLowerCase = [] {
    auto* map = new absl::flat_hash_map<std::string, absl::string_view>;
    for (const absl::string_view name : kTypes) {
      (*map)[absl::AsciiStrToLower(name)] = name;
    }
    return map;
  }();
  const auto found = kByLowerCase->find(absl::AsciiStrToLower(type));
  return found == kByLowerCase->end() ? type : found->second;
}

// In files, a Constant is a Const. OpenVINO reads the other as something whose
// bytes it does not find.
absl::Status CheckIsNoConstant(absl::string_view type, absl::string_view name) {
  if (CanonicalType(type) != "Constant") return absl::OkStatus();
  return absl::DataLossError(absl::StrCat("layer ", Quote(name),
                                          " has the type ", Quote(type),
                                          "; an IR calls a constant 'Const'"));
}

absl::StatusOr<Port> ParsePort(pugi::xml_node node, const IrLimits& limits,
                               absl::string_view where) {
  Port port;
  port.node = node;
  OVPRESS_ASSIGN_OR_RETURN(const uint64_t id,
                           UnsignedAttribute(node, "id", where));
  if (id > static_cast<uint64_t>(std::numeric_limits<int32_t>::max())) {
    return absl::DataLossError(
        absl::StrCat(where, ": port id ", id, " is out of range"));
  }
  port.id = static_cast<int64_t>(id);
  // An unknown precision matters only if this is a weight; then the constant's
  // element type is checked.
  port.type = ParseElementType(node.attribute("precision").value())
                  .value_or(ElementType::kDynamic);
  for (const pugi::xml_node dim : node.children("dim")) {
    int64_t value = -1;
    // Intervals and question marks are dynamic to us.
    if (!absl::SimpleAtoi(dim.text().get(), &value) || value < -1) value = -1;
    port.dims.push_back(value);
    if (port.dims.size() > limits.rank_max) {
      return absl::ResourceExhaustedError(absl::StrCat(
          where, " has a port of more than ", limits.rank_max, " dimensions"));
    }
  }
  return port;
}

absl::StatusOr<Constant> ParseConstant(pugi::xml_node layer,
                                       const IrLimits& limits) {
  Constant constant;
  constant.name = layer.attribute("name").value();
  const std::string where = absl::StrCat("constant ", Quote(constant.name));
  constant.data = layer.child("data");
  if (!constant.data) {
    return absl::DataLossError(absl::StrCat(where, " has no <data>"));
  }
  const char* const type_name = constant.data.attribute("element_type").value();
  const std::optional<ElementType> type = ParseElementType(type_name);
  // Ports write FP32; OpenVINO takes nothing but f32 here.
  if (!type.has_value() || *type == ElementType::kDynamic ||
      ElementTypeName(*type) != type_name) {
    return absl::UnimplementedError(
        absl::StrCat(where, " has unknown element type ", Quote(type_name)));
  }
  constant.type = *type;
  constant.element_count = 1;
  for (const absl::string_view part :
       absl::StrSplit(constant.data.attribute("shape").value(), ',',
                      absl::SkipWhitespace())) {
    uint64_t dim = 0;
    if (!absl::SimpleAtoi(absl::StripAsciiWhitespace(part), &dim) ||
        dim > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return absl::DataLossError(absl::StrCat(
          where, ": shape ", Quote(constant.data.attribute("shape").value()),
          " is not a list of sizes"));
    }
    constant.shape.push_back(dim);
    if (constant.shape.size() > limits.rank_max) {
      return absl::ResourceExhaustedError(absl::StrCat(
          where, " has more than ", limits.rank_max, " dimensions"));
    }
    if (dim != 0 &&
        constant.element_count > std::numeric_limits<uint64_t>::max() / dim) {
      return absl::DataLossError(
          absl::StrCat(where, ": the product of shape ",
                       Quote(constant.data.attribute("shape").value()),
                       " overflows 64 bits"));
    }
    constant.element_count *= dim;
  }
  OVPRESS_ASSIGN_OR_RETURN(constant.offset_bytes,
                           UnsignedAttribute(constant.data, "offset", where));
  OVPRESS_ASSIGN_OR_RETURN(constant.size_bytes,
                           UnsignedAttribute(constant.data, "size", where));
  if (constant.size_bytes >
      std::numeric_limits<uint64_t>::max() - constant.offset_bytes) {
    return absl::DataLossError(
        absl::StrCat(where, ": offset ", constant.offset_bytes, " plus size ",
                     constant.size_bytes, " overflows 64 bits"));
  }
  if (constant.type != ElementType::kString) {
    // Like OpenVINO, take a size larger than needed; never a smaller one.
    const std::optional<uint64_t> needed =
        PackedSizeBytes(constant.type, constant.element_count);
    if (!needed.has_value() || constant.size_bytes < *needed) {
      return absl::DataLossError(absl::StrCat(
          where, " of type ", ElementTypeName(constant.type), " and shape [",
          constant.data.attribute("shape").value(), "] needs ",
          needed.has_value() ? absl::StrCat(*needed) : "too many",
          " bytes, but its size is ", constant.size_bytes));
    }
  }
  return constant;
}

absl::Status DuplicatePort(absl::string_view where, int64_t id) {
  return absl::DataLossError(
      absl::StrCat(where, " has two ports with id ", id));
}

}  // namespace

absl::string_view Layer::Attribute(const char* attribute) const {
  return node.child("data").attribute(attribute).value();
}

bool Layer::IsTrue(const char* attribute) const {
  const absl::string_view value = Attribute(attribute);
  return absl::EqualsIgnoreCase(value, "true") || value == "1";
}

struct Model::Impl {
  absl::Status ParseDocument(const IrLimits& limits);
  absl::Status ParseLayers(const IrLimits& limits);
  absl::StatusOr<Layer> ParseLayer(pugi::xml_node node, const IrLimits& limits);
  absl::Status CollectBodyConstants(pugi::xml_node layer,
                                    const IrLimits& limits);
  absl::Status ParseEdges();
  absl::Status CheckAcyclic() const;

  std::string xml;  // the document lies in it
  pugi::xml_document document;
  pugi::xml_node net;
  int version = 0;
  uint64_t layer_count = 0;  // bodies included
  std::vector<Layer> layers;
  std::vector<Constant> constants;
};

absl::Status Model::Impl::ParseDocument(const IrLimits& limits) {
  if (xml.size() > limits.xml_bytes_max) {
    return absl::ResourceExhaustedError(
        absl::StrCat("the .xml has ", xml.size(), " bytes; the limit is ",
                     limits.xml_bytes_max));
  }
  const pugi::xml_parse_result result = document.load_buffer_inplace(
      xml.data(), xml.size(),
      pugi::parse_default | pugi::parse_declaration | pugi::parse_doctype);
  if (!result) {
    return absl::DataLossError(absl::StrCat("the .xml is malformed at byte ",
                                            result.offset, ": ",
                                            result.description()));
  }
  DepthChecker checker(limits.xml_depth_max);
  document.traverse(checker);
  if (checker.has_doctype()) {
    return absl::DataLossError(
        "the .xml has a document type declaration, which no IR needs; entity "
        "declarations are not accepted");
  }
  if (checker.too_deep()) {
    return absl::ResourceExhaustedError(absl::StrCat(
        "the .xml nests elements deeper than ", limits.xml_depth_max));
  }
  net = document.child("net");
  if (!net) {
    return absl::DataLossError(
        "the .xml has no <net> element: it is not an OpenVINO IR");
  }
  uint64_t number = 0;
  const char* const text = net.attribute("version").value();
  if (!absl::SimpleAtoi(text, &number) || (number != 10 && number != 11)) {
    return absl::UnimplementedError(
        absl::StrCat("IR version ", Quote(text),
                     " is not supported; versions 10 and 11 are"));
  }
  version = static_cast<int>(number);
  return absl::OkStatus();
}

absl::StatusOr<Layer> Model::Impl::ParseLayer(pugi::xml_node node,
                                              const IrLimits& limits) {
  Layer layer;
  layer.node = node;
  layer.name = node.attribute("name").value();
  layer.type = CanonicalType(node.attribute("type").value());
  layer.version = node.attribute("version").value();
  OVPRESS_ASSIGN_OR_RETURN(
      layer.id,
      UnsignedAttribute(node, "id", absl::StrCat("layer ", Quote(layer.name))));
  const std::string where =
      absl::StrCat("layer ", layer.id, " ", Quote(layer.name));
  for (const pugi::xml_node port : node.child("input").children("port")) {
    OVPRESS_ASSIGN_OR_RETURN(Port parsed, ParsePort(port, limits, where));
    layer.inputs.push_back(std::move(parsed));
  }
  for (const char* required : {"name", "type", "version"}) {
    if (!node.attribute(required)) {
      return absl::DataLossError(
          absl::StrCat(where, " has no attribute '", required, "'"));
    }
  }
  for (const pugi::xml_node port : node.child("output").children("port")) {
    if (!port.attribute("precision")) {
      return absl::DataLossError(
          absl::StrCat(where, " has an output without a 'precision'"));
    }
    OVPRESS_ASSIGN_OR_RETURN(Port parsed, ParsePort(port, limits, where));
    layer.outputs.push_back(std::move(parsed));
  }
  // Inputs are counted in the order of their ids.
  const auto by_id = [](const Port& a, const Port& b) { return a.id < b.id; };
  std::stable_sort(layer.inputs.begin(), layer.inputs.end(), by_id);
  std::stable_sort(layer.outputs.begin(), layer.outputs.end(), by_id);
  for (const auto* ports : {&layer.inputs, &layer.outputs}) {
    for (size_t i = 1; i < ports->size(); ++i) {
      if ((*ports)[i - 1].id == (*ports)[i].id) {
        return DuplicatePort(where, (*ports)[i].id);
      }
    }
  }
  OVPRESS_RETURN_IF_ERROR(CheckIsNoConstant(layer.type, layer.name));
  // What a Convert gives is in its attribute; OpenVINO ignores the port.
  if (layer.type == "Convert" && !layer.outputs.empty()) {
    const auto type = ParseElementType(layer.Attribute("destination_type"));
    if (type.has_value()) layer.outputs[0].type = *type;
  }
  layer.producers.resize(layer.inputs.size());
  layer.consumers.resize(layer.outputs.size());
  return layer;
}

// All Const layers below one layer: bodies of If, Loop, TensorIterator and of
// whatever else holds a graph.
absl::Status Model::Impl::CollectBodyConstants(pugi::xml_node layer,
                                               const IrLimits& limits) {
  std::vector<pugi::xml_node> stack{layer};
  // Document order: children are pushed last to first.
  while (!stack.empty()) {
    const pugi::xml_node at = stack.back();
    stack.pop_back();
    if (at != layer && absl::string_view(at.name()) == "layer") {
      if (++layer_count > limits.layers_max) {
        return absl::ResourceExhaustedError(absl::StrCat(
            "the model has more than ", limits.layers_max, " layers"));
      }
      if (absl::string_view(at.attribute("type").value()) == "Const") {
        OVPRESS_ASSIGN_OR_RETURN(Constant constant, ParseConstant(at, limits));
        constants.push_back(std::move(constant));
        continue;
      }
      OVPRESS_RETURN_IF_ERROR(CheckIsNoConstant(at.attribute("type").value(),
                                                at.attribute("name").value()));
    }
    for (pugi::xml_node child = at.last_child(); child;
         child = child.previous_sibling()) {
      if (child.type() == pugi::node_element) stack.push_back(child);
    }
  }
  return absl::OkStatus();
}

absl::Status Model::Impl::ParseLayers(const IrLimits& limits) {
  absl::flat_hash_set<uint64_t> ids;
  for (const pugi::xml_node node : net.child("layers").children("layer")) {
    if (++layer_count > limits.layers_max) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "the model has more than ", limits.layers_max, " layers"));
    }
    OVPRESS_ASSIGN_OR_RETURN(Layer layer, ParseLayer(node, limits));
    if (!ids.insert(layer.id).second) {
      return absl::DataLossError(absl::StrCat("two layers have the id ",
                                              layer.id, ", the second is ",
                                              Quote(layer.name)));
    }
    if (layer.type == "Const") {
      OVPRESS_ASSIGN_OR_RETURN(Constant constant, ParseConstant(node, limits));
      if (layer.outputs.size() != 1) {
        return absl::DataLossError(absl::StrCat("constant ", Quote(layer.name),
                                                " has ", layer.outputs.size(),
                                                " outputs instead of one"));
      }
      constant.layer = layers.size();
      layer.constant = constants.size();
      constants.push_back(std::move(constant));
    } else {
      const uint64_t before = layer_count;
      OVPRESS_RETURN_IF_ERROR(CollectBodyConstants(node, limits));
      layer.has_body = layer_count != before;
    }
    layers.push_back(std::move(layer));
  }
  if (layers.empty()) {
    return absl::DataLossError("the model has no layers");
  }
  return absl::OkStatus();
}

absl::Status Model::Impl::ParseEdges() {
  absl::flat_hash_map<uint64_t, size_t> index;
  index.reserve(layers.size());
  for (size_t i = 0; i < layers.size(); ++i) index[layers[i].id] = i;
  const auto find_port = [](const std::vector<Port>& ports,
                            uint64_t id) -> size_t {
    const auto found = std::lower_bound(
        ports.begin(), ports.end(), id, [](const Port& port, uint64_t value) {
          return static_cast<uint64_t>(port.id) < value;
        });
    if (found == ports.end() || static_cast<uint64_t>(found->id) != id) {
      return kNone;
    }
    return static_cast<size_t>(found - ports.begin());
  };
  for (const pugi::xml_node edge : net.child("edges").children("edge")) {
    uint64_t value[4];
    const char* const kNames[] = {"from-layer", "from-port", "to-layer",
                                  "to-port"};
    for (size_t i = 0; i < 4; ++i) {
      OVPRESS_ASSIGN_OR_RETURN(value[i],
                               UnsignedAttribute(edge, kNames[i], "an edge"));
    }
    const auto from = index.find(value[0]);
    const auto to = index.find(value[2]);
    const std::string where =
        absl::StrCat("the edge from layer ", value[0], " port ", value[1],
                     " to layer ", value[2], " port ", value[3]);
    if (from == index.end() || to == index.end()) {
      return absl::DataLossError(
          absl::StrCat(where, ": there is no layer ",
                       from == index.end() ? value[0] : value[2]));
    }
    Layer& source = layers[from->second];
    Layer& target = layers[to->second];
    const size_t output = find_port(source.outputs, value[1]);
    const size_t input = find_port(target.inputs, value[3]);
    if (output == kNone) {
      return absl::DataLossError(
          absl::StrCat(where, ": layer ", Quote(source.name),
                       " has no output port ", value[1]));
    }
    if (input == kNone) {
      return absl::DataLossError(absl::StrCat(where, ": layer ",
                                              Quote(target.name),
                                              " has no input port ", value[3]));
    }
    if (target.producers[input].layer != kNone) {
      return absl::DataLossError(absl::StrCat(where, ": that input of ",
                                              Quote(target.name),
                                              " has an edge already"));
    }
    target.producers[input] = {from->second, output};
    source.consumers[output].push_back({to->second, input});
  }
  return absl::OkStatus();
}

absl::Status Model::Impl::CheckAcyclic() const {
  std::vector<size_t> waiting(layers.size(), 0);
  std::vector<size_t> ready;
  for (size_t i = 0; i < layers.size(); ++i) {
    for (const Producer& producer : layers[i].producers) {
      waiting[i] += producer.layer != kNone;
    }
    if (waiting[i] == 0) ready.push_back(i);
  }
  size_t done = 0;
  while (!ready.empty()) {
    const size_t at = ready.back();
    ready.pop_back();
    ++done;
    for (const std::vector<Consumer>& consumers : layers[at].consumers) {
      for (const Consumer& consumer : consumers) {
        if (--waiting[consumer.layer] == 0) ready.push_back(consumer.layer);
      }
    }
  }
  if (done == layers.size()) return absl::OkStatus();
  for (size_t i = 0; i < layers.size(); ++i) {
    if (waiting[i] > 0) {
      return absl::DataLossError(
          absl::StrCat("the graph has a cycle through or before layer ",
                       layers[i].id, " ", Quote(layers[i].name)));
    }
  }
  return absl::OkStatus();
}

Model::Model() : impl_(std::make_unique<Impl>()) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

absl::StatusOr<Model> Model::Parse(std::string xml, const IrLimits& limits) {
  Model model;
  Impl& impl = *model.impl_;
  impl.xml = std::move(xml);
  OVPRESS_RETURN_IF_ERROR(impl.ParseDocument(limits));
  OVPRESS_RETURN_IF_ERROR(impl.ParseLayers(limits));
  OVPRESS_RETURN_IF_ERROR(impl.ParseEdges());
  OVPRESS_RETURN_IF_ERROR(impl.CheckAcyclic());
  return model;
}

absl::string_view Model::name() const {
  return impl_->net.attribute("name").value();
}
int Model::version() const { return impl_->version; }
const std::vector<Layer>& Model::layers() const { return impl_->layers; }
const std::vector<Constant>& Model::constants() const {
  return impl_->constants;
}
const pugi::xml_document& Model::document() const { return impl_->document; }

absl::Status Model::CheckConstantRanges(uint64_t bin_size_bytes) const {
  for (const Constant& constant : impl_->constants) {
    if (constant.offset_bytes > bin_size_bytes ||
        constant.size_bytes > bin_size_bytes - constant.offset_bytes) {
      return absl::DataLossError(absl::StrCat(
          "constant ", Quote(constant.name), " at ", constant.offset_bytes,
          " of ", constant.size_bytes,
          " bytes leaves the weights file, which has ", bin_size_bytes,
          " bytes; is it the .bin of this .xml, and complete?"));
    }
  }
  return absl::OkStatus();
}

uint64_t Model::BinBytesUsed() const {
  uint64_t end = 0;
  for (const Constant& constant : impl_->constants) {
    end = std::max(end, constant.offset_bytes + constant.size_bytes);
  }
  return end;
}

}  // namespace ovpress
