// Writes a changed copy of a model's XML. What is not edited survives as it
// was: unknown layers and attributes, rt_info, bodies, names, layouts. New
// layers are placed in the document directly before or after a given layer and
// get ids above all existing ones.
#ifndef OVPRESS_CORE_IR_EDITOR_H_
#define OVPRESS_CORE_IR_EDITOR_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "core/ir/model.h"

namespace ovpress {

struct NewPort {
  ElementType type = ElementType::kF32;
  std::vector<int64_t> dims;
};

// A layer to add. Ports are numbered as OpenVINO does: inputs 0..n-1, then
// outputs n... `attributes` go to <data> in this order.
struct NewLayer {
  std::string name;
  std::string type;     // "Convert"
  std::string version;  // "opset1"
  std::vector<std::pair<std::string, std::string>> attributes;
  std::vector<NewPort> inputs;
  std::vector<NewPort> outputs;
};

// Names an output or input port by layer id and port id (not positions).
struct PortRef {
  uint64_t layer_id = 0;
  int64_t port_id = 0;
};

// Not thread-safe. Cost of every call is O(1) or O(log n), of Serialize O(n).
class ModelEditor {
 public:
  // Copies the document; `model` need not outlive the editor.
  explicit ModelEditor(const Model& model);
  ~ModelEditor();

  // Places the layer in the document right after the layer `anchor_id` (top
  // level), or right before it; several insertions after one anchor keep the
  // order of the calls. Returns the new id.
  uint64_t AddLayerAfter(uint64_t anchor_id, const NewLayer& layer);
  uint64_t AddLayerBefore(uint64_t anchor_id, const NewLayer& layer);

  // Adds an edge; an edge that already ended at `to` is replaced.
  void Connect(PortRef from, PortRef to);
  // Changes the `name` attribute of a top-level layer.
  void SetLayerName(uint64_t layer_id, const std::string& name);
  // Removes the layer and all edges from and to it.
  void RemoveLayer(uint64_t layer_id);

  // Rewrites a top-level Const: element_type, shape, offset, size of <data>,
  // precision and dims of its output port; drops the port's `names` and the
  // layer's rt_info (NNCF does so for a compressed weight) if `drop_metadata`.
  void SetConstant(uint64_t layer_id, ElementType type,
                   const std::vector<uint64_t>& shape, uint64_t offset_bytes,
                   uint64_t size_bytes, bool drop_metadata);
  // Moves a constant (any level) to another offset; nothing else changes.
  // `index` counts Model::constants().
  void SetConstantOffset(size_t index, uint64_t offset_bytes);

  // Sets <rt_info> of the model: path {"nncf","version"} and value "3.4.0" give
  // <nncf><version value="3.4.0" /></nncf>. Replaces an existing value, keeps
  // siblings, keeps the elements of one level sorted by name as OpenVINO
  // writes them (new ones are inserted at their place).
  void SetRtInfo(const std::vector<std::string>& path,
                 const std::string& value);
  // Turns the metadata of files from before 2022 (<meta_data> and
  // <quantization_parameters>) into <rt_info>, as OpenVINO does: it looks at
  // them only if there is no <rt_info>, and never writes them.
  void AdoptLegacyMetadata();
  // Removes an element of <rt_info> with all below it, if present.
  void RemoveRtInfo(const std::vector<std::string>& path);

  // The document as OpenVINO writes it (UTF-8, tabs, xml declaration).
  std::string Serialize() const;

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace ovpress

#endif  // OVPRESS_CORE_IR_EDITOR_H_
