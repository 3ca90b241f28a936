// Small IRs for tests: a chain of MatMuls (and others) with constants, and the
// .bin that goes with it.
#ifndef OVPRESS_TESTS_TESTING_IR_BUILDER_H_
#define OVPRESS_TESTS_TESTING_IR_BUILDER_H_

#include <cstdint>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/element_type.h"
#include "core/quant/kernels.h"

namespace ovpress::testing {

// Layers get ids in the order of the calls.
class IrBuilder {
 public:
  struct Node {
    uint64_t id = 0;
    int port = 0;
    ElementType type = ElementType::kF32;
    std::vector<int64_t> dims;
  };

  Node Parameter(const std::string& name, const std::vector<int64_t>& dims,
                 ElementType type = ElementType::kF32) {
    return Add(
        name, "Parameter", "opset1",
        absl::StrCat("<data shape=\"", absl::StrJoin(dims, ","),
                     "\" element_type=\"", ElementTypeName(type), "\"/>"),
        {}, type, dims);
  }

  // A constant with the given bytes.
  Node Constant(const std::string& name, ElementType type,
                const std::vector<uint64_t>& shape, const std::string& bytes) {
    const uint64_t offset = bin_.size();
    bin_ += bytes;
    return ConstantAt(name, type, shape, offset, bytes.size());
  }
  Node ConstantAt(const std::string& name, ElementType type,
                  const std::vector<uint64_t>& shape, uint64_t offset,
                  uint64_t size) {
    return Add(name, "Const", "opset1",
               absl::StrCat("<data element_type=\"", ElementTypeName(type),
                            "\" shape=\"", absl::StrJoin(shape, ", "),
                            "\" offset=\"", offset, "\" size=\"", size, "\"/>"),
               {}, type, std::vector<int64_t>(shape.begin(), shape.end()));
  }
  // Normal random weights.
  Node Weights(const std::string& name, ElementType type,
               const std::vector<uint64_t>& shape, uint32_t seed) {
    uint64_t count = 1;
    for (const uint64_t dim : shape) count *= dim;
    std::mt19937 random(seed);
    std::normal_distribution<float> normal(0.0f, 0.05f);
    std::vector<float> values(count);
    for (float& value : values) value = normal(random);
    std::string bytes(count * static_cast<size_t>(BitsPerElement(type)) / 8,
                      '\0');
    FromFloat(type, values.data(), count, bytes.data());
    return Constant(name, type, shape, bytes);
  }

  Node Convert(const std::string& name, const Node& input, ElementType to) {
    return Add(
        name, "Convert", "opset1",
        absl::StrCat("<data destination_type=\"", ElementTypeName(to), "\"/>"),
        {input}, to, input.dims);
  }
  Node MatMul(const std::string& name, const Node& a, const Node& b,
              bool transpose_a, bool transpose_b,
              const std::vector<int64_t>& dims) {
    return Add(name, "MatMul", "opset1",
               absl::StrCat("<data transpose_a=\"",
                            transpose_a ? "true" : "false", "\" transpose_b=\"",
                            transpose_b ? "true" : "false", "\"/>"),
               {a, b}, a.type, dims);
  }
  Node Op(const std::string& name, const std::string& type,
          const std::string& version, const std::string& data,
          const std::vector<Node>& inputs, const std::vector<int64_t>& dims) {
    return Add(name, type, version, data, inputs,
               inputs.empty() ? ElementType::kF32 : inputs[0].type, dims);
  }
  void Result(const std::string& name, const Node& input) {
    Layer(name, "Result", "opset1", "", {input}, false, ElementType::kF32, {});
  }

  std::string Xml() const {
    return absl::StrCat(
        "<?xml version=\"1.0\"?>\n<net name=\"test\" version=\"11\">\n<layers>",
        layers_, "</layers>\n<edges>", edges_, "</edges>\n<rt_info/></net>\n");
  }
  const std::string& Bin() const { return bin_; }

 private:
  static std::string PortText(int id, ElementType type,
                              const std::vector<int64_t>& dims) {
    std::string out = absl::StrCat("<port id=\"", id, "\" precision=\"",
                                   PortPrecisionName(type), "\">");
    for (const int64_t dim : dims)
      absl::StrAppend(&out, "<dim>", dim, "</dim>");
    return out + "</port>";
  }
  Node Add(const std::string& name, const std::string& type,
           const std::string& version, const std::string& data,
           const std::vector<Node>& inputs, ElementType out_type,
           const std::vector<int64_t>& out_dims) {
    return Layer(name, type, version, data, inputs, true, out_type, out_dims);
  }
  Node Layer(const std::string& name, const std::string& type,
             const std::string& version, const std::string& data,
             const std::vector<Node>& inputs, bool has_output,
             ElementType out_type, const std::vector<int64_t>& out_dims) {
    const uint64_t id = next_id_++;
    absl::StrAppend(&layers_, "<layer id=\"", id, "\" name=\"", name,
                    "\" type=\"", type, "\" version=\"", version, "\">", data);
    int port = 0;
    if (!inputs.empty()) {
      layers_ += "<input>";
      for (const Node& input : inputs) {
        layers_ += PortText(port, input.type, input.dims);
        absl::StrAppend(&edges_, "<edge from-layer=\"", input.id,
                        "\" from-port=\"", input.port, "\" to-layer=\"", id,
                        "\" to-port=\"", port, "\"/>");
        ++port;
      }
      layers_ += "</input>";
    }
    if (has_output) {
      layers_ += "<output>" + PortText(port, out_type, out_dims) + "</output>";
    }
    layers_ += "</layer>\n";
    return {id, port, out_type, out_dims};
  }

  std::string layers_;
  std::string edges_;
  std::string bin_;
  uint64_t next_id_ = 0;
};

}  // namespace ovpress::testing

#endif  // OVPRESS_TESTS_TESTING_IR_BUILDER_H_
