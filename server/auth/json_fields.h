// Configuration as JSON, read strictly: the wrong type or an unknown key is an
// error that says where.
#ifndef OVPRESS_SERVER_AUTH_JSON_FIELDS_H_
#define OVPRESS_SERVER_AUTH_JSON_FIELDS_H_

#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "nlohmann/json.hpp"

namespace ovpress {

// Configuration files above this size are refused: 10,000 tokens are 1.2 MB.
inline constexpr size_t kConfigBytesMax = 16u << 20;

// kInvalidArgument unless `text` is one JSON object without a key given twice,
// not nested deeper than `depth_max`. `where` starts the messages.
absl::StatusOr<nlohmann::json> ParseJsonObject(absl::string_view text,
                                               absl::string_view where,
                                               int depth_max = 8);

// The members of one object. Members are asked for by name; Done() then finds
// those that nobody asked for.
class JsonFields {
 public:
  // kInvalidArgument if `json` is no object.
  static absl::StatusOr<JsonFields> Create(const nlohmann::json& json,
                                           std::string where);

  const std::string& where() const { return where_; }
  bool Has(absl::string_view name) const;
  // kInvalidArgument if absent or of another type.
  absl::StatusOr<std::string> String(absl::string_view name);
  absl::StatusOr<std::vector<std::string>> Strings(absl::string_view name);
  // An array; nullptr if absent.
  absl::StatusOr<const nlohmann::json*> OptionalArray(absl::string_view name);
  absl::StatusOr<const nlohmann::json*> OptionalObject(absl::string_view name);
  absl::StatusOr<std::optional<std::string>> OptionalString(
      absl::string_view name);
  // 0 to `max`.
  absl::StatusOr<std::optional<uint64_t>> OptionalCount(absl::string_view name,
                                                        uint64_t max);
  // The same, or a string like "50GiB".
  absl::StatusOr<std::optional<uint64_t>> OptionalBytes(absl::string_view name);
  absl::StatusOr<std::optional<double>> OptionalNumber(absl::string_view name,
                                                       double max);
  // kInvalidArgument if there is a member that no call above named.
  absl::Status Done() const;

 private:
  JsonFields(const nlohmann::json& json, std::string where)
      : json_(&json), where_(std::move(where)) {}
  const nlohmann::json* Find(absl::string_view name);
  absl::Status Wrong(absl::string_view name, absl::string_view expected) const;

  const nlohmann::json* json_;
  std::string where_;
  std::vector<std::string> asked_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_JSON_FIELDS_H_
