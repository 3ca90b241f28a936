#include "core/quant/decode.h"

#include <array>
#include <bit>
#include <cmath>
#include <cstdint>
#include <limits>

#include "core/base/check.h"
#include "core/quant/kernels.h"
#include "core/quant/scalar.h"

namespace ovpress {
namespace {

// What one code of at most 8 bits stands for.
float ValueOfCode(ElementType type, unsigned code) {
  switch (type) {
    case ElementType::kI4:
      return static_cast<float>(static_cast<int>(code ^ 8u) - 8);
    case ElementType::kI8:
      return static_cast<float>(static_cast<int>(code ^ 128u) - 128);
    case ElementType::kNf4:
      return scalar::kNf4Values[code];
    case ElementType::kF4e2m1: {
      const float magnitude = scalar::kF4e2m1Values[code & 7u];
      return (code & 8u) != 0 ? -magnitude : magnitude;
    }
    case ElementType::kF8e4m3:
      return scalar::F8e4m3ToFloat(static_cast<uint8_t>(code));
    case ElementType::kF8e5m2:
      return scalar::F8e5m2ToFloat(static_cast<uint8_t>(code));
    case ElementType::kF8e8m0:
      return code == 255 ? std::numeric_limits<float>::quiet_NaN()
                         : std::ldexp(1.0f, static_cast<int>(code) - 127);
    default:  // u2, u3, u4, u8
      return static_cast<float>(code);
  }
}

using Table = std::array<float, 256>;

Table MakeTable(ElementType type) {
  Table table{};
  const unsigned codes = 1u << BitsPerElement(type);
  for (unsigned code = 0; code < codes; ++code) {
    table[code] = ValueOfCode(type, code);
  }
  return table;
}

// One table for each type of at most 8 bits.
const Table& TableOf(ElementType type) {
  static const auto* const tables = [] {
    auto* const all = new std::array<Table, 32>();
    for (const ElementType each :
         {ElementType::kI4, ElementType::kI8, ElementType::kU2,
          ElementType::kU3, ElementType::kU4, ElementType::kU8,
          ElementType::kNf4, ElementType::kF8e4m3, ElementType::kF8e5m2,
          ElementType::kF4e2m1, ElementType::kF8e8m0}) {
      (*all)[static_cast<size_t>(each)] = MakeTable(each);
    }
    return all;
  }();
  return (*tables)[static_cast<size_t>(type)];
}

template <typename T>
void DecodeIntegers(const std::byte* packed, size_t first, size_t count,
                    float* out) {
  for (size_t i = 0; i < count; ++i) {
    out[i] = static_cast<float>(scalar::Load<T>(packed, first + i));
  }
}

// f16 in the integer domain, so that the compiler vectorizes it.
void RoundToHalf(float* values, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    const float value = values[i];
    const uint32_t bits = std::bit_cast<uint32_t>(value);
    const uint32_t sign = bits & 0x80000000u;
    const uint32_t magnitude = bits & 0x7fffffffu;
    // Normal: drop 13 bits of the mantissa, to nearest even.
    const uint32_t rounded =
        (magnitude + 0xfffu + (magnitude >> 13 & 1u)) & ~0x1fffu;
    // Below 2^-14: multiples of 2^-24, which is the unit of [0.5, 1).
    const float small = (std::bit_cast<float>(magnitude) + 0.5f) - 0.5f;
    uint32_t result =
        magnitude < 0x38800000u ? std::bit_cast<uint32_t>(small) : rounded;
    result = rounded > 0x477fe000u ? 0x7f800000u : result;
    result = magnitude > 0x7f800000u ? 0x7fc00000u : result;
    values[i] = std::bit_cast<float>(sign | result);
  }
}

}  // namespace

bool IsDecodable(ElementType type) {
  switch (type) {
    case ElementType::kDynamic:
    case ElementType::kString:
    case ElementType::kBoolean:
    case ElementType::kU1:
    case ElementType::kU6:
      return false;
    default:
      return true;
  }
}

void Decode(ElementType type, const std::byte* packed, size_t first,
            size_t count, float* out) {
  OVPRESS_DCHECK(IsDecodable(type));
  switch (type) {
    case ElementType::kF64:
    case ElementType::kF32:
    case ElementType::kF16:
    case ElementType::kBf16:
      ToFloat(type, scalar::At(type, packed, first), count, out);
      return;
    case ElementType::kI16:
      return DecodeIntegers<int16_t>(packed, first, count, out);
    case ElementType::kU16:
      return DecodeIntegers<uint16_t>(packed, first, count, out);
    case ElementType::kI32:
      return DecodeIntegers<int32_t>(packed, first, count, out);
    case ElementType::kU32:
      return DecodeIntegers<uint32_t>(packed, first, count, out);
    case ElementType::kI64:
      return DecodeIntegers<int64_t>(packed, first, count, out);
    case ElementType::kU64:
      return DecodeIntegers<uint64_t>(packed, first, count, out);
    default:
      break;
  }
  const Table& table = TableOf(type);
  if (BitsPerElement(type) == 8) {
    for (size_t i = 0; i < count; ++i) {
      out[i] = table[static_cast<uint8_t>(packed[first + i])];
    }
  } else if (BitsPerElement(type) == 4) {
    for (size_t i = 0; i < count; ++i) {
      const size_t at = first + i;
      out[i] = table[static_cast<uint8_t>(packed[at / 2]) >> (at % 2 * 4) & 15];
    }
  } else {
    for (size_t i = 0; i < count; ++i) {
      out[i] = table[scalar::Unpack(type, packed, first + i)];
    }
  }
}

bool CanRoundTo(ElementType type) {
  switch (type) {
    case ElementType::kF64:
    case ElementType::kF32:
    case ElementType::kF16:
    case ElementType::kBf16:
    case ElementType::kF8e4m3:
    case ElementType::kF8e5m2:
      return true;
    default:
      return false;
  }
}

void RoundTo(ElementType type, float* values, size_t count) {
  OVPRESS_DCHECK(CanRoundTo(type));
  switch (type) {
    case ElementType::kF16:
      RoundToHalf(values, count);
      return;
    case ElementType::kBf16:
      for (size_t i = 0; i < count; ++i) {
        values[i] = scalar::Bf16ToFloat(scalar::FloatToBf16(values[i]));
      }
      return;
    case ElementType::kF8e4m3:
      for (size_t i = 0; i < count; ++i) {
        values[i] = scalar::F8e4m3ToFloat(scalar::FloatToF8e4m3(values[i]));
      }
      return;
    case ElementType::kF8e5m2:
      for (size_t i = 0; i < count; ++i) {
        values[i] = scalar::F8e5m2ToFloat(scalar::FloatToF8e5m2(values[i]));
      }
      return;
    default:
      return;
  }
}

}  // namespace ovpress
