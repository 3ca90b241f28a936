#include "core/engine/packing.h"

#include <cstring>

#include "core/base/check.h"

namespace ovpress {
namespace {

// u3: 8 elements in 3 bytes. Bytes 0 and 1 hold the low two bits of elements
// 0-3 and 4-7, the first in the highest bits; byte 2 holds the top bits,
// element 0 in bit 7. (OpenVINO, element_iterator for split-bit types.)
struct U3Place {
  size_t low_byte;
  int low_shift;
  int top_shift;
};
U3Place U3PlaceOf(size_t i) {
  return {i / 4, static_cast<int>(6 - 2 * (i % 4)), static_cast<int>(7 - i)};
}

}  // namespace

bool IsSubByte(ElementType type) {
  const int bits = BitsPerElement(type);
  return bits > 0 && bits < 8;
}

void UnpackCodes(ElementType type, const std::byte* packed, size_t count,
                 std::vector<uint8_t>* out) {
  const int bits = BitsPerElement(type);
  out->reserve(out->size() + count);
  for (size_t i = 0; i < count; ++i) {
    uint8_t code = 0;
    if (type == ElementType::kU3) {
      const std::byte* block = packed + i / 8 * 3;
      const U3Place place = U3PlaceOf(i % 8);
      code = static_cast<uint8_t>(
          (static_cast<unsigned>(block[place.low_byte]) >> place.low_shift &
           3u) |
          (static_cast<unsigned>(block[2]) >> place.top_shift & 1u) << 2);
    } else {
      const size_t per_byte = 8 / static_cast<size_t>(bits);
      const unsigned byte = static_cast<unsigned>(packed[i / per_byte]);
      code = static_cast<uint8_t>(
          byte >> (static_cast<size_t>(bits) * (i % per_byte)) &
          ((1u << bits) - 1));
    }
    out->push_back(code);
  }
}

void PackCodes(ElementType type, const uint8_t* codes, size_t count,
               std::byte* out) {
  const auto size = PackedSizeBytes(type, count);
  OVPRESS_CHECK(size.has_value());
  if (count == 0) return;
  std::memset(out, 0, *size);
  const int bits = BitsPerElement(type);
  for (size_t i = 0; i < count; ++i) {
    const unsigned code = codes[i];
    if (type == ElementType::kU3) {
      std::byte* block = out + i / 8 * 3;
      const U3Place place = U3PlaceOf(i % 8);
      block[place.low_byte] |=
          static_cast<std::byte>((code & 3u) << place.low_shift);
      block[2] |= static_cast<std::byte>((code >> 2 & 1u) << place.top_shift);
    } else {
      const size_t per_byte = 8 / static_cast<size_t>(bits);
      out[i / per_byte] |= static_cast<std::byte>(
          code << (static_cast<size_t>(bits) * (i % per_byte)));
    }
  }
}

}  // namespace ovpress
