// Quotients by multiplications, with the bits of a division; included once for
// each target.
#if defined(OVPRESS_CORE_QUANT_QUOTIENT_INL_H_) == defined(HWY_TARGET_TOGGLE)
#ifdef OVPRESS_CORE_QUANT_QUOTIENT_INL_H_
#undef OVPRESS_CORE_QUANT_QUOTIENT_INL_H_
#else
#define OVPRESS_CORE_QUANT_QUOTIENT_INL_H_
#endif

#include <cmath>
#include <cstddef>

#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace ovpress {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

// With y = fl(1 / s):
//   q = fl(w * y), r = fl(w - q * s) (fused), quotient = fl(q + r * y) (fused)
// is fl(w / s) for every f32 divisor s and every w of at most eleven
// significant bits (f16, bf16), as long as nothing overflows or underflows:
// quotient_test tries all 2^23 significands of s with all 2^10 of w. For
// weights of 24 bits there is no such proof, so f32 is divided.
//
// Bounds of s: f16 weights are 0 or lie between 2^-24 and 2^16; with s in
// [2^-24, 2^24] the smallest unit of r is 2^-118. bf16 weights may be so small
// that r underflows, with quotients below 2^-36 whose codes are those of zero;
// only a codebook could tell them apart, so these are divided, too. -0 becomes
// 0; the sign is put back where it matters.
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || \
    HWY_TARGET == HWY_AVX3_DL || (HWY_TARGET == HWY_NEON && HWY_ARCH_ARM_A64)
constexpr bool kHasFma = true;
#else
constexpr bool kHasFma = false;
#endif

// reciprocal[i] = 1 / divisor[i]; false if a divisor is out of bounds.
inline bool Reciprocals(const float* divisor, size_t count, float* reciprocal) {
  const hn::ScalableTag<float> df;
  const size_t n = hn::Lanes(df);
  auto good = hn::Eq(hn::Zero(df), hn::Zero(df));
  size_t i = 0;
  for (; i + n <= count; i += n) {
    const auto s = hn::LoadU(df, divisor + i);
    const auto magnitude = hn::Abs(s);
    good = hn::And(good, hn::And(hn::Ge(magnitude, hn::Set(df, 0x1p-24f)),
                                 hn::Le(magnitude, hn::Set(df, 0x1p24f))));
    hn::StoreU(hn::Div(hn::Set(df, 1.0f), s), df, reciprocal + i);
  }
  bool all = hn::AllTrue(df, good);
  for (; i < count; ++i) {
    const float magnitude = std::fabs(divisor[i]);
    all &= magnitude >= 0x1p-24f && magnitude <= 0x1p24f;
    reciprocal[i] = 1.0f / divisor[i];
  }
  return all;
}

// fl(w / s) for y = fl(1 / s), but for the sign of a zero. REQUIRES: kHasFma,
// and `s` in bounds.
template <class V>
HWY_INLINE V MultipliedQuotient(V w, V s, V y) {
  const V q = hn::Mul(w, y);
  return hn::MulAdd(hn::NegMulAdd(q, s, w), y, q);
}

}  // namespace HWY_NAMESPACE
}  // namespace ovpress
HWY_AFTER_NAMESPACE();

#endif  // OVPRESS_CORE_QUANT_QUOTIENT_INL_H_
