#include "bench/synthetic_ir.h"

#include <array>
#include <bit>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

// Emits layers with ids in order and remembers edges.
class Writer {
 public:
  explicit Writer(std::string name) {
    text_ = absl::StrCat("<?xml version=\"1.0\"?>\n<net name=\"", name,
                         "\" version=\"11\">\n\t<layers>\n");
  }

  struct Out {
    uint64_t id = 0;
    int port = 0;
    std::string type;  // FP32
    std::string dims;  // <dim>..</dim>...
  };

  static std::string Dims(std::initializer_list<int64_t> dims) {
    std::string out;
    for (const int64_t dim : dims)
      absl::StrAppend(&out, "<dim>", dim, "</dim>");
    return out;
  }

  Out Layer(const std::string& name, const std::string& type,
            const std::string& version, const std::string& data,
            const std::vector<Out>& inputs, const std::string& out_type,
            const std::string& out_dims, const std::string& names = "") {
    const uint64_t id = next_id_++;
    absl::StrAppend(&text_, "<layer id=\"", id, "\" name=\"", name,
                    "\" type=\"", type, "\" version=\"", version, "\">", data);
    int port = 0;
    if (!inputs.empty()) {
      text_ += "<input>";
      for (const Out& input : inputs) {
        absl::StrAppend(&text_, "<port id=\"", port, "\" precision=\"",
                        input.type, "\">", input.dims, "</port>");
        absl::StrAppend(&edges_, "<edge from-layer=\"", input.id,
                        "\" from-port=\"", input.port, "\" to-layer=\"", id,
                        "\" to-port=\"", port, "\" />\n");
        ++port;
      }
      text_ += "</input>";
    }
    if (!out_type.empty()) {
      absl::StrAppend(
          &text_, "<output><port id=\"", port, "\" precision=\"", out_type,
          "\"", names.empty() ? "" : absl::StrCat(" names=\"", names, "\""),
          ">", out_dims, "</port></output>");
    }
    text_ += "</layer>\n";
    return {id, port, out_type, out_dims};
  }

  Out Weight(const std::string& name, uint64_t rows, uint64_t columns) {
    const uint64_t size = rows * columns * 2;
    const Out constant = Layer(
        name, "Const", "opset1",
        absl::StrCat("<data element_type=\"f16\" shape=\"", rows, ", ", columns,
                     "\" offset=\"", offset_, "\" size=\"", size, "\" />"),
        {}, "FP16",
        Dims({static_cast<int64_t>(rows), static_cast<int64_t>(columns)}));
    offset_ += size;
    return Layer(absl::StrCat(name, "/convert"), "Convert", "opset1",
                 "<data destination_type=\"f32\" />", {constant}, "FP32",
                 constant.dims);
  }

  Out MatMul(const std::string& name, const Out& input, uint64_t rows,
             uint64_t columns) {
    const Out weight = Weight(absl::StrCat(name, ".weight"), rows, columns);
    return Layer(name, "MatMul", "opset1",
                 "<data transpose_a=\"false\" transpose_b=\"true\" />",
                 {input, weight}, "FP32",
                 Dims({-1, -1, static_cast<int64_t>(rows)}));
  }

  std::string Finish() {
    return absl::StrCat(text_, "\t</layers>\n\t<edges>\n", edges_,
                        "\t</edges>\n\t<rt_info />\n</net>\n");
  }
  uint64_t offset() const { return offset_; }

 private:
  std::string text_;
  std::string edges_;
  uint64_t next_id_ = 0;
  uint64_t offset_ = 0;
};

Writer Build(const SyntheticModel& model) {
  Writer writer("synthetic");
  const auto hidden = static_cast<int64_t>(model.hidden);
  const std::string hidden_dims = Writer::Dims({-1, -1, hidden});
  const Writer::Out ids =
      writer.Layer("input_ids", "Parameter", "opset1",
                   "<data shape=\"?,?\" element_type=\"i64\" />", {}, "I64",
                   Writer::Dims({-1, -1}), "input_ids");
  const Writer::Out table =
      writer.Weight("embed_tokens.weight", model.vocabulary, model.hidden);
  // Axis 0 as one more constant, at the end of the file.
  const uint64_t axis_offset = SyntheticBinBytes(model) - 8;
  const Writer::Out axis = writer.Layer(
      "axis", "Const", "opset1",
      absl::StrCat("<data element_type=\"i64\" shape=\"\" offset=\"",
                   axis_offset, "\" size=\"8\" />"),
      {}, "I64", "");
  Writer::Out stream = writer.Layer("embed_tokens", "Gather", "opset8",
                                    "<data batch_dims=\"0\" />",
                                    {table, ids, axis}, "FP32", hidden_dims);
  const auto add = [&](const std::string& name, const Writer::Out& a,
                       const Writer::Out& b, const char* op) {
    return writer.Layer(name, op, "opset1", "<data auto_broadcast=\"numpy\" />",
                        {a, b}, "FP32", a.dims);
  };
  for (uint64_t i = 0; i < model.layers; ++i) {
    const std::string p = absl::StrCat("layers.", i, ".");
    const Writer::Out q =
        writer.MatMul(p + "q_proj", stream, model.hidden, model.hidden);
    const Writer::Out k =
        writer.MatMul(p + "k_proj", stream, model.hidden, model.hidden);
    const Writer::Out v =
        writer.MatMul(p + "v_proj", stream, model.hidden, model.hidden);
    const Writer::Out mix =
        add(p + "mix", add(p + "qk", q, k, "Multiply"), v, "Add");
    const Writer::Out o =
        writer.MatMul(p + "o_proj", mix, model.hidden, model.hidden);
    const Writer::Out attended = add(p + "residual1", stream, o, "Add");
    const Writer::Out gate = writer.MatMul(p + "gate_proj", attended,
                                           model.intermediate, model.hidden);
    const Writer::Out act = writer.Layer(p + "act", "Swish", "opset4", "",
                                         {gate}, "FP32", gate.dims);
    const Writer::Out up = writer.MatMul(p + "up_proj", attended,
                                         model.intermediate, model.hidden);
    const Writer::Out gated = add(p + "gated", act, up, "Multiply");
    const Writer::Out down =
        writer.MatMul(p + "down_proj", gated, model.hidden, model.intermediate);
    stream = add(p + "residual2", attended, down, "Add");
  }
  const Writer::Out logits =
      writer.MatMul("lm_head", stream, model.vocabulary, model.hidden);
  writer.Layer("logits", "Result", "opset1", "", {logits}, "", "");
  return writer;
}

