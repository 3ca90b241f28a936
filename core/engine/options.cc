#include "core/engine/options.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "core/base/status_macros.h"
#include "core/engine/python_text.h"
#include "core/quant/kernels.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

constexpr struct {
  BackupMode mode;
  absl::string_view name;
} kBackupModes[] = {{BackupMode::kKeepFloat, "none"},
                    {BackupMode::kInt8Sym, "int8_sym"},
                    {BackupMode::kInt8Asym, "int8_asym"},
                    {BackupMode::kMxfp8E4m3, "mxfp8_e4m3"},
                    {BackupMode::kFp8E4m3, "fp8_e4m3"}};

constexpr struct {
  GroupSizeFallback mode;
  absl::string_view name;
} kFallbacks[] = {{GroupSizeFallback::kError, "error"},
                  {GroupSizeFallback::kIgnore, "ignore"},
                  {GroupSizeFallback::kAdjust, "adjust"}};

constexpr uint64_t kCodebookEntriesMax = 65536;

}  // namespace

absl::string_view BackupModeName(BackupMode mode) {
  for (const auto& row : kBackupModes) {
    if (row.mode == mode) return row.name;
  }
  return "";
}

std::optional<BackupMode> ParseBackupMode(absl::string_view name) {
  for (const auto& row : kBackupModes) {
    if (row.name == name) return row.mode;
  }
  return std::nullopt;
}

absl::string_view GroupSizeFallbackName(GroupSizeFallback mode) {
  for (const auto& row : kFallbacks) {
    if (row.mode == mode) return row.name;
  }
  return "";
}

std::optional<GroupSizeFallback> ParseGroupSizeFallback(
    absl::string_view name) {
  for (const auto& row : kFallbacks) {
    if (row.name == name) return row.mode;
  }
  return std::nullopt;
}

absl::Status ValidateOptions(const CompressionOptions& options) {
  const ModeTraits& traits = ModeTraitsOf(options.mode);
  if (traits.is_int8) {
    if (options.ratio && *options.ratio != 0 && *options.ratio != 1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "mode ", traits.name,
          " compresses all layers to 8 bits: ratio cannot be ",
          PythonFloat(*options.ratio), "; leave it out or use a 4-bit mode"));
    }
    if (options.group_size && *options.group_size != 0 &&
        *options.group_size != -1) {
      return absl::InvalidArgumentError(absl::StrCat(
          "mode ", traits.name, " is per channel: group size cannot be ",
          *options.group_size, "; leave it out or use a 4-bit mode"));
    }
    std::vector<absl::string_view> given;
    if (options.all_layers) given.push_back("all_layers");
    if (options.sensitivity_metric) given.push_back("sensitivity_metric");
    if (options.awq) given.push_back("awq");
    if (options.backup_mode) given.push_back("backup_mode");
    if (!given.empty()) {
      return absl::InvalidArgumentError(
          absl::StrCat("mode ", traits.name, " does not take ",
                       absl::StrJoin(given, ", "), "; leave it out"));
    }
  }
  if (options.ratio && !(*options.ratio >= 0 && *options.ratio <= 1)) {
    return absl::InvalidArgumentError(absl::StrCat(
        "ratio must lie in [0, 1], not ", PythonFloat(*options.ratio)));
  }
  if (options.sensitivity_metric &&
      *options.sensitivity_metric != "weight_quantization_error") {
    const std::string& metric = *options.sensitivity_metric;
    const bool known = metric == "hessian_input_activation" ||
                       metric == "mean_activation_variance" ||
                       metric == "max_activation_variance" ||
                       metric == "mean_activation_magnitude";
    if (!known) {
      return absl::InvalidArgumentError(
          absl::StrCat("unknown sensitivity metric '", metric,
                       "'; weight_quantization_error is the one that needs no "
                       "data set"));
    }
    // Without a ratio there is nothing to rank, and NNCF lets the name pass.
    if (options.ratio.value_or(0) != 0) {
      return absl::InvalidArgumentError(
          absl::StrCat("sensitivity metric ", metric,
                       " needs a data set, and ovpress is data-free; use "
                       "weight_quantization_error"));
    }
  }
  if (options.group_size &&
      (*options.group_size == 0 || *options.group_size < -1) &&
      !(traits.is_int8 && *options.group_size == 0)) {
    return absl::InvalidArgumentError(
        absl::StrCat("group size must be positive, or -1 for one scale per "
                     "channel, not ",
                     *options.group_size));
  }
  if (traits.group_size_fixed && !traits.is_int8) {
    if (options.group_size &&
        *options.group_size != traits.default_group_size) {
      return absl::InvalidArgumentError(absl::StrCat(
          "mode ", traits.name, " has a group size of ",
          traits.default_group_size, ", not ", *options.group_size));
    }
    if (options.group_size_fallback == GroupSizeFallback::kAdjust) {
      return absl::InvalidArgumentError(
          absl::StrCat("mode ", traits.name,
                       " has a fixed group size: the group size fallback "
                       "cannot be adjust; use error or ignore"));
    }
  }
  if (options.awq.value_or(false)) {
    switch (options.mode) {
      case Mode::kMxfp4:
      case Mode::kMxfp8E4m3:
      case Mode::kFp8E4m3:
      case Mode::kFp4:
      case Mode::kNvfp4:
        return absl::InvalidArgumentError(
            absl::StrCat("mode ", traits.name, " does not work with awq"));
      default:
        break;
    }
  }
  if (options.awq_extended && !options.awq.value_or(false)) {
    return absl::InvalidArgumentError(
        "extended awq patterns were asked for, but awq itself was not");
  }
  if (options.mode == Mode::kCodebook && options.codebook == nullptr) {
    return absl::InvalidArgumentError(
        "mode codebook needs a table of values; give a codebook file");
  }
  if (options.codebook != nullptr) {
    const std::vector<double>& values = options.codebook->values;
    if (values.size() < 2) {
      return absl::InvalidArgumentError(
          "the codebook needs at least two values");
    }
    if (values.size() > kCodebookEntriesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("the codebook has ", values.size(), " values; at most ",
                       kCodebookEntriesMax, " fit a 16-bit index"));
    }
    for (size_t i = 1; i < values.size(); ++i) {
      if (!(values[i - 1] < values[i])) {
        return absl::InvalidArgumentError(absl::StrCat(
            "the codebook must ascend strictly, but value ", i, " (",
            PythonFloat(values[i]), ") does not exceed value ", i - 1, " (",
            PythonFloat(values[i - 1]), ")"));
      }
    }
  }
  return absl::OkStatus();
}

