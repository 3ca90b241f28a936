#include "tests/fuzz/xml_mutator.h"

#include <cstring>
#include <iterator>
#include <vector>

#include "pugixml.hpp"

namespace ovpress::fuzz {
namespace {

constexpr const char* kNumbers[] = {"0",
                                    "1",
                                    "2",
                                    "-1",
                                    "-0",
                                    "+1",
                                    "3",
                                    "4",
                                    "7",
                                    "8",
                                    "64",
                                    "4095",
                                    "65536",
                                    "2147483647",
                                    "2147483648",
                                    "4294967295",
                                    "4294967296",
                                    "9223372036854775807",
                                    "9223372036854775808",
                                    "18446744073709551615",
                                    "18446744073709551616",
                                    "",
                                    " 5",
                                    "5 ",
                                    "0x10",
                                    "1e3",
                                    "1.5",
                                    "nan",
                                    "99999999999999999999999999999999"};
constexpr const char* kElementTypes[] = {
    "f32",    "f16",     "bf16",    "f64",       "f8e4m3", "f8e5m2", "f8e8m0",
    "f4e2m1", "nf4",     "u1",      "u2",        "u3",     "u4",     "u6",
    "u8",     "i4",      "i8",      "i16",       "i32",    "i64",    "u64",
    "string", "boolean", "dynamic", "undefined", "F32",    "f128"};
constexpr const char* kPrecisions[] = {"FP32", "FP16", "BF16", "FP64", "I8",
                                       "U4",   "NF4",  "I64",  "",     "what"};
constexpr const char* kShapes[] = {
    "",
    "0",
    "1",
    "2,3",
    "4, 4",
    "16, 32",
    "32, 32",
    "1,1,1",
    "0, 4",
    "4, 0",
    "-1, 4",
    "64, 2",
    "2,2,2,2,2,2,2,2",
    "0, 9223372036854775807, 9223372036854775807",
    "9223372036854775807, 0, 9223372036854775807",
    "4294967296, 4294967296",
    "4294967295,4294967297",
    "1,,2",
    "?",
    "1..2",
    "3037000500, 3037000500",
    "9223372036854775807",
    "1000, 0"};
constexpr const char* kLayerTypes[] = {"Const",
                                       "Convert",
                                       "MatMul",
                                       "Gather",
                                       "Result",
                                       "Parameter",
                                       "Assign",
                                       "ReadValue",
                                       "Multiply",
                                       "Add",
                                       "Reshape",
                                       "Transpose",
                                       "Convolution",
                                       "GroupConvolution",
                                       "ConvolutionBackpropData",
                                       "GroupConvolutionBackpropData",
                                       "GroupedMatMul",
                                       "FakeQuantize",
                                       "FakeConvert",
                                       "If",
                                       "Loop",
                                       "TensorIterator",
                                       "Concat",
                                       "Sin",
                                       "Cos",
                                       "Swish",
                                       "Gelu",
                                       "Relu",
                                       "Sigmoid",
                                       "SoftMax",
                                       "Subtract",
                                       ""};
constexpr const char* kNames[] = {"m0",
                                  "w0",
                                  "",
                                  "a",
                                  "..",
                                  "/",
                                  "../../etc/passwd",
                                  "a\"b<c>&d",
                                  "w0/fq_weights_1",
                                  "w0_nncf_codebook",
                                  "\x01\x02",
                                  "\xff\xfe",
                                  "a\nb",
                                  "Constant_17",
                                  "Convert_17",
                                  "%s%n",
                                  "{}",
                                  "m00",
                                  "m000"};
constexpr const char* kTags[] = {"layer", "layers", "edges",   "edge",
                                 "input", "output", "port",    "dim",
                                 "data",  "body",   "rt_info", "net"};

class Mutator {
 public:
  Mutator(const std::string& xml, std::minstd_rand* random) : random_(random) {
    ok_ = static_cast<bool>(
        document_.load_buffer(xml.data(), xml.size(), pugi::parse_default));
    if (ok_) Collect();
  }

  bool ok() const { return ok_ && !elements_.empty(); }

  void MutateOnce() {
    switch (Below(14)) {
      case 0:
      case 1:
      case 2:
      case 3:
      case 4:
        return ChangeAttribute();
      case 5:
        return CopyAttribute();
      case 6: {
        pugi::xml_node node = AnyElement();
        if (node.first_attribute() && Below(2) == 0) {
          node.remove_attribute(node.first_attribute());
        } else {
          node.append_attribute("id").set_value(kNumbers[Below(10)]);
        }
        return;
      }
      case 7: {  // double
        pugi::xml_node node = AnyLayerOrElement();
        node.parent().insert_copy_after(node, node);
        return;
      }
      case 8: {  // remove
        pugi::xml_node node = AnyLayerOrElement();
        if (node.parent() != document_) node.parent().remove_child(node);
        return;
      }
      case 9: {  // nest a copy somewhere else
        pugi::xml_node node = AnyLayerOrElement();
        pugi::xml_node into = AnyElement();
        if (Size(node) < 4096) into.append_copy(node);
        return;
      }
      case 10: {  // other order
        pugi::xml_node node = AnyLayerOrElement();
        pugi::xml_node sibling = node.next_sibling();
        if (sibling) node.parent().insert_move_before(sibling, node);
        return;
      }
      case 11:
        return BendEdge();
      case 12: {
        pugi::xml_node node = AnyElement();
        if (Below(2) == 0) {
          node.set_name(kTags[Below(std::size(kTags))]);
        } else if (std::strcmp(node.name(), "dim") == 0) {
          node.text().set(kNumbers[Below(std::size(kNumbers))]);
        } else {
          node.prepend_child(kTags[Below(std::size(kTags))]);
        }
        return;
      }
      default:
        return AddReader();
    }
  }

