#include "server/jobs/options_json.h"

#include <type_traits>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

using Json = nlohmann::ordered_json;

absl::Status Bad(absl::string_view what) {
  return absl::InvalidArgumentError(
      absl::StrCat("stored options: ", what,
                   "; they were written by another version of ovpress"));
}

// Takes `key` out of `json` if it is there; what is left over at the end is
// unknown.
template <typename T>
void Take(Json& json, const char* key, T* value) {
  const auto it = json.find(key);
  if (it == json.end()) return;
  if constexpr (std::is_same_v<T, int64_t>) {
    // get<> would convert 1e300, which is undefined, and wrap what is too
    // large.
    if (!it->is_number_integer() ||
        (it->is_number_unsigned() &&
         it->template get<uint64_t>() > static_cast<uint64_t>(INT64_MAX))) {
      throw Json::type_error::create(
          302, absl::StrCat(key, " must be a 64-bit integer"), &*it);
    }
  }
  *value = it->template get<T>();
  json.erase(it);
}
template <typename T>
void Take(Json& json, const char* key, std::optional<T>* value) {
  T taken{};
  if (!json.contains(key)) return;
  Take(json, key, &taken);
  *value = std::move(taken);
}

absl::StatusOr<CompressionOptions> FromJson(Json json) {
  CompressionOptions options;
  std::string name;
  Take(json, "mode", &name);
  const std::optional<Mode> mode = ParseMode(name);
  if (!mode.has_value()) return Bad(absl::StrCat("unknown mode '", name, "'"));
  options.mode = *mode;
  Take(json, "ratio", &options.ratio);
  Take(json, "group_size", &options.group_size);
  std::optional<std::string> backup;
  Take(json, "backup_mode", &backup);
  if (backup.has_value()) {
    options.backup_mode = ParseBackupMode(*backup);
    if (!options.backup_mode.has_value()) return Bad("unknown backup_mode");
  }
  Take(json, "all_layers", &options.all_layers);
  Take(json, "sensitivity_metric", &options.sensitivity_metric);
  Take(json, "ignored_names", &options.ignored.names);
  Take(json, "ignored_patterns", &options.ignored.patterns);
  Take(json, "ignored_types", &options.ignored.types);
  Take(json, "ignored_validate", &options.ignored.validate);
  std::optional<std::string> fallback;
  Take(json, "group_size_fallback", &fallback);
  if (fallback.has_value()) {
    const auto parsed = ParseGroupSizeFallback(*fallback);
    if (!parsed.has_value()) return Bad("unknown group_size_fallback");
    options.group_size_fallback = *parsed;
  }
  Take(json, "min_adjusted_group_size", &options.min_adjusted_group_size);
  Take(json, "awq", &options.awq);
  Take(json, "awq_extended", &options.awq_extended);
  Take(json, "allow_non_finite", &options.allow_non_finite);
  std::optional<std::string> codebook_type;
  Take(json, "codebook_type", &codebook_type);
  if (codebook_type.has_value()) {
    Codebook codebook;
    const auto type = ParseElementType(*codebook_type);
    if (!type.has_value()) return Bad("unknown codebook_type");
    codebook.type = *type;
    Take(json, "codebook_values", &codebook.values);
    std::string hex;
    Take(json, "codebook_stored", &hex);
    const std::string stored = absl::HexStringToBytes(hex);
    const auto bytes = AsBytes(stored);
    codebook.stored.assign(bytes.begin(), bytes.end());
    Take(json, "codebook_text", &options.codebook_text);
    options.codebook = std::make_shared<const Codebook>(std::move(codebook));
  }
  if (!json.empty()) {
    return Bad(absl::StrCat("unknown key '", json.begin().key(), "'"));
  }
  return options;
}

}  // namespace

std::string OptionsToJson(const CompressionOptions& options) {
  Json json;
  json["mode"] = std::string(ModeTraitsOf(options.mode).name);
  if (options.ratio) json["ratio"] = *options.ratio;
  if (options.group_size) json["group_size"] = *options.group_size;
  if (options.backup_mode) {
    json["backup_mode"] = std::string(BackupModeName(*options.backup_mode));
  }
  if (options.all_layers) json["all_layers"] = *options.all_layers;
  if (options.sensitivity_metric) {
    json["sensitivity_metric"] = *options.sensitivity_metric;
  }
  json["ignored_names"] = options.ignored.names;
  json["ignored_patterns"] = options.ignored.patterns;
  json["ignored_types"] = options.ignored.types;
  json["ignored_validate"] = options.ignored.validate;
  json["group_size_fallback"] =
      std::string(GroupSizeFallbackName(options.group_size_fallback));
  json["min_adjusted_group_size"] = options.min_adjusted_group_size;
  if (options.awq) json["awq"] = *options.awq;
  json["awq_extended"] = options.awq_extended;
  json["allow_non_finite"] = options.allow_non_finite;
  if (options.codebook != nullptr) {
    json["codebook_type"] =
        std::string(ElementTypeName(options.codebook->type));
    json["codebook_values"] = options.codebook->values;
    const auto& stored = options.codebook->stored;
    json["codebook_stored"] = absl::BytesToHexString(absl::string_view(
        reinterpret_cast<const char*>(stored.data()), stored.size()));
    json["codebook_text"] = options.codebook_text;
  }
  // Names come from clients and need not be UTF-8.
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

absl::StatusOr<CompressionOptions> OptionsFromJson(absl::string_view json) {
  try {
    return FromJson(Json::parse(json.begin(), json.end()));
  } catch (const nlohmann::json::exception& error) {
    return Bad(error.what());
  }
}

absl::Status SetOptions(const CompressionOptions& options, JobSpec* spec) {
  OVPRESS_RETURN_IF_ERROR(ValidateOptions(options));
  spec->options_json = OptionsToJson(options);
  spec->canonical_options = CanonicalOptions(options);
  spec->mode = std::string(ModeTraitsOf(options.mode).name);
  return absl::OkStatus();
}

}  // namespace ovpress
