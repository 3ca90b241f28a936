// OpenVINO's element types (2026.4): names, sizes, packing.
#ifndef OVPRESS_CORE_BASE_ELEMENT_TYPE_H_
#define OVPRESS_CORE_BASE_ELEMENT_TYPE_H_

#include <cstdint>
#include <optional>

#include "absl/strings/string_view.h"

namespace ovpress {

enum class ElementType : uint8_t {
  kDynamic,  // also "undefined"
  kBoolean,
  kBf16,
  kF16,
  kF32,
  kF64,
  kI4,
  kI8,
  kI16,
  kI32,
  kI64,
  kU1,
  kU2,
  kU3,
  kU4,
  kU6,
  kU8,
  kU16,
  kU32,
  kU64,
  kNf4,
  kF8e4m3,
  kF8e5m2,
  kF4e2m1,
  kF8e8m0,
  kString,
};

// As in the attribute `element_type`: "f32", "i4", "f8e4m3", "boolean" ...
absl::string_view ElementTypeName(ElementType type);
// As in the attribute `precision` of a port: "FP32", "I4", "F8E4M3", "BOOL" ...
absl::string_view PortPrecisionName(ElementType type);
// Both spellings are accepted, in any case ("FP16", "f16"). nullopt if unknown.
std::optional<ElementType> ParseElementType(absl::string_view name);

// Bits of one element: 1 for u1, 3 for u3 (8 elements in 3 bytes), 0 for
// dynamic and string (their size is not a function of the shape).
int BitsPerElement(ElementType type);

// Bytes that `count` elements take in the .bin: ceil(count * bits / 8), in
// whole 3-byte blocks of 8 elements for u3 (of 4 elements for u6). nullopt on
// overflow of 64 bits and for dynamic and string.
std::optional<uint64_t> PackedSizeBytes(ElementType type, uint64_t count);

bool IsFloatingPoint(ElementType type);

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_ELEMENT_TYPE_H_
