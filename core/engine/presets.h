// Named sets of options with their reasons, and what a device refuses.
#ifndef OVPRESS_CORE_ENGINE_PRESETS_H_
#define OVPRESS_CORE_ENGINE_PRESETS_H_

#include <span>

#include "absl/status/status.h"
#include "absl/strings/string_view.h"
#include "core/engine/options.h"

namespace ovpress {

struct Preset {
  absl::string_view name;  // "llm-int4-balanced"
  absl::string_view description;
  Mode mode;
  std::optional<double> ratio;
  std::optional<int64_t> group_size;
  bool awq = false;
};

std::span<const Preset> Presets();
const Preset* FindPreset(absl::string_view name);  // nullptr if unknown

// kInvalidArgument, with the reason and where OpenVINO documents it, if the
// plugin of `device` ("cpu", "gpu", "npu") is not known to run the result.
absl::Status CheckTargetDevice(const CompressionOptions& options,
                               absl::string_view device);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_PRESETS_H_
