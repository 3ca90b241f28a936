#include "core/engine/rewrite.h"

#include <algorithm>
#include <vector>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/engine/python_text.h"
#include "core/engine/version.h"
#include "core/ir/editor.h"

namespace ovpress {
namespace {

constexpr const char* kNncfVersion = "3.4.0";

std::vector<int64_t> Dims(const std::vector<uint64_t>& shape) {
  return std::vector<int64_t>(shape.begin(), shape.end());
}

// A new output port: whose, of what type and shape.
struct Value {
  PortRef port;
  ElementType type = ElementType::kF16;
  std::vector<int64_t> dims;
};

class Rewriter {
 public:
  Rewriter(const Model& model, const Plan& plan, const Layout& layout)
      : model_(model), plan_(plan), layout_(layout), editor_(model) {
    for (const std::string& name : plan.graph.names) names_.insert(name);
    next_number_ = model.layers().size();
  }

  std::string Write();

 private:
  // A name as OpenVINO makes one up: "Convert_17".
  std::string GeneratedName(const std::string& type);
  Value Add(NewLayer layer);
  Value AddConstant(const std::string& name, ElementType type,
                    const std::vector<uint64_t>& shape, ByteRange range);
  Value AddConvert(const Value& input, ElementType type,
                   const std::string& name);
  Value AddBinary(const char* op, const Value& a, const Value& b,
                  const std::string& name);
  Value Dequantize(const Unit& unit, const PlannedWeight& weight);
  Value ScaleValue(const Unit& unit, const PlannedWeight& weight);
  void CompressWeight(size_t constant_index, const PlannedWeight& weight);
  void Redirect(size_t layer, const Value& value);
  void InsertAwqMultiply(size_t index);
  void WriteRtInfo();