  std::string Text() const {
    struct Writer final : pugi::xml_writer {
      void write(const void* data, size_t size) override {
        text.append(static_cast<const char*>(data), size);
      }
      std::string text;
    } writer;
    document_.save(writer, "", pugi::format_raw | pugi::format_no_declaration);
    return writer.text;
  }

  // Attributes and nodes are found again after each change.
  void Collect() {
    elements_.clear();
    layers_.clear();
    edges_.clear();
    std::vector<pugi::xml_node> stack{document_};
    while (!stack.empty()) {
      const pugi::xml_node at = stack.back();
      stack.pop_back();
      if (at != document_) elements_.push_back(at);
      if (std::strcmp(at.name(), "layer") == 0) layers_.push_back(at);
      if (std::strcmp(at.name(), "edge") == 0) edges_.push_back(at);
      for (const pugi::xml_node child : at.children()) {
        if (child.type() == pugi::node_element) stack.push_back(child);
      }
    }
  }

 private:
  size_t Below(size_t end) { return (*random_)() % end; }
  template <size_t kCount>
  const char* Any(const char* const (&list)[kCount]) {
    return list[Below(kCount)];
  }
  pugi::xml_node AnyElement() { return elements_[Below(elements_.size())]; }
  pugi::xml_node AnyLayerOrElement() {
    return layers_.empty() || Below(3) == 0 ? AnyElement()
                                            : layers_[Below(layers_.size())];
  }
  static size_t Size(pugi::xml_node node) {
    size_t size = 0;
    for (pugi::xml_node child : node.children()) size += 16 + Size(child);
    return size;
  }

  void ChangeAttribute() {
    for (int tries = 0; tries < 8; ++tries) {
      pugi::xml_node node = AnyElement();
      std::vector<pugi::xml_attribute> attributes;
      for (const pugi::xml_attribute a : node.attributes()) {
        attributes.push_back(a);
      }
      if (attributes.empty()) continue;
      pugi::xml_attribute attribute = attributes[Below(attributes.size())];
      const std::string name = attribute.name();
      if (name == "element_type" || name == "destination_type") {
        attribute.set_value(Any(kElementTypes));
      } else if (name == "precision") {
        attribute.set_value(Any(kPrecisions));
      } else if (name == "shape") {
        attribute.set_value(Any(kShapes));
      } else if (name == "type") {
        attribute.set_value(Any(kLayerTypes));
      } else if (name == "name") {
        attribute.set_value(Any(kNames));
      } else if (Below(4) == 0) {  // a neighbour of what it was
        attribute.set_value(attribute.as_ullong() + Below(3) - 1);
      } else if (name.rfind("transpose", 0) == 0) {
        attribute.set_value(Below(2) == 0 ? "true" : "false");
      } else {
        attribute.set_value(Any(kNumbers));
      }
      return;
    }
  }

  // The same attribute of another element: equal ids, ports of others, shared
  // offsets.
  void CopyAttribute() {
    for (int tries = 0; tries < 8; ++tries) {
      pugi::xml_node from = AnyElement();
      pugi::xml_node to = AnyElement();
      std::vector<pugi::xml_attribute> common;
      for (const pugi::xml_attribute a : from.attributes()) {
        if (to.attribute(a.name())) common.push_back(a);
      }
      if (common.empty()) continue;
      const pugi::xml_attribute chosen = common[Below(common.size())];
      to.attribute(chosen.name()).set_value(chosen.value());
      return;
    }
  }

  void BendEdge() {
    if (edges_.empty()) return;
    pugi::xml_node edge = edges_[Below(edges_.size())];
    if (Below(2) == 0) edge = edge.parent().append_copy(edge);
    const pugi::xml_node other = edges_[Below(edges_.size())];
    constexpr const char* kEnds[][2] = {{"from-layer", "from-port"},
                                        {"to-layer", "to-port"}};
    const auto& mine = kEnds[Below(2)];
    const auto& theirs = kEnds[Below(2)];
    for (int i = 0; i < 2; ++i) {
      edge.attribute(mine[i]).set_value(other.attribute(theirs[i]).value());
    }
  }

  // One more input port somewhere, with an edge from somewhere.
  void AddReader() {
    if (layers_.empty() || edges_.empty()) return;
    pugi::xml_node layer = layers_[Below(layers_.size())];
    pugi::xml_node inputs = layer.child("input");
    if (!inputs) inputs = layer.append_child("input");
    const int port = 100 + static_cast<int>(Below(50));
    inputs.append_child("port").append_attribute("id").set_value(port);
    pugi::xml_node edge = edges_[Below(edges_.size())];
    edge = edge.parent().append_copy(edge);
    edge.attribute("to-layer").set_value(layer.attribute("id").value());
    edge.attribute("to-port").set_value(port);
  }

  std::minstd_rand* const random_;
  pugi::xml_document document_;
  bool ok_ = false;
  std::vector<pugi::xml_node> elements_;
  std::vector<pugi::xml_node> layers_;
  std::vector<pugi::xml_node> edges_;
};

}  // namespace

std::string MutateXml(const std::string& xml, std::minstd_rand* random,
                      size_t size_max) {
  Mutator mutator(xml, random);
  if (!mutator.ok()) return xml;
  const size_t count = 1 + (*random)() % 4;
  for (size_t i = 0; i < count && mutator.ok(); ++i) {
    mutator.MutateOnce();
    mutator.Collect();
  }
  std::string text = mutator.Text();
  return text.size() <= size_max ? text : xml;
}

}  // namespace ovpress::fuzz
