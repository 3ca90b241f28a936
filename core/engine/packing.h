// Packed codes to one byte each and back, for the few weights whose groups do
// not end on byte boundaries.
#ifndef OVPRESS_CORE_ENGINE_PACKING_H_
#define OVPRESS_CORE_ENGINE_PACKING_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "core/base/element_type.h"

namespace ovpress {

// True for u2, u3 and the 4-bit types: elements share bytes.
bool IsSubByte(ElementType type);

// Appends `count` codes, packed from bit 0 of `packed`, to `out`.
void UnpackCodes(ElementType type, const std::byte* packed, size_t count,
                 std::vector<uint8_t>* out);
// Packs `count` codes; bits past the last are 0. `out` has
// PackedSizeBytes(type, count) bytes. REQUIRES: IsSubByte(type).
void PackCodes(ElementType type, const uint8_t* codes, size_t count,
               std::byte* out);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_PACKING_H_