std::string CanonicalOptions(const CompressionOptions& options) {
  const ModeTraits& traits = ModeTraitsOf(options.mode);
  double ratio = options.ratio.value_or(1);
  if (ratio == 0) ratio = 1;
  std::string out = absl::StrCat("mode=", traits.name, "\n");
  // "1" and "1.0" differ in rt_info, hence in bytes.
  absl::StrAppend(
      &out, "ratio=", options.ratio.value_or(0) == 0 ? "1" : PythonFloat(ratio),
      "\n");
  absl::StrAppend(&out, "group_size=",
                  options.group_size.value_or(traits.default_group_size), "\n");
  absl::StrAppend(
      &out, "backup_mode=",
      options.backup_mode ? BackupModeName(*options.backup_mode) : "default",
      "\n");
  absl::StrAppend(
      &out, "sensitivity_metric=",
      options.sensitivity_metric.value_or("weight_quantization_error"), "\n");
  absl::StrAppend(&out, "all_layers=", options.all_layers.value_or(false),
                  "\n");
  absl::StrAppend(&out, "ignored_names=", PythonList(options.ignored.names),
                  "\n");
  absl::StrAppend(
      &out, "ignored_patterns=", PythonList(options.ignored.patterns), "\n");
  absl::StrAppend(&out, "ignored_types=", PythonList(options.ignored.types),
                  "\n");
  absl::StrAppend(&out, "ignored_validate=", options.ignored.validate, "\n");
  absl::StrAppend(&out, "group_size_fallback=",
                  GroupSizeFallbackName(options.group_size_fallback), "\n");
  absl::StrAppend(
      &out, "min_adjusted_group_size=", options.min_adjusted_group_size, "\n");
  absl::StrAppend(&out, "awq=", options.awq.value_or(false), "\n");
  absl::StrAppend(&out, "awq_extended=", options.awq_extended, "\n");
  absl::StrAppend(&out, "allow_non_finite=", options.allow_non_finite, "\n");
  if (options.codebook != nullptr) {
    absl::StrAppend(&out, "codebook=", ElementTypeName(options.codebook->type));
    for (const double value : options.codebook->values) {
      absl::StrAppend(&out, ",", PythonFloat(value));
    }
    absl::StrAppend(&out, "\n");
  }
  return out;
}

