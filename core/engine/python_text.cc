#include "core/engine/python_text.h"

#include <charconv>
#include <cmath>
#include <cstdlib>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "re2/re2.h"

namespace ovpress {

std::string PythonFloat(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char buffer[64];
  const auto [end, error] = std::to_chars(buffer, buffer + sizeof(buffer),
                                          value, std::chars_format::scientific);
  (void)error;  // 64 bytes hold any double
  absl::string_view text(buffer, static_cast<size_t>(end - buffer));
  const bool negative = text[0] == '-';
  if (negative) text.remove_prefix(1);
  const size_t e = text.find('e');
  std::string digits;
  for (const char c : text.substr(0, e)) {
    if (c != '.') digits.push_back(c);
  }
  const int exponent = std::atoi(std::string(text.substr(e + 1)).c_str());
  std::string out = negative ? "-" : "";
  if (exponent < -4 || exponent >= 16) {
    absl::StrAppend(&out, digits.substr(0, 1));
    if (digits.size() > 1) absl::StrAppend(&out, ".", digits.substr(1));
    absl::StrAppend(&out, absl::StrFormat("e%c%02d", exponent < 0 ? '-' : '+',
                                          std::abs(exponent)));
    return out;
  }
  if (exponent < 0) {
    absl::StrAppend(&out, "0.",
                    std::string(static_cast<size_t>(-exponent - 1), '0'),
                    digits);
    return out;
  }
  const size_t whole = static_cast<size_t>(exponent) + 1;
  if (digits.size() <= whole) {
    absl::StrAppend(&out, digits, std::string(whole - digits.size(), '0'),
                    ".0");
  } else {
    absl::StrAppend(&out, digits.substr(0, whole), ".", digits.substr(whole));
  }
  return out;
}

namespace {

// The first character of a UTF-8 text and its length in bytes; length 1 and the
// byte itself if the text is not UTF-8.
std::pair<uint32_t, size_t> FirstCharacter(absl::string_view text) {
  const unsigned char lead = static_cast<unsigned char>(text[0]);
  const size_t length = lead < 0xC0   ? 1
                        : lead < 0xE0 ? 2
                        : lead < 0xF0 ? 3
                        : lead < 0xF8 ? 4
                                      : 1;
  if (length == 1 || text.size() < length) return {lead, 1};
  uint32_t code = lead & (0x7Fu >> length);
  for (size_t i = 1; i < length; ++i) {
    const unsigned char next = static_cast<unsigned char>(text[i]);
    if ((next & 0xC0) != 0x80) return {lead, 1};
    code = code << 6 | (next & 0x3Fu);
  }
  return {code, length};
}

// What repr() writes with an escape: separators other than the space, controls,
// formats, private use.
bool IsUnprintable(absl::string_view character) {
  static const auto* const kUnprintable =
      new RE2("[\\p{Cc}\\p{Cf}\\p{Co}\\p{Zl}\\p{Zp}\\p{Zs}]");
  return RE2::FullMatch(re2::StringPiece(character.data(), character.size()),
                        *kUnprintable);
}

}  // namespace

std::string PythonString(absl::string_view text) {
  const bool use_double = text.find('\'') != absl::string_view::npos &&
                          text.find('"') == absl::string_view::npos;
  const char quote = use_double ? '"' : '\'';
  std::string out(1, quote);
  for (size_t at = 0; at < text.size();) {
    const auto [code, length] = FirstCharacter(text.substr(at));
    if (length > 1) {
      const absl::string_view character = text.substr(at, length);
      at += length;
      if (!IsUnprintable(character)) {
        absl::StrAppend(&out, character);
      } else if (code < 0x100) {
        absl::StrAppend(&out, absl::StrFormat("\\x%02x", code));
      } else if (code < 0x10000) {
        absl::StrAppend(&out, absl::StrFormat("\\u%04x", code));
      } else {
        absl::StrAppend(&out, absl::StrFormat("\\U%08x", code));
      }
      continue;
    }
    const char c = text[at++];
    const unsigned char u = static_cast<unsigned char>(c);
    if (c == quote || c == '\\') {
      out.push_back('\\');
      out.push_back(c);
    } else if (c == '\n') {
      out += "\\n";
    } else if (c == '\r') {
      out += "\\r";
    } else if (c == '\t') {
      out += "\\t";
    } else if (u < 0x20 || u == 0x7f) {
      absl::StrAppend(&out, absl::StrFormat("\\x%02x", u));
    } else {
      out.push_back(c);
    }
  }
  out.push_back(quote);
  return out;
}

std::string PythonList(const std::vector<std::string>& items) {
  std::string out = "[";
  for (size_t i = 0; i < items.size(); ++i) {
    if (i > 0) out += ", ";
    out += PythonString(items[i]);
  }
  out += "]";
  return out;
}

}  // namespace ovpress
