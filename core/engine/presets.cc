#include "core/engine/presets.h"

#include "absl/strings/str_cat.h"

namespace ovpress {
namespace {

constexpr Preset kPresets[] = {
    {"int8", "Every weight in 8 bits, per channel: hardly any loss",
     Mode::kInt8Asym, std::nullopt, std::nullopt},
    {"llm-int4-balanced",
     "4 bits in groups of 64 for four fifths of the weights, the most "
     "sensitive fifth in 8 bits",
     Mode::kInt4Asym, 0.8, 64},
    {"llm-int4-small",
     "4 bits in groups of 128 for all weights but embeddings and the last "
     "layer",
     Mode::kInt4Sym, std::nullopt, 128},
    {"llm-int4-awq",
     "As llm-int4-balanced, input channels rescaled first (data-free AWQ)",
     Mode::kInt4Asym, 0.8, 64, true},
    {"npu-int4", "Symmetric 4 bits in groups of 128, as the NPU guide asks",
     Mode::kInt4Sym, std::nullopt, 128},
    {"npu-int4-channel",
     "Symmetric 4 bits, one scale per channel: for NPU and models of more than "
     "about a billion weights",
     Mode::kInt4Sym, std::nullopt, -1}};

}  // namespace

std::span<const Preset> Presets() { return kPresets; }

const Preset* FindPreset(absl::string_view name) {
  for (const Preset& preset : kPresets) {
    if (preset.name == name) return &preset;
  }
  return nullptr;
}

absl::Status CheckTargetDevice(const CompressionOptions& options,
                               absl::string_view device) {
  if (device == "cpu" || device == "gpu") return absl::OkStatus();
  if (device != "npu") {
    return absl::InvalidArgumentError(absl::StrCat(
        "unknown target device '", device, "'; one of: cpu, gpu, npu"));
  }
  // OpenVINO's guide "Inference with OpenVINO GenAI on NPU": symmetrically
  // quantized 4-bit weights, group size 128 or -1.
  const absl::string_view where =
      " (OpenVINO's guide for GenAI on NPU: symmetric INT4, group size 128 or "
      "-1; use --preset npu-int4)";
  const ModeTraits& traits = ModeTraitsOf(options.mode);
  if (options.mode == Mode::kInt8Sym || options.mode == Mode::kInt8Asym) {
    return absl::OkStatus();
  }
  if (options.mode != Mode::kInt4Sym) {
    return absl::InvalidArgumentError(
        absl::StrCat("the NPU is not known to run mode ", traits.name, where));
  }
  const int64_t group_size =
      options.group_size.value_or(traits.default_group_size);
  if (group_size != 128 && group_size != -1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the NPU is not known to run group size ", group_size, where));
  }
  return absl::OkStatus();
}

}  // namespace ovpress