namespace {

// The shortest decimal digits that give the value back in its type, as
// PythonFloat prints them: positional or with an exponent.
std::string ShortestText(double value, ElementType type) {
  if (type == ElementType::kF64) return PythonFloat(value);
  for (int digits = 1; digits <= 9; ++digits) {
    const std::string text = absl::StrFormat("%.*g", digits, value);
    const double back = std::strtod(text.c_str(), nullptr);
    float narrow = static_cast<float>(back);
    if (type == ElementType::kF16) {
      uint16_t half = 0;
      FromFloat(type, &narrow, 1, &half);
      ToFloat(type, &half, 1, &narrow);
    }
    if (static_cast<double>(narrow) == value) return PythonFloat(back);
  }
  return PythonFloat(value);
}

// NumPy shows at most eight digits behind the point.
constexpr int kNumpyPrecision = 8;

std::string NumpyPositional(double value, ElementType type) {
  std::string text = ShortestText(value, type);
  const size_t dot = text.find('.');
  if (dot == std::string::npos || text.find('e') != std::string::npos ||
      text.size() - dot - 1 > kNumpyPrecision) {
    text = absl::StrFormat("%.*f", kNumpyPrecision, value);
  }
  while (text.back() == '0') text.pop_back();
  return text;
}

// Digits behind the point of the shortest scientific text, at most NumPy's.
int NumpyFraction(double value, ElementType type) {
  const std::string text = ShortestText(value, type);
  int first = -1;
  int last = -1;
  int digits = 0;
  for (const char c : text.substr(0, text.find('e'))) {
    if (c < '0' || c > '9') continue;
    if (c != '0') {
      last = digits;
      if (first < 0) first = digits;
    }
    ++digits;
  }
  return std::min(first < 0 ? 0 : last - first, kNumpyPrecision);
}

// NumPy 2.4 prints with exponents if the largest magnitude exceeds what the
// type holds exactly, or magnitudes are small or far apart. It compares in the
// type itself.
bool IsNumpyScientific(const std::vector<double>& values, ElementType type) {
  double largest = 0;
  double smallest = 0;
  for (const double value : values) {
    const double magnitude = std::fabs(value);
    if (magnitude == 0) continue;
    largest = std::max(largest, magnitude);
    smallest = smallest == 0 ? magnitude : std::min(smallest, magnitude);
  }
  if (smallest == 0) return false;
  const auto narrow = [type](double value) {
    if (type == ElementType::kF64) return value;
    float single = static_cast<float>(value);
    if (type == ElementType::kF16) {
      uint16_t half = 0;
      FromFloat(type, &single, 1, &half);
      ToFloat(type, &half, 1, &single);
    }
    return static_cast<double>(single);
  };
  const double cutoff = type == ElementType::kF16   ? 1e3
                        : type == ElementType::kF32 ? 1e6
                                                    : 1e8;
  return largest >= cutoff || smallest < narrow(1e-4) ||
         narrow(largest / smallest) > 1000;
}

// The texts of all shown numbers, brought to one width as NumPy does.
std::vector<std::string> NumpyItems(const std::vector<double>& values,
                                    ElementType type) {
  std::vector<std::string> items;
  size_t width = 0;
  if (!IsFloatingPoint(type)) {
    for (const double value : values) {
      items.push_back(absl::StrCat(static_cast<int64_t>(value)));
      width = std::max(width, items.back().size());
    }
    for (std::string& item : items) item.insert(0, width - item.size(), ' ');
    return items;
  }
  if (IsNumpyScientific(values, type)) {
    int fraction = 0;
    size_t exponent_digits = 2;
    for (const double value : values) {
      fraction = std::max(fraction, NumpyFraction(value, type));
    }
    for (const double value : values) {
      items.push_back(absl::StrFormat("%.*e", fraction, value));
      const size_t e = items.back().find('e');
      if (fraction == 0) items.back().insert(e, ".");
      exponent_digits = std::max(
          exponent_digits, items.back().size() - items.back().find('e') - 2);
    }
    for (std::string& item : items) {
      const size_t digits_at = item.find('e') + 2;
      item.insert(digits_at, exponent_digits - (item.size() - digits_at), '0');
      width = std::max(width, item.size());
    }
    for (std::string& item : items) item.insert(0, width - item.size(), ' ');
    return items;
  }
  size_t whole = 0;
  size_t fraction = 0;
  for (const double value : values) {
    items.push_back(NumpyPositional(value, type));
    const size_t dot = items.back().find('.');
    whole = std::max(whole, dot);
    fraction = std::max(fraction, items.back().size() - dot);
  }
  for (std::string& item : items) {
    const size_t dot = item.find('.');
    item.append(fraction - (item.size() - dot), ' ');
    item.insert(0, whole - dot, ' ');
  }
  return items;
}

absl::string_view NumpyDtype(ElementType type) {
  switch (type) {
    case ElementType::kF16:
      return "float16";
    case ElementType::kF32:
      return "float32";
    case ElementType::kF64:
      return "float64";
    case ElementType::kI8:
      return "int8";
    case ElementType::kU8:
      return "uint8";
    case ElementType::kI16:
      return "int16";
    case ElementType::kU16:
      return "uint16";
    case ElementType::kI32:
      return "int32";
    case ElementType::kU32:
      return "uint32";
    case ElementType::kI64:
      return "int64";
    default:
      return ElementTypeName(type);
  }
}

// repr() of the table as NNCF holds it: a NumPy array, or an OpenVINO tensor
// for the types that NumPy lacks (numpy/_core/arrayprint.py, NumPy 2).
std::string NumpyText(const Codebook& codebook) {
  const size_t count = codebook.values.size();
  if (codebook.type == ElementType::kBf16 ||
      codebook.type == ElementType::kF8e4m3 ||
      codebook.type == ElementType::kF8e5m2) {
    return absl::StrCat("nncf.Tensor(<Tensor: shape[", count,
                        "] type: ", ElementTypeName(codebook.type), ">)");
  }
  constexpr size_t kSummaryAbove = 1000;  // elements
  constexpr size_t kEdge = 3;
  constexpr size_t kLine = 75;
  const bool summary = count > kSummaryAbove;
  std::vector<double> shown = codebook.values;
  if (summary) {
    shown.erase(shown.begin() + kEdge,
                shown.end() - static_cast<ptrdiff_t>(kEdge));
  }
  std::vector<std::string> items = NumpyItems(shown, codebook.type);
  if (summary) items.insert(items.begin() + kEdge, "...");
  // One less for the closing bracket, one for the separator.
  constexpr size_t kElementWidth = kLine - 2;
  const std::string indent(7, ' ');
  std::string done;
  std::string line = indent;
  for (size_t i = 0; i < items.size(); ++i) {
    if (line.size() + items[i].size() > kElementWidth) {
      while (line.back() == ' ') line.pop_back();
      absl::StrAppend(&done, line, "\n");
      line = indent;
    }
    line += items[i];
    if (i + 1 < items.size()) line += ", ";
  }
  done += line;
  std::string out = absl::StrCat("array([", done.substr(indent.size()), "]");
  std::vector<std::string> extras;
  if (summary) extras.push_back(absl::StrCat("shape=(", count, ",)"));
  if (codebook.type != ElementType::kF64 &&
      codebook.type != ElementType::kI64) {
    extras.push_back(absl::StrCat("dtype=", NumpyDtype(codebook.type)));
  }
  if (extras.empty()) return out + ")";
  out += ",";
  const std::string extra = absl::StrJoin(extras, ", ") + ")";
  const size_t newline = out.rfind('\n');
  const size_t last =
      newline == std::string::npos ? out.size() : out.size() - newline - 1;
  return absl::StrCat(out, last + extra.size() + 1 > kLine ? "\n      " : " ",
                      extra);
}

template <typename T>
double LoadAs(const char* bytes) {
  T value;
  std::memcpy(&value, bytes, sizeof(value));
  return static_cast<double>(value);
}

absl::StatusOr<double> LoadNumber(ElementType type, const char* bytes) {
  switch (type) {
    case ElementType::kF32:
      return LoadAs<float>(bytes);
    case ElementType::kF64:
      return LoadAs<double>(bytes);
    case ElementType::kI8:
      return LoadAs<int8_t>(bytes);
    case ElementType::kU8:
      return LoadAs<uint8_t>(bytes);
    case ElementType::kI16:
      return LoadAs<int16_t>(bytes);
    case ElementType::kU16:
      return LoadAs<uint16_t>(bytes);
    case ElementType::kI32:
      return LoadAs<int32_t>(bytes);
    case ElementType::kU32:
      return LoadAs<uint32_t>(bytes);
    case ElementType::kI64: {
      constexpr double kExactMax = 9007199254740992.0;  // 2^53
      const double value = LoadAs<int64_t>(bytes);
      if (!(std::fabs(value) < kExactMax)) {
        return absl::InvalidArgumentError(
            absl::StrFormat("codebook value %.0f is not below 2^53, up to "
                            "which integers are exact; divide the table",
                            value));
      }
      return value;
    }
    case ElementType::kF16:
    case ElementType::kBf16:
    case ElementType::kF8e4m3:
    case ElementType::kF8e5m2: {
      float value = 0;
      ToFloat(type, bytes, 1, &value);
      return value;
    }
    default:
      return absl::InvalidArgumentError(absl::StrCat(
          "codebook values of type ", ElementTypeName(type),
          " are not supported; use f32, f16, f64, f8e4m3 or an integer type"));
  }
}

// Values of an .npy file, version 1 to 3, 1-D, little endian.
absl::StatusOr<std::shared_ptr<Codebook>> ParseNpy(absl::string_view bytes) {
  const auto error = [](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("codebook file (.npy): ", what));
  };
  if (bytes.size() < 12) return error("the header is cut off");
  const int major = bytes[6];
  size_t header_size = 0;
  size_t at = 0;
  const auto byte = [&](size_t i) {
    return static_cast<size_t>(static_cast<unsigned char>(bytes[i]));
  };
  if (major == 1) {
    header_size = byte(8) | byte(9) << 8;
    at = 10;
  } else if (major == 2 || major == 3) {
    header_size = byte(8) | byte(9) << 8 | byte(10) << 16 | byte(11) << 24;
    at = 12;
  } else {
    return error(absl::StrCat("unknown version ", major));
  }
  if (header_size > bytes.size() - at) return error("the header is cut off");
  const absl::string_view header = bytes.substr(at, header_size);
  const absl::string_view data = bytes.substr(at + header_size);
  const auto field = [&](absl::string_view key) -> absl::string_view {
    const size_t found = header.find(absl::StrCat("'", key, "'"));
    if (found == absl::string_view::npos) return {};
    absl::string_view rest = header.substr(found + key.size() + 2);
    const size_t colon = rest.find(':');
    if (colon == absl::string_view::npos) return {};
    return absl::StripLeadingAsciiWhitespace(rest.substr(colon + 1));
  };
  absl::string_view descr = field("descr");
  if (descr.size() < 5) return error("no element type in the header");
  descr = descr.substr(1, descr.find('\'', 1) - 1);
  constexpr struct {
    absl::string_view name;
    ElementType type;
  } kTypes[] = {{"<f2", ElementType::kF16}, {"<f4", ElementType::kF32},
                {"<f8", ElementType::kF64}, {"|i1", ElementType::kI8},
                {"|u1", ElementType::kU8},  {"<i2", ElementType::kI16},
                {"<u2", ElementType::kU16}, {"<i4", ElementType::kI32},
                {"<u4", ElementType::kU32}, {"<i8", ElementType::kI64}};
  auto codebook = std::make_shared<Codebook>();
  bool known = false;
  for (const auto& row : kTypes) {
    if (row.name == descr) {
      codebook->type = row.type;
      known = true;
    }
  }
  if (!known) {
    return error(absl::StrCat("element type '", descr,
                              "' is not supported; use float16, float32 or "
                              "float64, little endian"));
  }
  absl::string_view shape = field("shape");
  const size_t close = shape.find(')');
  if (shape.empty() || shape[0] != '(' || close == absl::string_view::npos) {
    return error("no shape in the header");
  }
  shape = shape.substr(1, close - 1);
  const size_t comma = shape.find(',');
  uint64_t count = 0;
  if (comma == absl::string_view::npos ||
      !absl::StripAsciiWhitespace(shape.substr(comma + 1)).empty() ||
      !absl::SimpleAtoi(shape.substr(0, comma), &count)) {
    return error(
        absl::StrCat("the table must be 1-D, but its shape is (", shape, ")"));
  }
  if (count > kCodebookEntriesMax) {
    return error(absl::StrCat("the table has ", count, " values; at most ",
                              kCodebookEntriesMax, " fit a 16-bit index"));
  }
  const size_t width = static_cast<size_t>(BitsPerElement(codebook->type)) / 8;
  if (data.size() < count * width) return error("the values are cut off");
  for (uint64_t i = 0; i < count; ++i) {
    OVPRESS_ASSIGN_OR_RETURN(
        const double value,
        LoadNumber(codebook->type, data.data() + i * width));
    codebook->values.push_back(value);
  }
  const auto* first = reinterpret_cast<const std::byte*>(data.data());
  codebook->stored.assign(first, first + count * width);
  return codebook;
}

