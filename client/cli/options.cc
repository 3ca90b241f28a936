#include "client/cli/options.h"

#include <limits>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "core/engine/presets.h"

namespace ovpress {
namespace {

constexpr uint64_t kCodebookFileBytesMax = 1 << 20;

std::string ModeNames() {
  std::vector<absl::string_view> names;
  for (const Mode mode : kAllModes) names.push_back(ModeTraitsOf(mode).name);
  return absl::StrJoin(names, ", ");
}

}  // namespace

void CompressionFlags::Register(CLI::App* app) {
  const std::string group = "What to compress to";
  app->add_option("--preset", preset,
                  "A named set of these options (ovpress presets lists them); "
                  "options given beside it win")
      ->group(group);
  app->add_option("--target-device", target_device,
                  "Refuse at once what the plugin of cpu, gpu or npu is not "
                  "known to run")
      ->group(group);
  mode_option =
      app->add_option(
             "--mode", mode,
             absl::StrCat("Precision of the compressed weights: ", ModeNames()))
          ->capture_default_str()
          ->group(group);
  app->add_option("--ratio", ratio,
                  "Share of the weights in the primary precision, 0 to 1; the "
                  "most sensitive ones get the backup precision [1]")
      ->group(group);
  group_size_option =
      app->add_option("--group-size", group_size,
                      "Weights that share one scale; -1: one per channel "
                      "[128 for 4-bit integer modes, see the modes' docs]")
          ->group(group);
  app->add_option("--backup-mode", backup_mode,
                  "Precision of what is not primary: none, int8_asym, "
                  "int8_sym, mxfp8_e4m3, fp8_e4m3 [int8_asym]")
      ->group(group);
  all_layers_option =
      app->add_flag("--all-layers", all_layers,
                    "Embeddings and the last layer in the primary precision "
                    "too")
          ->group(group);
  app->add_option("--group-size-fallback", group_size_fallback,
                  "If a group size does not divide a channel: error, ignore "
                  "(the layer stays float), adjust (take the largest power "
                  "of two that does, as NNCF)")
      ->capture_default_str()
      ->group(group);
  app->add_option("--min-adjusted-group-size", min_adjusted_group_size,
                  "Smallest group size that adjust may choose")
      ->capture_default_str()
      ->group(group);
  app->add_option("--sensitivity-metric", sensitivity_metric,
                  "How weights are ranked for --ratio; "
                  "weight_quantization_error is the one that needs no data")
      ->group(group);
  app->add_option("--codebook", codebook_file,
                  "Values for --mode codebook: a JSON array or a 1-D .npy "
                  "file, ascending")
      ->type_name("FILE")
      ->group(group);
  awq_option = app->add_flag("--awq", awq,
                             "Rescale input channels first (data-free AWQ)")
                   ->group(group);
  app->add_flag("--awq-extended", awq_extended,
                "With --awq: also behind Gelu, and MatMuls that share a norm's "
                "output together; NNCF has no such pattern, but the model's "
                "function is kept")
      ->group(group);
  const std::string ignore = "What to leave alone";
  app->add_option("--ignored-name", ignored_names,
                  "Name of a node or constant to leave alone; repeatable")
      ->group(ignore)
      ->allow_extra_args(false);
  app->add_option("--ignored-pattern", ignored_patterns,
                  "Regular expression for such names, matched at their start; "
                  "repeatable")
      ->group(ignore)
      ->allow_extra_args(false);
  app->add_option("--ignored-type", ignored_types,
                  "Operation type to leave alone, e.g. Convolution; repeatable")
      ->group(ignore)
      ->allow_extra_args(false);
  app->add_flag("--allow-unmatched-ignored", allow_unmatched_ignored,
                "An --ignored-... that matches nothing is no error")
      ->group(ignore);
  app->add_flag("--allow-non-finite", allow_non_finite,
                "Compress weights that hold NaN or infinities instead of "
                "refusing them")
      ->group(ignore);
}

absl::StatusOr<CompressionOptions> CompressionFlags::ToOptions(
    std::string* codebook_bytes) const {
  CompressionOptions options;
  const std::optional<Mode> parsed_mode = ParseMode(mode);
  if (!parsed_mode.has_value()) {
    if (mode == "adaptive_codebook") {
      return absl::InvalidArgumentError(
          "mode adaptive_codebook needs activation statistics, and ovpress is "
          "data-free; use codebook or cb4");
    }
    return absl::InvalidArgumentError(
        absl::StrCat("unknown mode '", mode, "'; one of: ", ModeNames()));
  }
  options.mode = *parsed_mode;
  if (!preset.empty()) {
    const Preset* const chosen = FindPreset(preset);
    if (chosen == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown preset '", preset, "'; ovpress presets lists them"));
    }
    if (mode_option == nullptr || mode_option->count() == 0) {
      options.mode = chosen->mode;
    }
    options.ratio = chosen->ratio;
    options.group_size = chosen->group_size;
    if (chosen->awq) options.awq = true;
  }
  if (!ratio.empty()) {
    double value = 0;
    if (!absl::SimpleAtod(ratio, &value) || value != value) {
      return absl::InvalidArgumentError(
          absl::StrCat("ratio '", ratio, "' is not a number"));
    }
    // Python's 1 and 1.0 print differently in rt_info; so do ours.
    options.ratio.reset();
    if (ratio != "1" && ratio != "0") options.ratio = value;
  }
  if (group_size_option != nullptr && group_size_option->count() > 0) {
    options.group_size = group_size;
  }
  if (!backup_mode.empty()) {
    options.backup_mode = ParseBackupMode(backup_mode);
    if (!options.backup_mode.has_value()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "unknown backup mode '", backup_mode,
          "'; one of: none, int8_asym, int8_sym, mxfp8_e4m3, fp8_e4m3"));
    }
  }
  if (all_layers_option != nullptr && all_layers_option->count() > 0) {
    options.all_layers = all_layers;
  }
  if (!sensitivity_metric.empty()) {
    options.sensitivity_metric = sensitivity_metric;
  }
  options.ignored.names = ignored_names;
  options.ignored.patterns = ignored_patterns;
  options.ignored.types = ignored_types;
  options.ignored.validate = !allow_unmatched_ignored;
  const std::optional<GroupSizeFallback> fallback =
      ParseGroupSizeFallback(group_size_fallback);
  if (!fallback.has_value()) {
    return absl::InvalidArgumentError(
        absl::StrCat("unknown group size fallback '", group_size_fallback,
                     "'; one of: error, ignore, adjust"));
  }
  options.group_size_fallback = *fallback;
  options.min_adjusted_group_size = min_adjusted_group_size;
  if (awq_option != nullptr && awq_option->count() > 0) options.awq = awq;
  options.awq_extended = awq_extended;
  options.allow_non_finite = allow_non_finite;
  if (!codebook_file.empty()) {
    if (options.mode != Mode::kCodebook) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--codebook goes with --mode codebook, not with ", mode));
    }
    OVPRESS_ASSIGN_OR_RETURN(
        const std::string bytes,
        ReadSmallFile(codebook_file, kCodebookFileBytesMax));
    if (codebook_bytes != nullptr) *codebook_bytes = bytes;
    OVPRESS_ASSIGN_OR_RETURN(options.codebook,
                             ParseCodebook(bytes, &options.codebook_text));
  }
  OVPRESS_RETURN_IF_ERROR(ValidateOptions(options));
  if (!target_device.empty()) {
    OVPRESS_RETURN_IF_ERROR(CheckTargetDevice(options, target_device));
  }
  return options;
}