// xorshift; four 16-bit draws summed make a bell of sigma about 0.02.
class WeightStream {
 public:
  explicit WeightStream(uint64_t seed)
      : state_(seed * 0x9E3779B97F4A7C15u + 1) {
    // Sum of four uniform bytes -> f16 bits, tabled.
    for (size_t sum = 0; sum < table_.size(); ++sum) {
      const float value = (static_cast<float>(sum) - 510.0f) / 148.0f * 0.02f;
      table_[sum] = ToHalf(value);
    }
  }
  uint16_t Next() {
    state_ ^= state_ << 13;
    state_ ^= state_ >> 7;
    state_ ^= state_ << 17;
    const uint64_t s = state_;
    const uint16_t base =
        table_[(s & 255) + (s >> 8 & 255) + (s >> 16 & 255) + (s >> 24 & 255)];
    // Low bits of the mantissa at random, so that values do not repeat.
    return static_cast<uint16_t>(base ^ (s >> 32 & 0x1f));
  }

 private:
  static uint16_t ToHalf(float value) {
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t sign = bits >> 16 & 0x8000;
    const int32_t exponent = static_cast<int32_t>(bits >> 23 & 0xff) - 127 + 15;
    if (exponent <= 0) return static_cast<uint16_t>(sign);
    return static_cast<uint16_t>(sign | static_cast<uint32_t>(exponent) << 10 |
                                 (bits >> 13 & 0x3ff));
  }
  uint64_t state_;
  std::array<uint16_t, 1021> table_{};
};

}  // namespace

uint64_t SyntheticBinBytes(const SyntheticModel& model) {
  const uint64_t h = model.hidden;
  const uint64_t per_layer = 4 * h * h + 3 * h * model.intermediate;
  return (2 * model.vocabulary * h + model.layers * per_layer) * 2 + 8;
}

std::string SyntheticXml(const SyntheticModel& model) {
  return Build(model).Finish();
}

absl::Status WriteSynthetic(const SyntheticModel& model,
                            const std::string& prefix) {
  const std::string xml = SyntheticXml(model);
  OVPRESS_ASSIGN_OR_RETURN(const auto xml_file,
                           AtomicFile::Create(prefix + ".xml", 0));
  OVPRESS_RETURN_IF_ERROR(xml_file->WriteAt(
      0, std::as_bytes(std::span<const char>(xml.data(), xml.size()))));
  OVPRESS_RETURN_IF_ERROR(xml_file->Commit());

  const uint64_t size = SyntheticBinBytes(model);
  OVPRESS_ASSIGN_OR_RETURN(const auto bin_file,
                           AtomicFile::Create(prefix + ".bin", 0));
  const int64_t axis = 0;
  OVPRESS_RETURN_IF_ERROR(bin_file->WriteAt(
      size - 8, std::as_bytes(std::span<const int64_t>(&axis, 1))));
  if (!model.sparse) {
    constexpr uint64_t kBlock = 4 << 20;  // weights
    std::vector<uint16_t> block(kBlock);
    const uint64_t weights = (size - 8) / 2;
    uint64_t seed = model.seed;
    for (uint64_t at = 0; at < weights; at += kBlock) {
      WeightStream stream(++seed);
      const uint64_t count = std::min(kBlock, weights - at);
      for (uint64_t i = 0; i < count; ++i) block[i] = stream.Next();
      OVPRESS_RETURN_IF_ERROR(bin_file->WriteAt(
          at * 2,
          std::as_bytes(std::span<const uint16_t>(block.data(), count))));
    }
  }
  return bin_file->Commit();
}

}  // namespace ovpress