  const Model& model_;
  const Plan& plan_;
  const Layout& layout_;
  ModelEditor editor_;
  absl::flat_hash_set<std::string> names_;
  uint64_t next_number_ = 0;  // for generated names
  uint64_t anchor_ = 0;       // new layers go behind this one, in order
};

std::string Rewriter::GeneratedName(const std::string& type) {
  for (;;) {
    const std::string name =
        absl::StrCat(type == "Const" ? "Constant" : type, "_", next_number_++);
    if (names_.insert(name).second) return name;
  }
}

// A layer without a name gets a generated one. Given names are NNCF's, even if
// the model uses them already: OpenVINO allows equal names.
Value Rewriter::Add(NewLayer layer) {
  if (layer.name.empty()) layer.name = GeneratedName(layer.type);
  Value value;
  value.type = layer.outputs[0].type;
  value.dims = layer.outputs[0].dims;
  value.port.port_id = static_cast<int64_t>(layer.inputs.size());
  value.port.layer_id = editor_.AddLayerAfter(anchor_, layer);
  return value;
}

Value Rewriter::AddConstant(const std::string& name, ElementType type,
                            const std::vector<uint64_t>& shape,
                            ByteRange range) {
  return Add(
      {.name = name,
       .type = "Const",
       .version = "opset1",
       .attributes = {{"element_type", std::string(ElementTypeName(type))},
                      {"shape", absl::StrJoin(shape, ", ")},
                      {"offset", absl::StrCat(range.offset)},
                      {"size", absl::StrCat(range.size)}},
       .inputs = {},
       .outputs = {{type, Dims(shape)}}});
}

Value Rewriter::AddConvert(const Value& input, ElementType type,
                           const std::string& name) {
  Value value = Add(
      {.name = name,
       .type = "Convert",
       .version = "opset1",
       .attributes = {{"destination_type", std::string(ElementTypeName(type))}},
       .inputs = {{input.type, input.dims}},
       .outputs = {{type, input.dims}}});
  editor_.Connect(input.port, {value.port.layer_id, 0});
  return value;
}

// The second operand broadcasts into the first.
Value Rewriter::AddBinary(const char* op, const Value& a, const Value& b,
                          const std::string& name) {
  Value value = Add({.name = name,
                     .type = op,
                     .version = "opset1",
                     .attributes = {{"auto_broadcast", "numpy"}},
                     .inputs = {{a.type, a.dims}, {b.type, b.dims}},
                     .outputs = {{a.type, a.dims}}});
  editor_.Connect(a.port, {value.port.layer_id, 0});
  editor_.Connect(b.port, {value.port.layer_id, 1});
  return value;
}

// The codes as f16, zero point taken off.
Value Rewriter::Dequantize(const Unit& unit, const PlannedWeight& weight) {
  const Constant& constant = model_.constants()[weight.constant];
  const WeightConfig& config = *weight.config;
  const ModeTraits& traits = ModeTraitsOf(config.mode);
  const std::string& name = weight.name;
  const uint64_t layer_id = model_.layers()[constant.layer].id;
  const std::vector<uint64_t> shape =
      CodeShape(constant.shape, weight.reduction_axes, config.group_size);
  const ElementType code_type = CodeTypeOf(plan_.options, config.mode);
  const int64_t const_port = model_.layers()[constant.layer].outputs[0].id;

  if (const Codebook* codebook = CodebookOf(plan_.options, config.mode)) {
    // The constant becomes the table, its codes are gathered from it.
    const std::vector<uint64_t> table_shape{codebook->values.size()};
    editor_.SetConstant(layer_id, codebook->type, table_shape,
                        unit.table_offset, codebook->stored.size(), true);
    Value table{{layer_id, const_port}, codebook->type, Dims(table_shape)};
    if (codebook->type != ElementType::kF16) {
      table = AddConvert(table, ElementType::kF16, "");
    }
    Value codes = AddConstant(absl::StrCat(name, "_nncf_codebook_idxs"),
                              code_type, shape, unit.codes);
    if (code_type == ElementType::kU4) {
      codes = AddConvert(codes, ElementType::kU8, "");
    }
    const Value axis = AddConstant(
        absl::StrCat(name, "_nncf_codebook/", GeneratedName("Constant")),
        ElementType::kI64, {}, {unit.axis_offset, 8});
    Value gathered = Add({.name = absl::StrCat(name, "_nncf_codebook"),
                          .type = "Gather",
                          .version = "opset8",
                          .attributes = {{"batch_dims", "0"}},
                          .inputs = {{table.type, table.dims},
                                     {codes.type, codes.dims},
                                     {axis.type, axis.dims}},
                          .outputs = {{ElementType::kF16, Dims(shape)}}});
    editor_.Connect(table.port, {gathered.port.layer_id, 0});
    editor_.Connect(codes.port, {gathered.port.layer_id, 1});
    editor_.Connect(axis.port, {gathered.port.layer_id, 2});
    return gathered;
  }

  editor_.SetConstant(layer_id, code_type, shape, unit.codes.offset,
                      unit.codes.size, true);
  Value value = AddConvert({{layer_id, const_port}, code_type, Dims(shape)},
                           ElementType::kF16, "");
  if (traits.zero_point_per_group || traits.scalar_zero_point) {
    const std::string zp_name = absl::StrCat(name, "/zero_point");
    const Value stored =
        traits.scalar_zero_point
            ? AddConstant(zp_name, ElementType::kI8, {},
                          {unit.scalar_zero_point_offset, 1})
            : AddConstant(zp_name, traits.code_type,
                          ScaleShape(constant.shape, weight.reduction_axes,
                                     config.group_size),
                          unit.zero_point);
    const Value zero_point = AddConvert(stored, ElementType::kF16, "");
    value = AddBinary("Subtract", value, zero_point,
                      absl::StrCat(zp_name, "/subtract"));
  }
  return value;
}

Value Rewriter::ScaleValue(const Unit& unit, const PlannedWeight& weight) {
  const Constant& constant = model_.constants()[weight.constant];
  const WeightConfig& config = *weight.config;
  const ModeTraits& traits = ModeTraitsOf(config.mode);
  const std::string& name = weight.name;
  const std::vector<uint64_t> shape =
      ScaleShape(constant.shape, weight.reduction_axes, config.group_size);
  Value scale = AddConstant(absl::StrCat(name, "/scale"), traits.scale_type,
                            shape, unit.scale);
  if (config.mode == Mode::kNvfp4) {
    scale = AddConvert(scale, ElementType::kF32, "");
    const Value second = AddConstant(
        absl::StrCat(name, "/second_order_scale"), ElementType::kF32,
        std::vector<uint64_t>(shape.size(), 1), unit.second_order_scale);
    scale = AddBinary("Multiply", scale, second,
                      absl::StrCat(name, "/dequantized_scale_", weight.port));
  }
  if (scale.type != ElementType::kF16) {
    scale = AddConvert(scale, ElementType::kF16, "");
  }
  return scale;
}

// Lets all readers of a layer's first output read `value` instead. A Convert to
// the very type of the value disappears, its readers read the value. A loop, as
// a file may chain a million of them.
void Rewriter::Redirect(size_t layer, const Value& value) {
  std::vector<size_t> sources{layer};
  std::vector<uint64_t> removed;
  while (!sources.empty()) {
    const Layer& from = model_.layers()[sources.back()];
    sources.pop_back();
    for (const Consumer& consumer : from.consumers[0]) {
      const Layer& reader = model_.layers()[consumer.layer];
      if (reader.type == "Convert" && reader.inputs.size() == 1 &&
          reader.outputs.size() == 1 && reader.outputs[0].type == value.type) {
        sources.push_back(consumer.layer);
        removed.push_back(reader.id);
        continue;
      }
      editor_.Connect(value.port,
                      {reader.id, reader.inputs[consumer.input].id});
    }
  }
  for (const uint64_t id : removed) editor_.RemoveLayer(id);
}

void Rewriter::CompressWeight(size_t constant_index,
                              const PlannedWeight& weight) {
  const Constant& constant = model_.constants()[constant_index];
  const Unit& unit = layout_.units[layout_.unit_of_constant[constant_index]];
  const Layer& layer = model_.layers()[constant.layer];
  const WeightConfig& config = *weight.config;
  anchor_ = layer.id;

  // NNCF adds the final Convert if some reader is not a Convert itself.
  bool add_convert = false;
  if (constant.type != ElementType::kF16) {
    for (const Consumer& consumer : layer.consumers[0]) {
      if (plan_.graph.alive[consumer.layer] &&
          model_.layers()[consumer.layer].type != "Convert") {
        add_convert = true;
      }
    }
  }
  const std::string fq_name =
      absl::StrCat(weight.name, "/fq_weights_", weight.port);
  const Value codes = Dequantize(unit, weight);
  const Value scale = ScaleValue(unit, weight);
  Value value = AddBinary("Multiply", codes, scale, fq_name);
  if (config.group_size != -1) {
    const Value shape =
        AddConstant("", ElementType::kI64, {constant.shape.size()},
                    {unit.shape_offset, constant.shape.size() * 8});
    Value reshaped =
        Add({.name = "",
             .type = "Reshape",
             .version = "opset1",
             .attributes = {{"special_zero", "false"}},
             .inputs = {{value.type, value.dims}, {shape.type, shape.dims}},
             .outputs = {{value.type, Dims(constant.shape)}}});
    editor_.Connect(value.port, {reshaped.port.layer_id, 0});
    editor_.Connect(shape.port, {reshaped.port.layer_id, 1});
    value = reshaped;
  }
  if (add_convert) {
    value = AddConvert(value, constant.type, absl::StrCat(fq_name, "/convert"));
  }
  Redirect(constant.layer, value);
}

// activation -> Multiply with the inverse scale -> all readers.
void Rewriter::InsertAwqMultiply(size_t index) {
  const AwqScale& awq = plan_.awq[index];
  if (awq.merged_constant != kNone) return;
  const Layer& source = model_.layers()[awq.source_layer];
  const size_t target = plan_.weights[awq.weight].constant;
  const Unit& unit = layout_.units[layout_.unit_of_constant[target]];
  ByteRange range;
  for (size_t i = 0; i < unit.awq_multiply.size(); ++i) {
    if (unit.awq_multiply_of[i] == index) range = unit.awq_multiply[i];
  }
  anchor_ = source.id;
  const std::string name =
      absl::StrCat(plan_.graph.names[awq.source_layer], "/awq_mul");
  const Value scale = AddConstant(absl::StrCat(name, "/scale"),
                                  awq.multiply_type, awq.multiply_shape, range);
  const Value activation{{source.id, source.outputs[0].id},
                         source.outputs[0].type,
                         source.outputs[0].dims};
  const Value scaled = AddBinary("Multiply", activation, scale, name);
  for (const Consumer& consumer : source.consumers[0]) {
    const Layer& reader = model_.layers()[consumer.layer];
    editor_.Connect(scaled.port, {reader.id, reader.inputs[consumer.input].id});
  }
}

void Rewriter::WriteRtInfo() {
  const CompressionOptions& options = plan_.options;
  const auto set = [this](const char* key, const std::string& value) {
    editor_.SetRtInfo({"nncf", "weight_compression", key}, value);
  };
  editor_.AdoptLegacyMetadata();
  editor_.SetRtInfo({"nncf", "friendly_names_were_updated"}, "True");
  editor_.SetRtInfo({"nncf", "version"}, kNncfVersion);
  editor_.RemoveRtInfo({"nncf", "weight_compression", "ignored_scope"});
  const std::string codebook =
      options.codebook == nullptr ? "None" : options.codebook_text;
  set("advanced_parameters",
      absl::StrCat(
          "{'statistics_path': None, 'lora_adapter_rank': 256, "
          "'group_size_fallback_mode': '",
          GroupSizeFallbackName(options.group_size_fallback),
          "', 'min_adjusted_group_size': ", options.min_adjusted_group_size,
          ", 'awq_params': {'subset_size': 32, 'percent_to_apply': 0.002, "
          "'alpha_min': 0.0, 'alpha_max': 1.0, 'steps': 100, "
          "'prefer_data_aware_scaling': True}, 'scale_estimation_params': "
          "{'subset_size': 64, 'initial_steps': 5, 'scale_steps': 5, "
          "'weight_penalty': -1.0}, 'gptq_params': {'damp_percent': 0.1, "
          "'block_size': 128, 'subset_size': 128}, 'lora_correction_params': "
          "{'adapter_rank': 8, 'num_iterations': 3, 'apply_regularization': "
          "True, 'subset_size': 128, 'use_int8_adapters': True}, "
          "'backend_params': {}, 'codebook': ",
          codebook,
          ", 'adaptive_codebook_params': {'value_type': 'f8e4m3', "
          "'across_blocks': False, 'num_elements': 16}}"));
  set("all_layers", PythonBool(options.all_layers.value_or(false)));
  set("awq", PythonBool(options.awq.value_or(false)));
  set("backup_mode", std::string(BackupModeName(plan_.backup_mode)));
  set("compression_format", "dequantize");
  set("gptq", "False");
  set("group_size", absl::StrCat(plan_.group_size));
  const IgnoredScope& ignored = options.ignored;
  if (ignored.empty()) {
    set("ignored_scope", "[]");
  } else {
    const auto list = [this](const char* key,
                             const std::vector<std::string>& items) {
      if (items.empty()) return;
      editor_.SetRtInfo({"nncf", "weight_compression", "ignored_scope", key},
                        PythonList(items));
    };
    list("names", ignored.names);
    list("patterns", ignored.patterns);
    list("types", ignored.types);
  }
  set("lora_correction", "False");
  set("mode", std::string(ModeTraitsOf(options.mode).name));
  const bool ratio_given = options.ratio.value_or(0) != 0;
  set("ratio", ratio_given ? PythonFloat(*options.ratio) : "1");
  set("scale_estimation", "False");
  set("sensitivity_metric",
      options.sensitivity_metric.value_or("weight_quantization_error"));
  editor_.SetRtInfo({"ovpress", "version"}, OVPRESS_VERSION);
}

std::string Rewriter::Write() {
  for (const size_t layer : plan_.graph.renamed) {
    editor_.SetLayerName(model_.layers()[layer].id, plan_.graph.names[layer]);
  }
  for (size_t i = 0; i < model_.constants().size(); ++i) {
    const Unit& unit = layout_.units[layout_.unit_of_constant[i]];
    if (unit.kind != UnitKind::kCompress) {
      editor_.SetConstantOffset(i, unit.codes.offset);
    }
  }
  for (const PlannedWeight& weight : plan_.weights) {
    if (weight.config.has_value()) CompressWeight(weight.constant, weight);
  }
  for (size_t i = 0; i < plan_.awq.size(); ++i) InsertAwqMultiply(i);
  WriteRtInfo();
  return editor_.Serialize();
}

}  // namespace

std::string RewriteXml(const Model& model, const Plan& plan,
                       const Layout& layout) {
  return Rewriter(model, plan, layout).Write();
}

}  // namespace ovpress
