// Stored elements of any type as f32, and rounding to a type: what reading a
// compressed model needs and writing one does not.
#ifndef OVPRESS_CORE_QUANT_DECODE_H_
#define OVPRESS_CORE_QUANT_DECODE_H_

#include <cstddef>

#include "core/base/element_type.h"

namespace ovpress {

// False for dynamic, string, boolean, u1 and u6: no weight has these types.
bool IsDecodable(ElementType type);

// Elements [first, first + count) of an array that is packed from bit 0 of
// `packed` on, as f32. Exact but for f64 and integers of 32 and 64 bits, which
// are rounded to nearest even. f8e4m3 and f8e8m0 have NaN codes. REQUIRES:
// IsDecodable(type).
void Decode(ElementType type, const std::byte* packed, size_t first,
            size_t count, float* out);

// True for the types that RoundTo knows: f64, f32, f16, bf16, f8e4m3, f8e5m2.
bool CanRoundTo(ElementType type);

// Replaces each value by the nearest that `type` holds, ties to even; what is
// too large becomes what OpenVINO's Convert gives (infinity for f16 and bf16).
// The sign of a zero is not kept. f64 leaves values alone. REQUIRES:
// CanRoundTo(type).
void RoundTo(ElementType type, float* values, size_t count);

}  // namespace ovpress

#endif  // OVPRESS_CORE_QUANT_DECODE_H_
