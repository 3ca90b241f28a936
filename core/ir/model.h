// An OpenVINO IR (v10, v11) in memory: the XML document and a graph over it.
// No weight byte is read here; constants are ranges of the .bin.
#ifndef OVPRESS_CORE_IR_MODEL_H_
#define OVPRESS_CORE_IR_MODEL_H_

#include <cstdint>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/base/element_type.h"
#include "pugixml.hpp"

namespace ovpress {

// Limits of what a file may ask of us. Above: kResourceExhausted, naming the
// limit.
struct IrLimits {
  uint64_t xml_bytes_max = 512ull << 20;
  int xml_depth_max = 256;        // nested elements
  uint64_t layers_max = 4000000;  // all bodies together
  uint64_t rank_max = 64;         // dimensions of one shape
};

inline constexpr size_t kNone = static_cast<size_t>(-1);

struct Port {
  int64_t id = 0;
  ElementType type = ElementType::kDynamic;
  std::vector<int64_t> dims;  // -1: dynamic
  pugi::xml_node node;
};

// Where an input comes from: an output port of a layer, both as positions in
// Model::layers and Layer::outputs. `layer` is kNone if nothing is connected.
struct Producer {
  size_t layer = kNone;
  size_t output = 0;
};
// Who reads an output: an input of a layer, as positions.
struct Consumer {
  size_t layer = kNone;
  size_t input = 0;
};

// One layer of the top-level graph. String views point into the document or to
// constants.
struct Layer {
  uint64_t id = 0;
  absl::string_view name;
  absl::string_view type;     // "MatMul", "Relu": spelled as OpenVINO does,
                              // whatever the file's case; but "Const"
  absl::string_view version;  // "opset1"
  std::vector<Port> inputs;
  std::vector<Port> outputs;
  std::vector<Producer> producers;               // one per input
  std::vector<std::vector<Consumer>> consumers;  // one list per output
  size_t constant = kNone;                       // index in Model::constants
  bool has_body = false;                         // If, Loop, TensorIterator ...
  pugi::xml_node node;

  // Attribute of the <data> element; empty view if absent.
  absl::string_view Attribute(const char* attribute) const;
  // False if absent; as OpenVINO reads it: "true" in any case, or "1".
  bool IsTrue(const char* attribute) const;
};

// A Const layer anywhere in the document, bodies included.
struct Constant {
  size_t layer = kNone;  // index in Model::layers; kNone inside a body
  absl::string_view name;
  ElementType type = ElementType::kDynamic;
  std::vector<uint64_t> shape;
  uint64_t element_count = 0;  // product of shape; checked for overflow
  uint64_t offset_bytes = 0;   // in the .bin
  uint64_t size_bytes = 0;     // as the XML says; equals PackedSizeBytes(...)
                               // for all types but string
  pugi::xml_node data;         // its <data> element
};

// Immutable after Parse; safe to share between threads. Movable.
class Model {
 public:
  // `xml` is taken over and parsed in place. Entity declarations (DOCTYPE) are
  // refused. kDataLoss: the document contradicts itself (malformed XML,
  // duplicate layer ids or port ids, edges from or to what does not exist, two
  // edges into one port, a cycle, a constant whose size does not fit its type
  // and shape, overflowing shapes). kUnimplemented: IR version other than 10
  // and 11, unknown element type of a constant. Messages name the layer.
  static absl::StatusOr<Model> Parse(std::string xml,
                                     const IrLimits& limits = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  absl::string_view name() const;
  int version() const;
  const std::vector<Layer>& layers() const;        // in document order
  const std::vector<Constant>& constants() const;  // in document order
  const pugi::xml_document& document() const;

  // kDataLoss, naming the constant, if a range leaves a .bin of this size.
  absl::Status CheckConstantRanges(uint64_t bin_size_bytes) const;
  // One past the last byte any constant uses.
  uint64_t BinBytesUsed() const;

 private:
  Model();
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ovpress

#endif  // OVPRESS_CORE_IR_MODEL_H_
