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

namespace {

// Modes that OpenVINO's or NNCF's documentation names for the GPU: 8 and 4 bit
// integers in OpenVINO's "Weight Compression"; the others as experimental in
// NNCF's "Weights Compression" (docs/modes.md has the passages).
bool GpuIsDocumented(Mode mode) {
  switch (mode) {
    case Mode::kInt8Asym:
    case Mode::kInt8Sym:
    case Mode::kInt4Asym:
    case Mode::kInt4Sym:
    case Mode::kNf4:
    case Mode::kMxfp4:
    case Mode::kMxfp8E4m3:
    case Mode::kNvfp4:
      return true;
    default:
      return false;
  }
}

absl::Status CheckGpu(const CompressionOptions& options) {
  if (!GpuIsDocumented(options.mode)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the GPU is not known to run mode ", ModeTraitsOf(options.mode).name,
        ": no documentation of OpenVINO or NNCF names it for the GPU; named "
        "are int8_asym, int8_sym, int4_asym, int4_sym and, as experimental, "
        "nf4, mxfp4, mxfp8_e4m3, nvfp4 (docs/modes.md)"));
  }
  if (options.backup_mode == BackupMode::kFp8E4m3) {
    return absl::InvalidArgumentError(
        "the GPU is not known to run backup mode fp8_e4m3: no documentation of "
        "OpenVINO or NNCF names it for the GPU; take int8_asym or int8_sym "
        "(docs/modes.md)");
  }
  return absl::OkStatus();
}

// OpenVINO's guide "OpenVINO GenAI on NPU" (2026.3): symmetric, INT4 or NF4,
// group size 128 or -1, ratio 1.0; NF4 with -1 only.
absl::Status CheckNpu(const CompressionOptions& options) {
  const absl::string_view where =
      " (OpenVINO's guide \"OpenVINO GenAI on NPU\"; try --preset npu-int4)";
  if (options.mode == Mode::kInt8Sym || options.mode == Mode::kInt8Asym) {
    return absl::OkStatus();
  }
  const ModeTraits& traits = ModeTraitsOf(options.mode);
  if (options.mode != Mode::kInt4Sym && options.mode != Mode::kNf4) {
    return absl::InvalidArgumentError(
        absl::StrCat("the NPU is not known to run mode ", traits.name,
                     ": 4-bit weights must be int4_sym or nf4", where));
  }
  const int64_t group_size =
      options.group_size.value_or(traits.default_group_size);
  if (options.mode == Mode::kNf4 && group_size != -1) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the NPU is not known to run nf4 with group size ", group_size,
        ": nf4 must be channel-wise, group size -1", where));
  }
  if (group_size != 128 && group_size != -1) {
    return absl::InvalidArgumentError(
        absl::StrCat("the NPU is not known to run group size ", group_size,
                     ": it must be 128 or -1", where));
  }
  const double ratio = options.ratio.value_or(1.0);
  if (ratio != 1.0 && ratio != 0.0) {  // 0 means 1, as in NNCF
    return absl::InvalidArgumentError(
        absl::StrCat("the NPU is not known to run ratio ", ratio,
                     ": all weights must have 4 bits, ratio 1", where));
  }
  return absl::OkStatus();
}

}  // namespace

absl::Status CheckTargetDevice(const CompressionOptions& options,
                               absl::string_view device) {
  // The CPU plugin runs every mode: the conformance suite and tests/quality do.
  if (device == "cpu") return absl::OkStatus();
  if (device == "gpu") return CheckGpu(options);
  if (device == "npu") return CheckNpu(options);
  return absl::InvalidArgumentError(absl::StrCat(
      "unknown target device '", device, "'; one of: cpu, gpu, npu"));
}

}  // namespace ovpress
