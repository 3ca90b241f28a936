// What a caller asks for: NNCF's compress_weights arguments, names and values.
#ifndef OVPRESS_CORE_ENGINE_OPTIONS_H_
#define OVPRESS_CORE_ENGINE_OPTIONS_H_

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/quant/scheme.h"

namespace ovpress {

enum class BackupMode : uint8_t {
  kKeepFloat,  // "none": what is not primary stays as it is
  kInt8Sym,
  kInt8Asym,
  kMxfp8E4m3,
  kFp8E4m3,
};
absl::string_view BackupModeName(BackupMode mode);  // "int8_asym"
std::optional<BackupMode> ParseBackupMode(absl::string_view name);

enum class GroupSizeFallback : uint8_t { kError, kIgnore, kAdjust };
absl::string_view GroupSizeFallbackName(GroupSizeFallback mode);  // "error"
std::optional<GroupSizeFallback> ParseGroupSizeFallback(absl::string_view name);

// Nodes to leave alone. `names` are exact (of nodes or of constants),
// `patterns` ECMAScript-free: RE2 syntax, matched as a prefix like Python's
// re.match; `types` are op types. With `validate`, a rule that matches nothing
// is an error.
struct IgnoredScope {
  std::vector<std::string> names;
  std::vector<std::string> patterns;
  std::vector<std::string> types;
  bool validate = true;
  bool empty() const {
    return names.empty() && patterns.empty() && types.empty();
  }
};

// An unset optional means NNCF's default for the mode; some combinations are
// refused only if the value was given.
struct CompressionOptions {
  Mode mode = Mode::kInt8Asym;
  std::optional<double> ratio;        // [0, 1]; 0 means 1, as in NNCF
  std::optional<int64_t> group_size;  // -1: per channel
  std::optional<BackupMode> backup_mode;
  std::optional<bool> all_layers;
  // Only "weight_quantization_error" needs no data; others are refused.
  std::optional<std::string> sensitivity_metric;
  IgnoredScope ignored;
  GroupSizeFallback group_size_fallback = GroupSizeFallback::kError;
  int64_t min_adjusted_group_size = 32;
  std::optional<bool> awq;
  // Also rescale where NNCF has no pattern but the function is provably kept
  // (an activation Gelu; all MatMuls behind a norm, together).
  bool awq_extended = false;
  // Required for (and only for) Mode::kCodebook.
  std::shared_ptr<const Codebook> codebook;
  // How Python prints the user's table, for rt_info.
  std::string codebook_text;
  // NaN or infinite weights: refuse (default) or compress them all the same
  // with the OpenVINO-path rule of the note, section 4.5.
  bool allow_non_finite = false;

  bool operator==(const CompressionOptions&) const = delete;
};

// All checks that need no model: kInvalidArgument with what NNCF would refuse.
absl::Status ValidateOptions(const CompressionOptions& options);

// One line per option in a fixed order, defaults resolved: equal strings mean
// equal results. Part of the result cache's key.
std::string CanonicalOptions(const CompressionOptions& options);

// Reads a codebook table from the bytes of a JSON file (an array of numbers:
// f32; or {"dtype": "f8e4m3", "values": [...]}) or a NumPy .npy file (1-D,
// little endian f16/f32/f64/i8/u8 ...). Checks NNCF's rules: 1-D, at least two
// entries, strictly ascending, finite; at most 65536.
absl::StatusOr<std::shared_ptr<const Codebook>> ParseCodebook(
    absl::string_view file_bytes, std::string* python_text);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_OPTIONS_H_
