#include "server/auth/json_fields.h"

#include <algorithm>
#include <cmath>
#include <set>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"

namespace ovpress {
namespace {

using nlohmann::json;

// Builds the value as the library does, but notices what it would forgive.
class StrictHandler : public nlohmann::detail::json_sax_dom_parser<json> {
  using Base = nlohmann::detail::json_sax_dom_parser<json>;

 public:
  StrictHandler(json& result, int depth_max)
      : Base(result, /*allow_exceptions_=*/false), depth_max_(depth_max) {}

  bool start_object(std::size_t count) {
    if (!Deeper()) return false;
    keys_.emplace_back();
    return Base::start_object(count);
  }
  bool key(json::string_t& name) {
    if (!keys_.back().insert(name).second) {
      problem_ = absl::StrCat("the key '", absl::CHexEscape(name.substr(0, 80)),
                              "' is there twice");
      return false;
    }
    return Base::key(name);
  }
  bool end_object() {
    keys_.pop_back();
    --depth_;
    return Base::end_object();
  }
  bool start_array(std::size_t count) {
    return Deeper() && Base::start_array(count);
  }
  bool end_array() {
    --depth_;
    return Base::end_array();
  }
  template <class Exception>
  bool parse_error(std::size_t position, const std::string& /*token*/,
                   const Exception& /*error*/) {
    problem_ = absl::StrCat("no JSON at byte ", position);
    return false;
  }
  const std::string& problem() const { return problem_; }

 private:
  bool Deeper() {
    if (++depth_ <= depth_max_) return true;
    problem_ = absl::StrCat("nested deeper than ", depth_max_);
    return false;
  }

  const int depth_max_;
  int depth_ = 0;
  std::vector<std::set<std::string>> keys_;
  std::string problem_;
};

}  // namespace

absl::StatusOr<json> ParseJsonObject(absl::string_view text,
                                     absl::string_view where, int depth_max) {
  const auto bad = [&](auto... parts) {
    return absl::InvalidArgumentError(absl::StrCat(where, ": ", parts...));
  };
  if (text.size() > kConfigBytesMax) {
    return bad(text.size(), " bytes, at most ", kConfigBytesMax);
  }
  json result;
  StrictHandler handler(result, depth_max);
  if (!json::sax_parse(text.begin(), text.end(), &handler)) {
    return bad(handler.problem().empty() ? "no JSON" : handler.problem());
  }
  if (!result.is_object()) return bad("must be a JSON object");
  return result;
}

absl::StatusOr<JsonFields> JsonFields::Create(const json& json,
                                              std::string where) {
  if (!json.is_object()) {
    return absl::InvalidArgumentError(
        absl::StrCat(where, ": must be an object"));
  }
  return JsonFields(json, std::move(where));
}

const json* JsonFields::Find(absl::string_view name) {
  asked_.emplace_back(name);
  const auto it = json_->find(std::string(name));
  return it == json_->end() ? nullptr : &*it;
}

bool JsonFields::Has(absl::string_view name) const {
  return json_->contains(std::string(name));
}

absl::Status JsonFields::Wrong(absl::string_view name,
                               absl::string_view expected) const {
  return absl::InvalidArgumentError(
      absl::StrCat(where_, ": ", name, " must be ", expected));
}

absl::StatusOr<std::string> JsonFields::String(absl::string_view name) {
  const json* value = Find(name);
  if (value == nullptr || !value->is_string()) {
    return Wrong(name, "there, and a string");
  }
  return value->get<std::string>();
}

absl::StatusOr<std::optional<std::string>> JsonFields::OptionalString(
    absl::string_view name) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_string()) return Wrong(name, "a string");
  return value->get<std::string>();
}

absl::StatusOr<std::vector<std::string>> JsonFields::Strings(
    absl::string_view name) {
  const json* value = Find(name);
  std::vector<std::string> strings;
  if (value == nullptr || !value->is_array()) {
    return Wrong(name, "there, and a list of strings");
  }
  for (const json& element : *value) {
    if (!element.is_string()) return Wrong(name, "a list of strings");
    strings.push_back(element.get<std::string>());
  }
  return strings;
}

absl::StatusOr<const json*> JsonFields::OptionalArray(absl::string_view name) {
  const json* value = Find(name);
  if (value != nullptr && !value->is_array()) return Wrong(name, "a list");
  return value;
}

absl::StatusOr<const json*> JsonFields::OptionalObject(absl::string_view name) {
  const json* value = Find(name);
  if (value != nullptr && !value->is_object()) return Wrong(name, "an object");
  return value;
}

absl::StatusOr<std::optional<uint64_t>> JsonFields::OptionalCount(
    absl::string_view name, uint64_t max) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number_unsigned() || value->get<uint64_t>() > max) {
    return Wrong(name, absl::StrCat("a whole number from 0 to ", max));
  }
  return value->get<uint64_t>();
}

absl::StatusOr<std::optional<uint64_t>> JsonFields::OptionalBytes(
    absl::string_view name) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (value->is_number_unsigned()) return value->get<uint64_t>();
  constexpr struct {
    absl::string_view suffix;
    int shift;
  } kUnits[] = {{"KiB", 10}, {"MiB", 20}, {"GiB", 30}, {"TiB", 40}};
  if (value->is_string()) {
    const std::string text = value->get<std::string>();
    absl::string_view number = text;
    int shift = 0;
    for (const auto& unit : kUnits) {
      if (absl::ConsumeSuffix(&number, unit.suffix)) shift = unit.shift;
    }
    uint64_t count = 0;
    if (!number.empty() && number.size() <= 19 &&
        std::all_of(number.begin(), number.end(),
                    [](char c) { return c >= '0' && c <= '9'; }) &&
        absl::SimpleAtoi(number, &count) && count <= (UINT64_MAX >> shift)) {
      return count << shift;
    }
  }
  return Wrong(name, "a number of bytes, like 1048576 or \"50GiB\"");
}

absl::StatusOr<std::optional<double>> JsonFields::OptionalNumber(
    absl::string_view name, double max) {
  const json* value = Find(name);
  if (value == nullptr) return std::nullopt;
  if (!value->is_number() || !(value->get<double>() >= 0) ||
      !(value->get<double>() <= max)) {
    return Wrong(name, absl::StrCat("a number from 0 to ", max));
  }
  return value->get<double>();
}

absl::Status JsonFields::Done() const {
  for (const auto& [key, value] : json_->items()) {
    if (std::find(asked_.begin(), asked_.end(), key) == asked_.end()) {
      return absl::InvalidArgumentError(absl::StrCat(
          where_, ": unknown key '", absl::CHexEscape(key.substr(0, 80)),
          "'; known are ", absl::StrJoin(asked_, ", ")));
    }
  }
  return absl::OkStatus();
}

}  // namespace ovpress
