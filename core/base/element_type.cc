#include "core/base/element_type.h"

#include <limits>

#include "absl/strings/match.h"

namespace ovpress {
namespace {

struct Row {
  ElementType type;
  absl::string_view name;
  absl::string_view precision;
  int bits;
  bool floating;
};

constexpr Row kRows[] = {
    {ElementType::kDynamic, "dynamic", "dynamic", 0, false},
    {ElementType::kBoolean, "boolean", "BOOL", 8, false},
    {ElementType::kBf16, "bf16", "BF16", 16, true},
    {ElementType::kF16, "f16", "FP16", 16, true},
    {ElementType::kF32, "f32", "FP32", 32, true},
    {ElementType::kF64, "f64", "FP64", 64, true},
    {ElementType::kI4, "i4", "I4", 4, false},
    {ElementType::kI8, "i8", "I8", 8, false},
    {ElementType::kI16, "i16", "I16", 16, false},
    {ElementType::kI32, "i32", "I32", 32, false},
    {ElementType::kI64, "i64", "I64", 64, false},
    {ElementType::kU1, "u1", "BIN", 1, false},
    {ElementType::kU2, "u2", "U2", 2, false},
    {ElementType::kU3, "u3", "U3", 3, false},
    {ElementType::kU4, "u4", "U4", 4, false},
    {ElementType::kU6, "u6", "U6", 6, false},
    {ElementType::kU8, "u8", "U8", 8, false},
    {ElementType::kU16, "u16", "U16", 16, false},
    {ElementType::kU32, "u32", "U32", 32, false},
    {ElementType::kU64, "u64", "U64", 64, false},
    {ElementType::kNf4, "nf4", "NF4", 4, true},
    {ElementType::kF8e4m3, "f8e4m3", "F8E4M3", 8, true},
    {ElementType::kF8e5m2, "f8e5m2", "F8E5M2", 8, true},
    {ElementType::kF4e2m1, "f4e2m1", "F4E2M1", 4, true},
    {ElementType::kF8e8m0, "f8e8m0", "F8E8M0", 8, true},
    {ElementType::kString, "string", "STRING", 0, false},
};

constexpr const Row& RowOf(ElementType type) {
  return kRows[static_cast<size_t>(type)];
}

}  // namespace

absl::string_view ElementTypeName(ElementType type) { return RowOf(type).name; }

absl::string_view PortPrecisionName(ElementType type) {
  return RowOf(type).precision;
}

std::optional<ElementType> ParseElementType(absl::string_view name) {
  for (const Row& row : kRows) {
    if (absl::EqualsIgnoreCase(name, row.name) ||
        absl::EqualsIgnoreCase(name, row.precision)) {
      return row.type;
    }
  }
  if (absl::EqualsIgnoreCase(name, "undefined") ||
      absl::EqualsIgnoreCase(name, "UNSPECIFIED")) {
    return ElementType::kDynamic;
  }
  return std::nullopt;
}

int BitsPerElement(ElementType type) { return RowOf(type).bits; }

std::optional<uint64_t> PackedSizeBytes(ElementType type, uint64_t count) {
  const int bits = BitsPerElement(type);
  if (bits == 0) return std::nullopt;
  constexpr uint64_t kMax = std::numeric_limits<uint64_t>::max();
  if (type == ElementType::kU3 || type == ElementType::kU6) {
    const uint64_t per_block = type == ElementType::kU3 ? 8 : 4;
    const uint64_t blocks = count / per_block + (count % per_block != 0);
    if (blocks > kMax / 3) return std::nullopt;
    return blocks * 3;
  }
  if (bits < 8) {
    const uint64_t per_byte = 8 / static_cast<uint64_t>(bits);
    return count / per_byte + (count % per_byte != 0);
  }
  const uint64_t bytes = static_cast<uint64_t>(bits) / 8;
  if (count > kMax / bytes) return std::nullopt;
  return count * bytes;
}

bool IsFloatingPoint(ElementType type) { return RowOf(type).floating; }

}  // namespace ovpress