std::map<std::string, std::vector<std::string>> CompressionValueNames() {
  std::map<std::string, std::vector<std::string>> names;
  for (const Mode mode : kAllModes) {
    names["--mode"].emplace_back(ModeTraitsOf(mode).name);
  }
  for (const Preset& preset : Presets()) {
    names["--preset"].emplace_back(preset.name);
  }
  for (const BackupMode mode :
       {BackupMode::kKeepFloat, BackupMode::kInt8Asym, BackupMode::kInt8Sym,
        BackupMode::kMxfp8E4m3, BackupMode::kFp8E4m3}) {
    names["--backup-mode"].emplace_back(BackupModeName(mode));
  }
  for (const GroupSizeFallback fallback :
       {GroupSizeFallback::kError, GroupSizeFallback::kIgnore,
        GroupSizeFallback::kAdjust}) {
    names["--group-size-fallback"].emplace_back(
        GroupSizeFallbackName(fallback));
  }
  names["--target-device"] = {"cpu", "gpu", "npu"};
  names["--sensitivity-metric"] = {"weight_quantization_error"};
  return names;
}

absl::StatusOr<uint64_t> ParseByteSize(const std::string& text) {
  constexpr struct {
    absl::string_view suffix;
    int shift;
  } kUnits[] = {{"kib", 10}, {"mib", 20}, {"gib", 30}, {"tib", 40}, {"kb", 10},
                {"mb", 20},  {"gb", 30},  {"tb", 40},  {"k", 10},   {"m", 20},
                {"g", 30},   {"t", 40},   {"b", 0},    {"", 0}};
  const std::string lower =
      absl::AsciiStrToLower(absl::StripAsciiWhitespace(text));
  for (const auto& unit : kUnits) {
    if (!absl::EndsWith(lower, unit.suffix)) continue;
    uint64_t value = 0;
    const absl::string_view digits = absl::StripTrailingAsciiWhitespace(
        absl::string_view(lower).substr(0, lower.size() - unit.suffix.size()));
    if (!absl::SimpleAtoi(digits, &value)) break;
    if (value > std::numeric_limits<uint64_t>::max() >> unit.shift) break;
    return value << unit.shift;
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "'", text, "' is not a size; write for example 256MiB or 2GiB"));
}

}  // namespace ovpress