absl::StatusOr<std::shared_ptr<Codebook>> ParseJsonTable(
    absl::string_view bytes) {
  const nlohmann::json json =
      nlohmann::json::parse(bytes.begin(), bytes.end(), nullptr, false);
  const auto error = [](absl::string_view what) {
    return absl::InvalidArgumentError(
        absl::StrCat("codebook file (JSON): ", what));
  };
  if (json.is_discarded()) {
    return error("not valid JSON, and not an .npy file either");
  }
  auto codebook = std::make_shared<Codebook>();
  codebook->type = ElementType::kF32;
  nlohmann::json values = json;
  if (json.is_object()) {
    if (!json.contains("values")) return error("the key \"values\" is missing");
    values = json["values"];
    if (json.contains("dtype")) {
      if (!json["dtype"].is_string()) return error("\"dtype\" is not a string");
      const std::string name = json["dtype"].get<std::string>();
      const auto type = ParseElementType(name);
      if (!type.has_value()) {
        return error(absl::StrCat("unknown dtype '", name,
                                  "'; use f32, f16, bf16, f64, f8e4m3, f8e5m2, "
                                  "i8 or u8"));
      }
      codebook->type = *type;
    }
  }
  if (!values.is_array()) return error("expected an array of numbers");
  if (values.size() > kCodebookEntriesMax) {
    return error(absl::StrCat("the table has ", values.size(),
                              " values; at most ", kCodebookEntriesMax,
                              " fit a 16-bit index"));
  }
  for (const nlohmann::json& item : values) {
    if (!item.is_number()) {
      return error(
          absl::StrCat("value ", codebook->values.size(), " is not a number"));
    }
    const double value = item.get<double>();
    std::byte buffer[8] = {};
    const size_t width =
        static_cast<size_t>(BitsPerElement(codebook->type)) / 8;
    switch (codebook->type) {
      case ElementType::kF64:
        std::memcpy(buffer, &value, 8);
        break;
      case ElementType::kF32:
      case ElementType::kF16:
      case ElementType::kBf16:
      case ElementType::kF8e4m3:
      case ElementType::kF8e5m2: {
        const float narrow = static_cast<float>(value);
        FromFloat(codebook->type, &narrow, 1, buffer);
        break;
      }
      case ElementType::kI8:
      case ElementType::kU8: {
        const bool is_signed = codebook->type == ElementType::kI8;
        if (value != std::floor(value) || value < (is_signed ? -128 : 0) ||
            value > (is_signed ? 127 : 255)) {
          return error(absl::StrCat("value ", codebook->values.size(),
                                    " does not fit ",
                                    ElementTypeName(codebook->type)));
        }
        const uint8_t narrow =
            static_cast<uint8_t>(static_cast<int>(value) & 0xff);
        std::memcpy(buffer, &narrow, 1);
        break;
      }
      default:
        return error(absl::StrCat("dtype ", ElementTypeName(codebook->type),
                                  " is not supported; use f32, f16, bf16, f64, "
                                  "f8e4m3, f8e5m2, i8 or u8"));
    }
    OVPRESS_ASSIGN_OR_RETURN(
        const double stored,
        LoadNumber(codebook->type, reinterpret_cast<const char*>(buffer)));
    codebook->values.push_back(stored);
    codebook->stored.insert(codebook->stored.end(), buffer, buffer + width);
  }
  return codebook;
}

}  // namespace

absl::StatusOr<std::shared_ptr<const Codebook>> ParseCodebook(
    absl::string_view file_bytes, std::string* python_text) {
  std::shared_ptr<Codebook> codebook;
  if (file_bytes.substr(0, 6) == absl::string_view("\x93NUMPY", 6)) {
    OVPRESS_ASSIGN_OR_RETURN(codebook, ParseNpy(file_bytes));
  } else {
    OVPRESS_ASSIGN_OR_RETURN(codebook, ParseJsonTable(file_bytes));
  }
  for (size_t i = 0; i < codebook->values.size(); ++i) {
    if (!std::isfinite(codebook->values[i])) {
      return absl::InvalidArgumentError(
          absl::StrCat("codebook value ", i, " is not finite"));
    }
  }
  CompressionOptions check;
  check.mode = Mode::kCodebook;
  check.codebook = codebook;
  OVPRESS_RETURN_IF_ERROR(ValidateOptions(check));
  if (python_text != nullptr) *python_text = NumpyText(*codebook);
  return codebook;
}

}  // namespace ovpress
