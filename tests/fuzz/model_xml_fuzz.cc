// The XML reader, and the writer over what it read: any bytes give a model or
// one status; a model that is written and read again is the same model.
#include "core/ir/editor.h"
#include "core/ir/model.h"
#include "tests/fuzz/input.h"

using ovpress::Constant;
using ovpress::Layer;
using ovpress::Model;
using ovpress::Port;

namespace {

void CheckGraph(const Model& model) {
  for (size_t i = 0; i < model.layers().size(); ++i) {
    const Layer& layer = model.layers()[i];
    OVPRESS_FUZZ_ASSERT(layer.producers.size() == layer.inputs.size(), "");
    OVPRESS_FUZZ_ASSERT(layer.consumers.size() == layer.outputs.size(), "");
    for (const ovpress::Producer& producer : layer.producers) {
      if (producer.layer == ovpress::kNone) continue;
      OVPRESS_FUZZ_ASSERT(producer.layer < model.layers().size(), "");
      OVPRESS_FUZZ_ASSERT(
          producer.output < model.layers()[producer.layer].outputs.size(), "");
    }
    for (const auto& consumers : layer.consumers) {
      for (const ovpress::Consumer& consumer : consumers) {
        const Layer& reader = model.layers().at(consumer.layer);
        OVPRESS_FUZZ_ASSERT(reader.producers.at(consumer.input).layer == i,
                            reader.name);
      }
    }
  }
  for (const Constant& constant : model.constants()) {
    OVPRESS_FUZZ_ASSERT(
        constant.size_bytes <= UINT64_MAX - constant.offset_bytes,
        constant.name);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  // Small limits, so that they are met within a small input.
  ovpress::IrLimits limits;
  limits.xml_depth_max = 40;
  limits.layers_max = 500;
  limits.rank_max = 16;
  const auto model = Model::Parse(
      std::string(reinterpret_cast<const char*>(data), size), limits);
  if (!model.ok()) {
    OVPRESS_FUZZ_ASSERT(!model.status().message().empty(), "no message");
    OVPRESS_FUZZ_ASSERT(model.status().message().size() < 4096,
                        "the message quotes too much");
    return 0;
  }
  CheckGraph(*model);
  (void)model->CheckConstantRanges(size);
  (void)model->BinBytesUsed();
  ovpress::ModelEditor editor(*model);
  const auto again = Model::Parse(editor.Serialize(), limits);
  OVPRESS_FUZZ_ASSERT(again.ok(), again.status().ToString());
  OVPRESS_FUZZ_ASSERT(again->layers().size() == model->layers().size(), "");
  OVPRESS_FUZZ_ASSERT(again->constants().size() == model->constants().size(),
                      "");
  for (size_t i = 0; i < model->constants().size(); ++i) {
    const Constant& a = model->constants()[i];
    const Constant& b = again->constants()[i];
    OVPRESS_FUZZ_ASSERT(a.offset_bytes == b.offset_bytes, a.name);
    OVPRESS_FUZZ_ASSERT(a.size_bytes == b.size_bytes, a.name);
    OVPRESS_FUZZ_ASSERT(a.shape == b.shape, a.name);
  }
  return 0;
}
