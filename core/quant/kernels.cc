// Highway kernels for f32, f16 and bf16 sources, dispatched at run time; other
// sources take the scalar reference. All targets give the reference's bits.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/quant/kernels.cc"
#include "core/quant/kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <utility>
#include <vector>

#include "core/quant/scalar.h"
#include "hwy/foreach_target.h"  // must stand before highway.h
#include "hwy/highway.h"
// After highway.h:
#include "core/quant/quotient-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ovpress {
namespace HWY_NAMESPACE {

namespace hn = hwy::HWY_NAMESPACE;

using DF = hn::ScalableTag<float>;
using DI = hn::RebindToSigned<DF>;
using VF = hn::Vec<DF>;
using VI = hn::Vec<DI>;

// Loads of N weights as f32. `index` counts weights; bytes need no alignment.
struct LoadF32 {
  using Raw = int32_t;
  static constexpr size_t kSize = 4;
  static VF Vector(const uint8_t* at) {
    return hn::LoadU(DF(), reinterpret_cast<const float*>(at));
  }
  static float One(const uint8_t* at) { return scalar::Load<float>(at, 0); }
  static float FromRaw(int32_t raw) { return std::bit_cast<float>(raw); }
};
struct LoadF16 {
  using Raw = int16_t;
  static constexpr size_t kSize = 2;
  static VF Vector(const uint8_t* at) {
    const hn::Rebind<hwy::float16_t, DF> d;
    const VF value = hn::PromoteTo(
        DF(), hn::LoadU(d, reinterpret_cast<const hwy::float16_t*>(at)));
#if HWY_TARGET == HWY_SCALAR || HWY_TARGET == HWY_SSSE3 || \
    HWY_TARGET == HWY_SSE4
    // Without F16C Highway 1.0 widens infinities and NaNs like numbers, to
    // 65536 and above.
    const hn::RebindToUnsigned<DF> du;
    const VF special = hn::BitCast(
        DF(), hn::Or(hn::BitCast(du, value), hn::Set(du, 0x7f800000u)));
    return hn::IfThenElse(hn::Ge(hn::Abs(value), hn::Set(DF(), 65536.0f)),
                          special, value);
#else
    return value;
#endif
  }
  static float One(const uint8_t* at) {
    return scalar::HalfToFloat(scalar::Load<uint16_t>(at, 0));
  }
  static float FromRaw(int16_t raw) {
    return scalar::HalfToFloat(static_cast<uint16_t>(raw));
  }
};
struct LoadBf16 {
  using Raw = int16_t;
  static constexpr size_t kSize = 2;
  static VF Vector(const uint8_t* at) {
    const hn::Rebind<uint16_t, DF> d;
    const hn::RebindToUnsigned<DF> du;
    return hn::BitCast(
        DF(), hn::ShiftLeft<16>(hn::PromoteTo(
                  du, hn::LoadU(d, reinterpret_cast<const uint16_t*>(at)))));
  }
  static float One(const uint8_t* at) {
    return scalar::Bf16ToFloat(scalar::Load<uint16_t>(at, 0));
  }
  static float FromRaw(int16_t raw) {
    return scalar::Bf16ToFloat(static_cast<uint16_t>(raw));
  }
};

// The bits of a float as an integer of the same order: negative numbers have
// all but the sign flipped. Infinities and NaNs lie at the two ends, so the
// minimum and maximum also tell whether all values are finite.
template <class V, int kShift>
V Ordered(V raw, V magnitude_mask) {
  return hn::Xor(raw, hn::And(hn::ShiftRight<kShift>(raw), magnitude_mask));
}
template <typename T>
T OrderedOne(T raw) {
  constexpr T kMask = std::numeric_limits<T>::max();
  return raw < 0 ? static_cast<T>(raw ^ kMask) : raw;
}
template <class Load>
float FromOrdered(typename Load::Raw ordered) {
  return Load::FromRaw(OrderedOne(ordered));  // its own inverse
}

// Smallest and largest ordered value of a row.
template <class Load>
void OrderedRange(const uint8_t* source, size_t length,
                  typename Load::Raw* out_lo, typename Load::Raw* out_hi) {
  using T = typename Load::Raw;
  const hn::ScalableTag<T> d;
  constexpr int kShift = sizeof(T) * 8 - 1;
  const size_t n = hn::Lanes(d);
  const auto mask = hn::Set(d, std::numeric_limits<T>::max());
  T lo = std::numeric_limits<T>::max();
  T hi = std::numeric_limits<T>::min();
  size_t i = 0;
  if (length >= n) {
    auto vlo = hn::Set(d, lo);
    auto vhi = hn::Set(d, hi);
    auto vlo1 = vlo;
    auto vhi1 = vhi;
    const T* const at = reinterpret_cast<const T*>(source);
    for (; i + 2 * n <= length; i += 2 * n) {
      const auto a = Ordered<decltype(vlo), kShift>(hn::LoadU(d, at + i), mask);
      const auto b =
          Ordered<decltype(vlo), kShift>(hn::LoadU(d, at + i + n), mask);
      vlo = hn::Min(vlo, a);
      vhi = hn::Max(vhi, a);
      vlo1 = hn::Min(vlo1, b);
      vhi1 = hn::Max(vhi1, b);
    }
    for (; i + n <= length; i += n) {
      const auto a = Ordered<decltype(vlo), kShift>(hn::LoadU(d, at + i), mask);
      vlo = hn::Min(vlo, a);
      vhi = hn::Max(vhi, a);
    }
    HWY_ALIGN T lanes_lo[HWY_MAX_BYTES / sizeof(T)];
    HWY_ALIGN T lanes_hi[HWY_MAX_BYTES / sizeof(T)];
    if (i < length) {
      // The last full vector again, overlapping: minima do not mind.
      const auto a =
          Ordered<decltype(vlo), kShift>(hn::LoadU(d, at + length - n), mask);
      vlo = hn::Min(vlo, a);
      vhi = hn::Max(vhi, a);
      i = length;
    }
    hn::Store(hn::Min(vlo, vlo1), d, lanes_lo);
    hn::Store(hn::Max(vhi, vhi1), d, lanes_hi);
    for (size_t k = 0; k < n; ++k) {
      lo = std::min(lo, lanes_lo[k]);
      hi = std::max(hi, lanes_hi[k]);
    }
  }
  for (; i < length; ++i) {
    const T value = OrderedOne(scalar::Load<T>(source, i));
    lo = std::min(lo, value);
    hi = std::max(hi, value);
  }
  *out_lo = lo;
  *out_hi = hi;
}

#undef OVPRESS_ROWS_AT_ONCE  // this file is read once for each target
#if HWY_TARGET != HWY_SCALAR && !HWY_HAVE_SCALABLE
#define OVPRESS_ROWS_AT_ONCE 1
#else
#define OVPRESS_ROWS_AT_ONCE 0
#endif

#if OVPRESS_ROWS_AT_ONCE
// Halves a vector until one block of 16 bytes is left; lane k of that block is
// then the minimum (maximum) of the lanes k of all blocks.
template <bool kMax, class D>
auto FoldToBlock(D d, hn::Vec<D> v) {
  if constexpr (hn::MaxLanes(d) * sizeof(hn::TFromD<D>) > 16) {
    const hn::Half<D> dh;
    const auto lower = hn::LowerHalf(dh, v);
    const auto upper = hn::UpperHalf(dh, v);
    if constexpr (kMax) {
      return FoldToBlock<kMax>(dh, hn::Max(lower, upper));
    } else {
      return FoldToBlock<kMax>(dh, hn::Min(lower, upper));
    }
  } else {
    return v;
  }
}

// Reduces as many vectors as a block has lanes: lane k of the stored block is
// the minimum (maximum) of vector k. Each level interleaves vectors in pairs,
// so that a lane of the result belongs to one of the two; that takes three
// operations a vector instead of a reduction of each.
template <bool kMax, class D, class T>
void ReduceBlock(D d, hn::Vec<D>* v, T* out) {
  const auto merge = [d](hn::Vec<D> a, hn::Vec<D> b) HWY_ATTR {
    const auto lower = hn::InterleaveLower(d, a, b);
    const auto upper = hn::InterleaveUpper(d, a, b);
    if constexpr (kMax) {
      return hn::Max(lower, upper);
    } else {
      return hn::Min(lower, upper);
    }
  };
  for (size_t width = 16 / sizeof(T) / 2; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) v[i] = merge(v[i], v[i + width]);
  }
  hn::StoreU(FoldToBlock<kMax>(d, v[0]), hn::Full128<T>(), out);
}

// Ordered ranges of 16 / sizeof(T) rows. REQUIRES: length >= Lanes(d).
template <class D, class T>
void BlockOfRows(D d, const T* at, size_t length, T* out_lo, T* out_hi) {
  constexpr size_t kRows = 16 / sizeof(T);
  constexpr int kShift = sizeof(T) * 8 - 1;
  using V = hn::Vec<D>;
  const size_t n = hn::Lanes(d);
  const V mask = hn::Set(d, std::numeric_limits<T>::max());
  V lo[kRows];
  V hi[kRows];
  for (size_t row = 0; row < kRows; ++row, at += length) {
    // The last full vector overlaps the one before: minima do not mind.
    const V last = Ordered<V, kShift>(hn::LoadU(d, at + length - n), mask);
    V vlo = last;
    V vhi = last;
    for (size_t i = 0; i + n < length; i += n) {
      const V a = Ordered<V, kShift>(hn::LoadU(d, at + i), mask);
      vlo = hn::Min(vlo, a);
      vhi = hn::Max(vhi, a);
    }
    lo[row] = vlo;
    hi[row] = vhi;
  }
  ReduceBlock<false>(d, lo, out_lo);
  ReduceBlock<true>(d, hi, out_hi);
}

// Whole blocks of rows with the longest vector that fits into a row; returns
// the number of rows done.
template <class D, class T>
size_t BlocksOfRows(D d, const T* at, size_t rows, size_t length, T* lo,
                    T* hi) {
  constexpr size_t kRows = 16 / sizeof(T);
  if (length < hn::Lanes(d)) {
    if constexpr (hn::MaxLanes(d) * sizeof(T) > 16) {
      return BlocksOfRows(hn::Half<D>(), at, rows, length, lo, hi);
    } else {
      return 0;
    }
  }
  size_t row = 0;
  for (; row + kRows <= rows; row += kRows) {
    BlockOfRows(d, at + row * length, length, lo + row, hi + row);
  }
  return row;
}
#endif  // OVPRESS_ROWS_AT_ONCE

// Rows that are quantized together: their ranges, then their steps, then their
// codes. A multiple of the length of every vector of floats.
constexpr size_t kRowsAtOnce = 64;

// Ranges of up to kRowsAtOnce rows, as f32. lo and hi have kRowsAtOnce places;
// those past `rows` get any finite value. True if all ranges are finite.
template <class Load>
bool RowRanges(const uint8_t* source, size_t rows, size_t length, float* lo,
               float* hi) {
  if (length == 0) {
    std::fill(lo, lo + kRowsAtOnce, std::numeric_limits<float>::infinity());
    std::fill(hi, hi + kRowsAtOnce, -std::numeric_limits<float>::infinity());
    return true;
  }
  using T = typename Load::Raw;
  HWY_ALIGN T raw_lo[kRowsAtOnce];
  HWY_ALIGN T raw_hi[kRowsAtOnce];
  size_t row = 0;
#if OVPRESS_ROWS_AT_ONCE
  row = BlocksOfRows(hn::ScalableTag<T>(), reinterpret_cast<const T*>(source),
                     rows, length, raw_lo, raw_hi);
#endif
  for (; row < rows; ++row) {
    OrderedRange<Load>(source + row * length * sizeof(T), length, raw_lo + row,
                       raw_hi + row);
  }
  const DF df;
  // SVE has vectors of up to 256 bytes: more 16-bit lanes than places.
  const hn::CappedTag<T, kRowsAtOnce> d;
  using V = hn::Vec<decltype(d)>;
  constexpr int kShift = sizeof(T) * 8 - 1;
  const size_t n = hn::Lanes(df);
  const size_t end = (rows + n - 1) / n * n;
  // Whole vectors: the places behind the last row are its copies.
  const size_t end_raw = std::min(
      kRowsAtOnce, (rows + hn::Lanes(d) - 1) / hn::Lanes(d) * hn::Lanes(d));
  std::fill(raw_lo + rows, raw_lo + end_raw, raw_lo[rows - 1]);
  std::fill(raw_hi + rows, raw_hi + end_raw, raw_hi[rows - 1]);
  const V mask = hn::Set(d, std::numeric_limits<T>::max());
  for (size_t i = 0; i < end_raw; i += hn::Lanes(d)) {
    // The order's map is its own inverse.
    hn::StoreU(Ordered<V, kShift>(hn::LoadU(d, raw_lo + i), mask), d,
               raw_lo + i);
    hn::StoreU(Ordered<V, kShift>(hn::LoadU(d, raw_hi + i), mask), d,
               raw_hi + i);
  }
  auto finite = hn::Eq(hn::Zero(df), hn::Zero(df));
  const VF infinity = hn::Set(df, std::numeric_limits<float>::infinity());
  for (size_t i = 0; i < end; i += n) {
    const VF vlo = Load::Vector(reinterpret_cast<const uint8_t*>(raw_lo + i));
    const VF vhi = Load::Vector(reinterpret_cast<const uint8_t*>(raw_hi + i));
    finite = hn::And(finite, hn::And(hn::Lt(hn::Abs(vlo), infinity),
                                     hn::Lt(hn::Abs(vhi), infinity)));
    hn::StoreU(vlo, df, lo + i);
    hn::StoreU(vhi, df, hi + i);
  }
  return hn::AllTrue(df, finite);
}

// --- steps -----------------------------------------------------------------

// Whether quotients of these weights may be multiplied; see quotient-inl.h.
template <class Load, scalar::CodeKind kKind>
constexpr bool kMayMultiply = kHasFma &&
                              (std::is_same_v<Load, LoadF16> ||
                               (std::is_same_v<Load, LoadBf16> &&
                                kKind != scalar::CodeKind::kCodebook));

// How quotients are made.
enum class Way : uint8_t {
  kDivide,
  kMultiply,  // see kMayMultiply
  kScale,     // divisors are powers of two: w * y is fl(w / s)
};

constexpr Way WayOf(bool multiply) {
  return multiply ? Way::kMultiply : Way::kDivide;
}

// reciprocal[i] = 1 / divisor[i]; false unless all divisors are powers of two
// whose reciprocals are normal numbers. w * y then rounds the same number that
// w / s does, whatever w is.
bool ReciprocalsOfPowers(const float* divisor, size_t count,
                         float* reciprocal) {
  uint32_t all = 0;  // any bit that a power of two has not
  for (size_t i = 0; i < count; ++i) {
    uint32_t bits;
    std::memcpy(&bits, divisor + i, sizeof(bits));
    const uint32_t exponent = bits >> 23;  // the sign among it
    all |= (bits & 0x7fffff) | (exponent - 1 < 252 ? 0u : 1u);
    const uint32_t inverse = (254 - exponent) << 23;
    std::memcpy(reciprocal + i, &inverse, sizeof(inverse));
  }
  return all == 0;
}

// fl(w / s); y = fl(1 / s).
template <scalar::CodeKind kKind, Way kWay>
HWY_INLINE VF Quotient(VF w, VF s, VF y) {
  if constexpr (kWay == Way::kDivide) {
    return hn::Div(w, s);
  } else if constexpr (kWay == Way::kScale) {
    return hn::Mul(w, y);
  } else if constexpr (kKind == scalar::CodeKind::kF4e2m1 ||
                       kKind == scalar::CodeKind::kF8e4m3) {
    // Steps of these kinds are positive.
    return hn::CopySign(MultipliedQuotient(w, s, y), w);
  } else {
    return MultipliedQuotient(w, s, y);
  }
}

// What reference::MakeSteps does. False, and the outputs are not to be used, if
// a range is not finite and not that of an empty group.
bool DoMakeSteps(const scalar::StepRule& rule, const float* lo, const float* hi,
                 size_t groups, float* step, uint8_t* zero_point) {
  const DF df;
  const DI di;
  const size_t n = hn::Lanes(df);
  const VF zero = hn::Zero(df);
  const VF eps = hn::Set(df, scalar::kEps);
  const VF range = hn::Set(df, rule.range);
  const hn::Rebind<uint8_t, DI> d8;
  const hn::RebindToUnsigned<DI> du;
  auto good = hn::Eq(zero, zero);
  const auto one = [&](VF vlo, VF vhi, VF* z) HWY_ATTR {
    const VF infinity = hn::Set(df, std::numeric_limits<float>::infinity());
    good = hn::And(good, hn::Or(hn::Gt(vlo, vhi),
                                hn::And(hn::Lt(hn::Abs(vlo), infinity),
                                        hn::Lt(hn::Abs(vhi), infinity))));
    switch (rule.kind) {
      case scalar::StepKind::kAsym: {
        const VF low = hn::IfThenElse(hn::Lt(vlo, zero), vlo, zero);
        const VF high = hn::IfThenElse(hn::Gt(vhi, zero), vhi, zero);
        VF s = hn::Div(hn::Sub(high, low), range);
        s = hn::IfThenElse(hn::Lt(hn::Abs(s), eps), eps, s);
        const VF raw = hn::Sub(zero, hn::Round(hn::Div(low, s)));
        *z = hn::IfThenElse(hn::Gt(raw, zero),
                            hn::IfThenElse(hn::Lt(raw, range), raw, range),
                            zero);
        return s;
      }
      case scalar::StepKind::kSym: {
        const VF a = hn::Abs(vlo);
        VF s = hn::Div(hn::IfThenElse(hn::Ge(a, vhi), a, hn::Neg(vhi)), range);
        s = hn::IfThenElse(hn::Gt(vlo, vhi), zero, s);
        return hn::IfThenElse(hn::Lt(hn::Abs(s), eps), eps, s);
      }
      default:
        break;
    }
    const VF a = hn::Abs(vlo);
    const VF b = hn::Abs(vhi);
    VF t = hn::IfThenElse(hn::Gt(a, b), a, b);
    t = hn::IfThenElse(hn::Gt(vlo, vhi), zero, t);
    if (rule.kind == scalar::StepKind::kMagnitude) return t;
    if (rule.clamp_first) t = hn::IfThenElse(hn::Lt(t, eps), eps, t);
    if (rule.divide) t = hn::Div(t, range);
    if (!rule.clamp_first) t = hn::IfThenElse(hn::Lt(t, eps), eps, t);
    if (rule.kind == scalar::StepKind::kFloat) return t;
    // An MX exponent e = the number of thresholds below t; see MxThresholds.
    VI e = hn::Sub(hn::ShiftRight<23>(hn::BitCast(di, t)), hn::Set(di, 1));
    for (int k = 0; k < 3; ++k) {
      const VF largest = hn::GatherIndex(df, rule.mx_largest, e);
      e = hn::Sub(e,
                  hn::VecFromMask(di, hn::RebindMask(di, hn::Gt(t, largest))));
    }
    e = hn::Min(e, hn::Set(di, 254));
    const VI bits = hn::IfThenElse(hn::Eq(e, hn::Zero(di)),
                                   hn::Set(di, 0x00400000),  // 2^-127
                                   hn::ShiftLeft<23>(e));
    return hn::BitCast(df, bits);
  };
  const auto write = [&](VF s, VF z, float* to_step,
                         uint8_t* to_zero_point) HWY_ATTR {
    hn::StoreU(s, df, to_step);
    if (rule.kind != scalar::StepKind::kAsym) return;
    hn::StoreU(hn::TruncateTo(d8, hn::BitCast(du, hn::ConvertTo(di, z))), d8,
               to_zero_point);
  };
  size_t i = 0;
  for (; i + n <= groups; i += n) {
    VF z = zero;
    const VF s = one(hn::LoadU(df, lo + i), hn::LoadU(df, hi + i), &z);
    // Only asymmetric steps have zero points; others give no array.
    write(s, z, step + i,
          rule.kind == scalar::StepKind::kAsym ? zero_point + i : nullptr);
  }
  if (i == groups) return hn::AllTrue(df, good);
  HWY_ALIGN float rest_lo[HWY_MAX_BYTES / 4] = {};
  HWY_ALIGN float rest_hi[HWY_MAX_BYTES / 4] = {};
  HWY_ALIGN float rest_step[HWY_MAX_BYTES / 4];
  HWY_ALIGN uint8_t rest_zero_point[HWY_MAX_BYTES];
  std::copy(lo + i, lo + groups, rest_lo);
  std::copy(hi + i, hi + groups, rest_hi);
  VF z = zero;
  const VF s = one(hn::LoadU(df, rest_lo), hn::LoadU(df, rest_hi), &z);
  write(s, z, rest_step, rest_zero_point);
  std::copy(rest_step, rest_step + (groups - i), step + i);
  if (rule.kind == scalar::StepKind::kAsym) {
    std::copy(rest_zero_point, rest_zero_point + (groups - i), zero_point + i);
  }
  return hn::AllTrue(df, good);
}

// --- codes -----------------------------------------------------------------

// The smaller one; `high` for NaN.
HWY_INLINE VF AtMost(VF x, VF high) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
  // minps gives its second operand where one is NaN.
  return hn::Min(x, high);
#else
  return hn::IfThenElse(hn::Lt(x, high), x, high);
#endif
}

// x clamped to [low, high]; low for NaN.
HWY_INLINE VF Clamp(VF x, VF low, VF high) {
#if HWY_ARCH_X86 && HWY_TARGET != HWY_SCALAR
  // maxps gives its second operand where one is NaN.
  return hn::Min(hn::Max(x, low), high);
#else
  return hn::Min(hn::IfThenElse(hn::Gt(x, low), x, low), high);
#endif
}

// The nearest integer of |x| < 2^22, ties to even, plus `shift` (even), in the
// low bits: f32 numbers around 1.5 * 2^23 are the integers.
HWY_INLINE VI RoundedBits(VF x, float shift) {
  return hn::BitCast(DI(), hn::Add(x, hn::Set(DF(), 0x1.8p23f + shift)));
}

// How many of some ascending thresholds lie below x; 0 for NaN. Keeps a pointer
// to the thresholds.
class Counter {
 public:
  Counter(const float* thresholds, size_t count)
      : thresholds_(thresholds), count_(count) {
    for (size_t i = 0; i < std::size(padded_); ++i) {
      padded_[i] =
          i < count ? thresholds[i] : std::numeric_limits<float>::infinity();
    }
  }
  HWY_INLINE VI Below(VF x) const {
    const DF df;
    const DI di;
    VI code = hn::Zero(di);
#if HWY_TARGET == HWY_AVX3 || HWY_TARGET == HWY_AVX3_DL
    if (count_ <= kSearched) {
      // A binary search in registers: `code` thresholds are known to lie below
      // x. The table starts at the first threshold that a step may compare, so
      // that `code` is the index.
      const auto step = [&](VF threshold, int half) HWY_ATTR {
        code = hn::Or(
            code, hn::IfThenElseZero(hn::RebindMask(di, hn::Gt(x, threshold)),
                                     hn::Set(di, half)));
      };
      const auto at_code = [&](const float* table) HWY_ATTR {
        return hn::TableLookupLanes(hn::LoadU(df, table),
                                    hn::IndicesFromVec(df, code));
      };
      step(hn::Set(df, padded_[7]), 8);
      step(at_code(padded_ + 3), 4);
      step(at_code(padded_ + 1), 2);
      step(at_code(padded_), 1);
      return code;
    }
#endif
    for (size_t i = 0; i < count_; ++i) {
      // A true comparison is -1.
      code = hn::Sub(
          code,
          hn::VecFromMask(
              di, hn::RebindMask(di, hn::Gt(x, hn::Set(df, thresholds_[i])))));
    }
    return code;
  }

 private:
  const float* const thresholds_;
  const size_t count_;
  static constexpr size_t kSearched = 15;
  HWY_ALIGN float padded_[kSearched + HWY_MAX_BYTES / 4];
};

// Makes codes of quotients: in the low bits of each lane; the others may hold
// anything.
template <scalar::CodeKind kKind>
class Coder {
 public:
  explicit Coder(const scalar::Prepared& p)
      : bottom_(p.bottom),
        top_(p.top),
        shift_(static_cast<float>(p.shift)),
        counter_(kKind == CodeKind::kNf4 ? scalar::kNf4Thresholds
                                         : p.midpoints_f32.data(),
                 kKind == CodeKind::kNf4 ? std::size(scalar::kNf4Thresholds)
                                         : p.midpoints_f32.size()) {}

  HWY_INLINE VI Codes(VF quotient, VF zero_point) const {
    const DF df;
    const DI di;
    if constexpr (kKind == CodeKind::kAsym) {
      const VF x = hn::Add(quotient, zero_point);
      return RoundedBits(Clamp(x, hn::Zero(df), hn::Set(df, top_)), 0.0f);
    } else if constexpr (kKind == CodeKind::kSym) {
      return RoundedBits(
          Clamp(quotient, hn::Set(df, bottom_), hn::Set(df, top_)), shift_);
    } else if constexpr (kKind == CodeKind::kF4e2m1) {
      // 0, .5, 1, 1.5 | 2, 3 | 4, 6: three ranges with steps of a half, one and
      // two. Codes rise ever more slowly, so the code is the smallest of the
      // three roundings; ties go to even codes in each.
      const VI sign = hn::And(hn::ShiftRight<28>(hn::BitCast(di, quotient)),
                              hn::Set(di, 8));
      const VF m = hn::Min(hn::Set(df, 6.0f), hn::Abs(quotient));
      const VI halves = RoundedBits(hn::Add(m, m), 0.0f);
      const VI ones = RoundedBits(m, 2.0f);
      const VI twos = RoundedBits(hn::Mul(m, hn::Set(df, 0.5f)), 4.0f);
      return hn::Or(hn::Min(hn::Min(halves, ones), twos), sign);
    } else if constexpr (kKind == CodeKind::kF8e4m3) {
      return F8Codes(quotient);
    } else {
      return counter_.Below(quotient);
    }
  }

 private:
  using CodeKind = scalar::CodeKind;

  static HWY_INLINE VI F8Codes(VF quotient) {
    const DF df;
    const DI di;
    const VI exponent_bits = hn::Set(di, 0x7f800000);
    const VI sign = hn::And(hn::ShiftRight<24>(hn::BitCast(di, quotient)),
                            hn::Set(di, 0x80));
    // Above 464 all is NaN's code, which is what 512 ends as.
    VF m = AtMost(hn::Abs(quotient), hn::Set(df, 512.0f));
    // To f16's eleven bits first: a number 2^13 times as large is added and
    // taken away. Values below f16's normal range end as 0 whichever way they
    // are rounded.
    const VF to_f16 =
        hn::BitCast(df, hn::Add(hn::And(hn::BitCast(di, m), exponent_bits),
                                hn::Set(di, 13 << 23)));
    m = hn::Sub(hn::Add(m, to_f16), to_f16);
    // To four bits, or to multiples of 2^-9 below 2^-6: 2^20 times as large,
    // and what was added stands in the last bits.
    const VI exponent = hn::Max(hn::And(hn::BitCast(di, m), exponent_bits),
                                hn::Set(di, 121 << 23));
    const VI to_f8 = hn::Add(exponent, hn::Set(di, 20 << 23));
    const VI digits =
        hn::Sub(hn::BitCast(di, hn::Add(m, hn::BitCast(df, to_f8))), to_f8);
    const VI code = hn::Add(
        hn::Sub(hn::ShiftRight<20>(exponent), hn::Set(di, 121 << 3)), digits);
    return hn::Or(hn::Min(code, hn::Set(di, 0x7f)), sign);
  }

  const float bottom_;
  const float top_;
  const float shift_;
  const Counter counter_;
};

HWY_INLINE void StoreCodes(VI codes, uint8_t* out) {
  const hn::Rebind<uint8_t, DI> d8;
  hn::StoreU(hn::TruncateTo(d8, hn::BitCast(hn::RebindToUnsigned<DI>(), codes)),
             d8, out);
}

// Unpacked codes of one row with one divisor.
template <class Load, scalar::CodeKind kKind, Way kWay>
HWY_INLINE void RowCodes(const uint8_t* source, size_t length, float divisor,
                         float reciprocal, uint8_t zero_point,
                         const scalar::Prepared& p, const Coder<kKind>& coder,
                         uint8_t* out) {
  const DF df;
  const size_t n = hn::Lanes(df);
  const VF s = hn::Set(df, divisor);
  const VF y = hn::Set(df, reciprocal);
  const VF zero = hn::Set(df, static_cast<float>(zero_point));
  const auto codes = [&](size_t at) HWY_ATTR {
    return coder.Codes(
        Quotient<kKind, kWay>(Load::Vector(source + at * Load::kSize), s, y),
        zero);
  };
  size_t i = 0;
  for (; i + 2 * n <= length; i += 2 * n) {
    const VI first = codes(i);
    const VI second = codes(i + n);
    StoreCodes(first, out + i);
    StoreCodes(second, out + i + n);
  }
  for (; i + n <= length; i += n) StoreCodes(codes(i), out + i);
  for (; i < length; ++i) {
    out[i] = static_cast<uint8_t>(scalar::CodeOf(
        p, Load::One(source + i * Load::kSize), divisor, zero_point));
  }
}

// The same for rows that are a few whole vectors long; `zero_points` may be
// null.
template <class Load, scalar::CodeKind kKind, Way kWay>
HWY_INLINE void ShortRowCodes(const uint8_t* source, size_t rows, size_t length,
                              const float* divisor, const float* reciprocal,
                              const uint8_t* zero_points,
                              const Coder<kKind>& coder, uint8_t* out) {
  const DF df;
  const size_t n = hn::Lanes(df);
  for (size_t row = 0; row < rows; ++row) {
    const VF s = hn::Set(df, divisor[row]);
    const VF y = hn::Set(df, kWay == Way::kDivide ? 0.0f : reciprocal[row]);
    VF zero = hn::Zero(df);
    if constexpr (kKind == scalar::CodeKind::kAsym) {
      if (zero_points != nullptr) {
        zero = hn::Set(df, static_cast<float>(zero_points[row]));
      }
    }
    for (size_t i = 0; i < length; i += n) {
      StoreCodes(coder.Codes(
                     Quotient<kKind, kWay>(Load::Vector(source), s, y), zero),
                 out);
      source += n * Load::kSize;
      out += n;
    }
  }
}

// Unpacked codes of one row of columns: a divisor for each.
template <class Load, scalar::CodeKind kKind, bool kMultiply>
HWY_INLINE void ColumnCodes(const uint8_t* source, size_t columns,
                            const float* divisor, const float* reciprocal,
                            const float* zero_point, const scalar::Prepared& p,
                            const Coder<kKind>& coder, uint8_t* out) {
  const DF df;
  const size_t n = hn::Lanes(df);
  size_t i = 0;
  for (; i + n <= columns; i += n) {
    const VF y = kMultiply ? hn::LoadU(df, reciprocal + i) : hn::Zero(df);
    const VF x = Quotient<kKind, WayOf(kMultiply)>(
        Load::Vector(source + i * Load::kSize), hn::LoadU(df, divisor + i), y);
    const VF zero = kKind == scalar::CodeKind::kAsym
                        ? hn::LoadU(df, zero_point + i)
                        : hn::Zero(df);
    StoreCodes(coder.Codes(x, zero), out + i);
  }
  for (; i < columns; ++i) {
    out[i] = static_cast<uint8_t>(scalar::CodeOf(
        p, Load::One(source + i * Load::kSize), divisor[i],
        kKind == scalar::CodeKind::kAsym ? static_cast<uint8_t>(zero_point[i])
                                         : uint8_t{0}));
  }
}

// --- packing ---------------------------------------------------------------

void PackNibbles(const uint8_t* codes, size_t count, uint8_t* out) {
  const hn::ScalableTag<uint16_t> d16;
  const hn::Rebind<uint8_t, decltype(d16)> d8;
  const hn::RebindToSigned<decltype(d16)> di16;
  const size_t n = hn::Lanes(d16);
  size_t i = 0;
  for (; i + 2 * n <= count; i += 2 * n) {
    const auto pairs =
        hn::LoadU(d16, reinterpret_cast<const uint16_t*>(codes + i));
    const auto packed =
        hn::Or(hn::And(pairs, hn::Set(d16, 0x0f)),
               hn::And(hn::ShiftRight<4>(pairs), hn::Set(d16, 0xf0)));
    hn::StoreU(hn::DemoteTo(d8, hn::BitCast(di16, packed)), d8, out + i / 2);
  }
  for (; i < count; i += 2) {
    const unsigned low = codes[i] & 15u;
    const unsigned high = i + 1 < count ? codes[i + 1] & 15u : 0;
    out[i / 2] = static_cast<uint8_t>(low | high << 4);
  }
}

// Eight codes in each 64-bit lane; neighbours are joined in pairs, three times.
void PackTwoBits(const uint8_t* codes, size_t count, uint8_t* out) {
  const hn::ScalableTag<uint64_t> d;
  const hn::Rebind<uint16_t, decltype(d)> d16;
  using V = hn::Vec<decltype(d)>;
  const size_t n = hn::Lanes(d);
  size_t i = 0;
  for (; i + 8 * n <= count; i += 8 * n) {
    V v = hn::LoadU(d, reinterpret_cast<const uint64_t*>(codes + i));
    v = hn::And(v, hn::Set(d, 0x0303030303030303u));
    v = hn::And(hn::Or(v, hn::ShiftRight<6>(v)),
                hn::Set(d, 0x000f000f000f000fu));
    v = hn::And(hn::Or(v, hn::ShiftRight<12>(v)),
                hn::Set(d, 0x000000ff000000ffu));
    v = hn::Or(v, hn::ShiftRight<24>(v));
    hn::StoreU(hn::TruncateTo(d16, v), d16,
               reinterpret_cast<uint16_t*>(out + i / 4));
  }
  scalar::Pack(ElementType::kU2, codes + i, count - i,
               reinterpret_cast<std::byte*>(out + i / 4));
}

// Three bytes for eight codes: the low two bits of the first four and of the
// others, the first code highest; then the top bits, again the first highest.
void PackThreeBits(const uint8_t* codes, size_t count, uint8_t* out) {
  const hn::ScalableTag<uint64_t> d;
  using V = hn::Vec<decltype(d)>;
  const size_t n = hn::Lanes(d);
  HWY_ALIGN uint64_t lanes[HWY_MAX_BYTES / 8];
  size_t i = 0;
  uint8_t* at = out;
  // Each lane is stored as four bytes, the last of them to be overwritten by
  // the next lane: hence not up to the end.
  for (; i + 8 * n < count; i += 8 * n) {
    const V v = hn::LoadU(d, reinterpret_cast<const uint64_t*>(codes + i));
    V low = hn::And(v, hn::Set(d, 0x0303030303030303u));
    low = hn::And(hn::Or(hn::ShiftLeft<2>(low), hn::ShiftRight<8>(low)),
                  hn::Set(d, 0x000f000f000f000fu));
    low = hn::And(hn::Or(hn::ShiftLeft<4>(low), hn::ShiftRight<16>(low)),
                  hn::Set(d, 0x000000ff000000ffu));
    low = hn::And(hn::Or(low, hn::ShiftRight<24>(low)), hn::Set(d, 0xffffu));
    V top = hn::And(hn::ShiftRight<2>(v), hn::Set(d, 0x0101010101010101u));
    top = hn::And(hn::Or(hn::ShiftLeft<1>(top), hn::ShiftRight<8>(top)),
                  hn::Set(d, 0x0003000300030003u));
    top = hn::And(hn::Or(hn::ShiftLeft<2>(top), hn::ShiftRight<16>(top)),
                  hn::Set(d, 0x0000000f0000000fu));
    top = hn::And(hn::Or(hn::ShiftLeft<4>(top), hn::ShiftRight<32>(top)),
                  hn::Set(d, 0xffu));
    hn::Store(hn::Or(low, hn::ShiftLeft<16>(top)), d, lanes);
    for (size_t lane = 0; lane < n; ++lane, at += 3) {
      const uint32_t bytes = static_cast<uint32_t>(lanes[lane]);
      std::memcpy(at, &bytes, sizeof(bytes));
    }
  }
  scalar::Pack(ElementType::kU3, codes + i, count - i,
               reinterpret_cast<std::byte*>(at));
}

void PackCodesTo(ElementType type, const uint8_t* codes, size_t count,
                 uint8_t* out) {
  if (type == ElementType::kU2) {
    PackTwoBits(codes, count, out);
  } else if (type == ElementType::kU3) {
    PackThreeBits(codes, count, out);
  } else {
    PackNibbles(codes, count, out);
  }
}

// Takes unpacked codes row by row and packs them without gaps: rows collect in
// a small buffer that stays in cache.
class Packer {
 public:
  Packer(ElementType type, uint8_t* out)
      : direct_(BitsPerElement(type) == 8), type_(type), out_(out) {}

  // Calls fill(codes, from, count) for parts of the row.
  template <class Fill>
  void Row(size_t length, const Fill& fill) {
    if (direct_) {
      fill(out_, size_t{0}, length);
      out_ += length;
      return;
    }
    size_t done = 0;
    while (done < length) {
      const size_t take = std::min(length - done, kCapacity - used_);
      fill(buffer_ + used_, done, take);
      used_ += take;
      done += take;
      if (used_ == kCapacity) Flush();
    }
  }
  // Room for `count` codes in one piece. REQUIRES: count <= kCapacity; all
  // that came before ends on a byte.
  uint8_t* Piece(size_t count) {
    if (direct_) return std::exchange(out_, out_ + count);
    if (used_ + count > kCapacity) Flush();
    return buffer_ + std::exchange(used_, used_ + count);
  }
  void Finish() {
    if (used_ > 0) Flush();
  }

  static constexpr size_t kCapacity = 4096;

 private:
  void Flush() {
    PackCodesTo(type_, buffer_, used_, out_);
    // Full ones end on a byte, and so do those before a Piece.
    out_ += *PackedSizeBytes(type_, used_);
    used_ = 0;
  }

  const bool direct_;
  const ElementType type_;
  uint8_t* out_;
  size_t used_ = 0;
  // Vector stores may run past the last code of a part.
  HWY_ALIGN uint8_t buffer_[kCapacity + HWY_MAX_BYTES];
};

// --- entry points ----------------------------------------------------------

// Calls call(std::bool_constant<...>) with whether quotients may be multiplied.
template <class Load, scalar::CodeKind kKind, class Call>
HWY_INLINE void WithMultiply(bool in_bounds, const Call& call) {
  if constexpr (kMayMultiply<Load, kKind>) {
    if (in_bounds) {
      call(std::true_type());
      return;
    }
  }
  call(std::false_type());
}

template <class Load, scalar::CodeKind kKind>
bool QuantizeRowsOf(const Encoding& encoding, const scalar::Prepared& p,
                    const scalar::StepRule& rule, const uint8_t* source,
                    size_t rows, size_t length, bool make_steps, float* step,
                    uint8_t* zero_point, uint8_t* out) {
  Packer packer(p.code_type, out);
  const Coder<kKind> coder(p);
  bool finite = true;
  // As many rows as stay in the first-level cache between their two passes,
  // in whole blocks where there are several.
  constexpr size_t kCacheBytes = 16 << 10;
  const size_t in_cache = kCacheBytes / (length * Load::kSize + 1);
  const size_t batch =
      in_cache < 8 ? 8 : std::min(kRowsAtOnce, in_cache / 8 * 8);
  HWY_ALIGN float lo[kRowsAtOnce];
  HWY_ALIGN float hi[kRowsAtOnce];
  HWY_ALIGN float f32_divisor[kRowsAtOnce];
  HWY_ALIGN float reciprocal[kRowsAtOnce];
  const bool short_rows = length > 0 && length % hn::Lanes(DF()) == 0 &&
                          length * kRowsAtOnce <= Packer::kCapacity;
  for (size_t first = 0; first < rows; first += batch) {
    const size_t count = std::min(batch, rows - first);
    const uint8_t* const from = source + first * length * Load::kSize;
    float* const steps = step + first;
    uint8_t* const zero_points =
        zero_point != nullptr ? zero_point + first : nullptr;
    if (make_steps) {
      finite &= RowRanges<Load>(from, count, length, lo, hi);
      if (!DoMakeSteps(rule, lo, hi, count, steps, zero_points)) {
        reference::MakeSteps(encoding, lo, hi, count, steps, zero_points);
      }
    }
    const float* divisor = steps;
    if (p.f64_scale) {
      for (size_t i = 0; i < count; ++i) f32_divisor[i] = p.Divisor(steps[i]);
      divisor = f32_divisor;
    }
    const auto encode = [&](auto way) HWY_ATTR {
      constexpr Way kWay = decltype(way)::value;
      if (short_rows) {
        ShortRowCodes<Load, kKind, kWay>(from, count, length, divisor,
                                         reciprocal, zero_points, coder,
                                         packer.Piece(count * length));
        return;
      }
      for (size_t i = 0; i < count; ++i) {
        const uint8_t* const at = from + i * length * Load::kSize;
        const float y = kWay == Way::kDivide ? 0.0f : reciprocal[i];
        const uint8_t zero =
            zero_points != nullptr ? zero_points[i] : uint8_t{0};
        packer.Row(length,
                   [&](uint8_t* codes, size_t at_code, size_t n) HWY_ATTR {
                     RowCodes<Load, kKind, kWay>(at + at_code * Load::kSize, n,
                                                 divisor[i], y, zero, p, coder,
                                                 codes);
                   });
      }
    };
    if constexpr (kKind == scalar::CodeKind::kF4e2m1 ||
                  kKind == scalar::CodeKind::kF8e4m3) {
      if (ReciprocalsOfPowers(divisor, count, reciprocal)) {
        encode(std::integral_constant<Way, Way::kScale>());
        continue;
      }
    }
    const bool in_bounds =
        kMayMultiply<Load, kKind> && Reciprocals(divisor, count, reciprocal);
    WithMultiply<Load, kKind>(in_bounds, [&](auto multiply) HWY_ATTR {
      encode(std::integral_constant<Way, WayOf(decltype(multiply)::value)>());
    });
  }
  packer.Finish();
  return finite;
}

template <class Load, scalar::CodeKind kKind>
void EncodeColumnsOf(const scalar::Prepared& p, const uint8_t* source,
                     size_t rows, size_t columns, const float* divisor,
                     const float* reciprocal, const float* zero_point,
                     uint8_t* out) {
  Packer packer(p.code_type, out);
  const Coder<kKind> coder(p);
  WithMultiply<Load, kKind>(reciprocal != nullptr, [&](auto multiply) HWY_ATTR {
    constexpr bool kMultiply = decltype(multiply)::value;
    for (size_t row = 0; row < rows; ++row) {
      const uint8_t* const at = source + row * columns * Load::kSize;
      packer.Row(columns,
                 [&](uint8_t* codes, size_t from, size_t count) HWY_ATTR {
                   ColumnCodes<Load, kKind, kMultiply>(
                       at + from * Load::kSize, count, divisor + from,
                       kMultiply ? reciprocal + from : nullptr,
                       zero_point != nullptr ? zero_point + from : nullptr, p,
                       coder, codes);
                 });
    }
  });
  packer.Finish();
}

template <class Load, class Call>
auto WithKind(scalar::CodeKind kind, const Call& call) {
  using scalar::CodeKind;
  switch (kind) {
    case CodeKind::kAsym:
      return call(std::integral_constant<CodeKind, CodeKind::kAsym>());
    case CodeKind::kSym:
      return call(std::integral_constant<CodeKind, CodeKind::kSym>());
    case CodeKind::kNf4:
      return call(std::integral_constant<CodeKind, CodeKind::kNf4>());
    case CodeKind::kF4e2m1:
      return call(std::integral_constant<CodeKind, CodeKind::kF4e2m1>());
    case CodeKind::kF8e4m3:
      return call(std::integral_constant<CodeKind, CodeKind::kF8e4m3>());
    case CodeKind::kCodebook:
      break;
  }
  return call(std::integral_constant<CodeKind, CodeKind::kCodebook>());
}

template <class Call>
auto WithLoad(ElementType type, const Call& call) {
  if (type == ElementType::kF16) return call(LoadF16());
  if (type == ElementType::kBf16) return call(LoadBf16());
  return call(LoadF32());
}

bool DoRangeOfRows(ElementType type, const uint8_t* source, size_t rows,
                   size_t length, float* lo, float* hi) {
  return WithLoad(type, [&](auto load) {
    using Load = decltype(load);
    bool finite = true;
    HWY_ALIGN float batch_lo[kRowsAtOnce];
    HWY_ALIGN float batch_hi[kRowsAtOnce];
    for (size_t row = 0; row < rows; row += kRowsAtOnce) {
      const size_t count = std::min(kRowsAtOnce, rows - row);
      finite &= RowRanges<Load>(source + row * length * Load::kSize, count,
                                length, batch_lo, batch_hi);
      std::copy(batch_lo, batch_lo + count, lo + row);
      std::copy(batch_hi, batch_hi + count, hi + row);
    }
    return finite;
  });
}

bool DoRangeOfColumns(ElementType type, const uint8_t* source, size_t rows,
                      size_t columns, float* lo, float* hi) {
  return WithLoad(type, [&](auto load) {
    using Load = decltype(load);
    const DF df;
    const DI di;
    const size_t n = hn::Lanes(df);
    VI worst = hn::Zero(di);
    bool finite = true;
    // Tiles of columns whose minima stay in L1 while all rows pass.
    constexpr size_t kTile = 2048;
    for (size_t first = 0; first < columns; first += kTile) {
      const size_t width = std::min(kTile, columns - first);
      for (size_t row = 0; row < rows; ++row) {
        const uint8_t* const at =
            source + (row * columns + first) * Load::kSize;
        size_t i = 0;
        for (; i + n <= width; i += n) {
          const VF x = Load::Vector(at + i * Load::kSize);
          worst = hn::Max(worst,
                          hn::And(hn::BitCast(di, x), hn::Set(di, 0x7fffffff)));
          float* const plo = lo + first + i;
          float* const phi = hi + first + i;
          hn::StoreU(hn::Min(x, hn::LoadU(df, plo)), df, plo);
          hn::StoreU(hn::Max(x, hn::LoadU(df, phi)), df, phi);
        }
        for (; i < width; ++i) {
          const float x = Load::One(at + i * Load::kSize);
          finite &= std::isfinite(x);
          lo[first + i] = x < lo[first + i] ? x : lo[first + i];
          hi[first + i] = x > hi[first + i] ? x : hi[first + i];
        }
      }
    }
    return finite && hn::AllTrue(di, hn::Lt(worst, hn::Set(di, 0x7f800000)));
  });
}

bool DoQuantizeRows(const Encoding& encoding, const scalar::Prepared& p,
                    const scalar::StepRule& rule, const uint8_t* source,
                    size_t rows, size_t length, bool make_steps, float* step,
                    uint8_t* zero_point, uint8_t* out) {
  return WithLoad(encoding.source_type, [&](auto load) {
    using Load = decltype(load);
    return WithKind<Load>(p.kind, [&](auto kind) {
      return QuantizeRowsOf<Load, decltype(kind)::value>(
          encoding, p, rule, source, rows, length, make_steps, step, zero_point,
          out);
    });
  });
}

void DoEncodeColumns(const Encoding& encoding, const scalar::Prepared& p,
                     const uint8_t* source, size_t rows, size_t columns,
                     const float* divisor, const float* zero_point,
                     uint8_t* out) {
  std::vector<float> reciprocal(kHasFma ? columns : 0);
  const bool in_bounds =
      kHasFma && Reciprocals(divisor, columns, reciprocal.data());
  WithLoad(encoding.source_type, [&](auto load) {
    using Load = decltype(load);
    WithKind<Load>(p.kind, [&](auto kind) {
      EncodeColumnsOf<Load, decltype(kind)::value>(
          p, source, rows, columns, divisor,
          in_bounds ? reciprocal.data() : nullptr, zero_point, out);
    });
  });
}

// e of each weight of a row under int8_asym, to out.
template <class Load, bool kMultiply>
HWY_INLINE void RowErrors(const uint8_t* source, size_t length, float step,
                          float reciprocal, float zero_point, float* out) {
  const DF df;
  const size_t n = hn::Lanes(df);
  const VF s = hn::Set(df, step);
  const VF y = hn::Set(df, reciprocal);
  const VF zero = hn::Set(df, zero_point);
  size_t i = 0;
  for (; i + n <= length; i += n) {
    const VF w = Load::Vector(source + i * Load::kSize);
    const VF x =
        hn::Add(Quotient<scalar::CodeKind::kAsym, WayOf(kMultiply)>(w, s, y),
                zero);
    const VF q = hn::Round(Clamp(x, hn::Zero(df), hn::Set(df, 255.0f)));
    const VF d = hn::Sub(hn::Mul(hn::Sub(q, zero), s), w);
    hn::StoreU(hn::Mul(d, d), df, out + i);
  }
  for (; i < length; ++i) {
    out[i] = scalar::Int8Error(Load::One(source + i * Load::kSize), step,
                               zero_point);
  }
}

void DoRowErrors(ElementType type, const uint8_t* source, size_t length,
                 float step, float zero_point, float* out) {
  WithLoad(type, [&](auto load) {
    RowErrors<decltype(load), false>(source, length, step, 0.0f, zero_point,
                                     out);
  });
}

// Four rows side by side, because the additions of one row wait for each other.
constexpr size_t kSumsAtOnce = 4;

// sum[row] = scalar::FixedOrderSum of the e of each row. rows <= kSumsAtOnce.
template <class Load, bool kMultiply>
void RowErrorSums(const uint8_t* source, size_t rows, size_t length,
                  const float* step, const float* reciprocal,
                  const float* zero_point, double* sum) {
  constexpr size_t kChunk = 512;  // a multiple of the sum's eight accumulators
  HWY_ALIGN float errors[kSumsAtOnce][kChunk];
  for (size_t row = rows; row < kSumsAtOnce; ++row) {
    std::fill(errors[row], errors[row] + kChunk, 0.0f);
  }
  double parts[kSumsAtOnce][8] = {};
#if OVPRESS_ROWS_AT_ONCE
  const hn::CappedTag<double, 8> d64;
  const hn::Rebind<float, decltype(d64)> d32;
  constexpr size_t kLanes = hn::MaxLanes(d64);
  using V64 = hn::Vec<decltype(d64)>;
  V64 sums[kSumsAtOnce][8 / kLanes];
  for (auto& row : sums) {
    for (V64& lanes : row) lanes = hn::Zero(d64);
  }
#endif
  for (size_t at = 0; at < length; at += kChunk) {
    const size_t count = std::min(kChunk, length - at);
    for (size_t row = 0; row < rows; ++row) {
      RowErrors<Load, kMultiply>(
          source + (row * length + at) * Load::kSize, count, step[row],
          kMultiply ? reciprocal[row] : 0.0f, zero_point[row], errors[row]);
    }
    size_t i = 0;
#if OVPRESS_ROWS_AT_ONCE
    for (; i + 8 <= count; i += 8) {
      for (size_t row = 0; row < kSumsAtOnce; ++row) {
        for (size_t k = 0; k < 8 / kLanes; ++k) {
          sums[row][k] = hn::Add(
              sums[row][k],
              hn::PromoteTo(d64, hn::LoadU(d32, errors[row] + i + k * kLanes)));
        }
      }
    }
    if (at + count == length) {
      for (size_t row = 0; row < rows; ++row) {
        for (size_t k = 0; k < 8 / kLanes; ++k) {
          hn::StoreU(sums[row][k], d64, parts[row] + k * kLanes);
        }
      }
    }
#endif
    for (; i < count; ++i) {
      for (size_t row = 0; row < rows; ++row) {
        parts[row][i % 8] += static_cast<double>(errors[row][i]);
      }
    }
  }
  for (size_t row = 0; row < rows; ++row) {
    const double* const r = parts[row];
    sum[row] =
        ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
  }
}

// For up to kRowsAtOnce rows.
void DoRowErrorSums(ElementType type, const uint8_t* source, size_t rows,
                    size_t length, const float* step, const float* zero_point,
                    double* sum) {
  WithLoad(type, [&](auto load) {
    using Load = decltype(load);
    HWY_ALIGN float reciprocal[kRowsAtOnce];
    const bool in_bounds = kMayMultiply<Load, scalar::CodeKind::kAsym> &&
                           Reciprocals(step, rows, reciprocal);
    WithMultiply<Load, scalar::CodeKind::kAsym>(in_bounds, [&](auto multiply) {
      for (size_t row = 0; row < rows; row += kSumsAtOnce) {
        RowErrorSums<Load, decltype(multiply)::value>(
            source + row * length * Load::kSize,
            std::min(kSumsAtOnce, rows - row), length, step + row,
            reciprocal + row, zero_point + row, sum + row);
      }
    });
  });
}

void DoColumnErrors(ElementType type, const uint8_t* source, size_t columns,
                    const float* step, const float* zero_point, float* out) {
  WithLoad(type, [&](auto load) {
    using Load = decltype(load);
    const DF df;
    const size_t n = hn::Lanes(df);
    size_t i = 0;
    for (; i + n <= columns; i += n) {
      const VF w = Load::Vector(source + i * Load::kSize);
      const VF vstep = hn::LoadU(df, step + i);
      const VF vzero = hn::LoadU(df, zero_point + i);
      const VF x = hn::Add(hn::Div(w, vstep), vzero);
      const VF low = hn::IfThenElse(hn::Gt(x, hn::Zero(df)), x, hn::Zero(df));
      const VF q = hn::Round(hn::Min(low, hn::Set(df, 255.0f)));
      const VF d = hn::Sub(hn::Mul(hn::Sub(q, vzero), vstep), w);
      hn::StoreU(hn::Mul(d, d), df, out + i);
    }
    for (; i < columns; ++i) {
      out[i] = scalar::Int8Error(Load::One(source + i * Load::kSize), step[i],
                                 zero_point[i]);
    }
  });
}

void DoToFloat(ElementType type, const uint8_t* source, size_t count,
               float* out) {
  WithLoad(type, [&](auto load) {
    using Load = decltype(load);
    const DF df;
    const size_t n = hn::Lanes(df);
    size_t i = 0;
    for (; i + n <= count; i += n) {
      hn::StoreU(Load::Vector(source + i * Load::kSize), df, out + i);
    }
    for (; i < count; ++i) out[i] = Load::One(source + i * Load::kSize);
  });
}

// To f16, nearest even, NaN as scalar::FloatToHalf has it.
void DoStoreF16(const float* values, size_t count, uint8_t* out) {
  size_t i = 0;
#if HWY_TARGET == HWY_AVX2 || HWY_TARGET == HWY_AVX3 || \
    HWY_TARGET == HWY_AVX3_DL
  // Other targets of Highway 1.0 do not round to nearest even.
  const DF df;
  const hn::Rebind<hwy::float16_t, DF> dh;
  const size_t n = hn::Lanes(df);
  for (; i + n <= count; i += n) {
    const VF x = hn::LoadU(df, values + i);
    if (!hn::AllTrue(df, hn::Eq(x, x))) break;
    hn::StoreU(hn::DemoteTo(dh, x), dh,
               reinterpret_cast<hwy::float16_t*>(out + 2 * i));
  }
#endif
  for (; i < count; ++i) {
    const uint16_t half = scalar::FloatToHalf(values[i]);
    std::memcpy(out + 2 * i, &half, 2);
  }
}

// fl32(value / divisor) to f8e4m3.
void DoStoreF8(const float* values, size_t count, float divisor, uint8_t* out) {
  const DF df;
  const size_t n = hn::Lanes(df);
  const Coder<scalar::CodeKind::kF8e4m3> coder{scalar::Prepared()};
  size_t i = 0;
  for (; i + n <= count; i += n) {
    StoreCodes(
        coder.Codes(hn::Div(hn::LoadU(df, values + i), hn::Set(df, divisor)),
                    hn::Zero(df)),
        out + i);
  }
  for (; i < count; ++i) out[i] = scalar::FloatToF8e4m3(values[i] / divisor);
}

}  // namespace HWY_NAMESPACE
}  // namespace ovpress
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ovpress {

HWY_EXPORT(DoMakeSteps);
HWY_EXPORT(DoRangeOfRows);
HWY_EXPORT(DoRangeOfColumns);
HWY_EXPORT(DoQuantizeRows);
HWY_EXPORT(DoEncodeColumns);
HWY_EXPORT(DoRowErrors);
HWY_EXPORT(DoRowErrorSums);
HWY_EXPORT(DoColumnErrors);
HWY_EXPORT(DoToFloat);
HWY_EXPORT(DoStoreF16);
HWY_EXPORT(DoStoreF8);

namespace {

using scalar::Prepared;

bool HasVectorLoad(ElementType type) {
  return type == ElementType::kF32 || type == ElementType::kF16 ||
         type == ElementType::kBf16;
}
// Larger tables are searched, one weight at a time.
constexpr size_t kVectorMidpointsMax = 64;
bool HasVectorCodes(ElementType type, const Prepared& prepared) {
  return HasVectorLoad(type) && prepared.code_type != ElementType::kU16 &&
         prepared.midpoints_f32.size() <= kVectorMidpointsMax;
}
const uint8_t* Raw(const void* source) {
  return static_cast<const uint8_t*>(source);
}
uint8_t* Raw(std::byte* out) { return reinterpret_cast<uint8_t*>(out); }

}  // namespace

bool RangeOfRows(ElementType type, const void* source, size_t rows,
                 size_t length, float* lo, float* hi) {
  if (!HasVectorLoad(type)) {
    return reference::RangeOfRows(type, source, rows, length, lo, hi);
  }
  return HWY_DYNAMIC_DISPATCH(DoRangeOfRows)(type, Raw(source), rows, length,
                                             lo, hi);
}

bool RangeOfColumns(ElementType type, const void* source, size_t rows,
                    size_t columns, float* lo, float* hi) {
  if (!HasVectorLoad(type)) {
    return reference::RangeOfColumns(type, source, rows, columns, lo, hi);
  }
  return HWY_DYNAMIC_DISPATCH(DoRangeOfColumns)(type, Raw(source), rows,
                                                columns, lo, hi);
}

void MakeSteps(const Encoding& encoding, const float* lo, const float* hi,
               size_t groups, float* step, uint8_t* zero_point) {
  if (!HWY_DYNAMIC_DISPATCH(DoMakeSteps)(scalar::StepRuleOf(encoding), lo, hi,
                                         groups, step, zero_point)) {
    reference::MakeSteps(encoding, lo, hi, groups, step, zero_point);
  }
}

void StoreScales(const Encoding& encoding, const float* step, size_t groups,
                 float second_order_scale, std::byte* out) {
  switch (ModeTraitsOf(encoding.mode).scale_type) {
    case ElementType::kF8e8m0:
      // A power of two: its biased exponent; 0 for 2^-127, which is subnormal.
      for (size_t i = 0; i < groups; ++i) {
        out[i] = static_cast<std::byte>(std::bit_cast<uint32_t>(step[i]) >> 23);
      }
      return;
    case ElementType::kF8e4m3:
      HWY_DYNAMIC_DISPATCH(DoStoreF8)
      (step, groups, second_order_scale, Raw(out));
      return;
    default:
      break;
  }
  const bool is_table =
      encoding.mode == Mode::kCb4 || encoding.mode == Mode::kCodebook;
  if (is_table) {
    const Prepared prepared = scalar::Prepare(encoding);
    if (prepared.f64_scale) {
      for (size_t i = 0; i < groups; ++i) {
        const uint16_t half = scalar::DoubleToHalf(prepared.Scale64(step[i]));
        std::memcpy(out + 2 * i, &half, 2);
      }
      return;
    }
  }
  HWY_DYNAMIC_DISPATCH(DoStoreF16)(step, groups, Raw(out));
}

void LoadScales(const Encoding& encoding, const std::byte* stored,
                size_t groups, float second_order_scale, float* scale) {
  for (size_t i = 0; i < groups; ++i) {
    switch (ModeTraitsOf(encoding.mode).scale_type) {
      case ElementType::kF8e8m0:
        scale[i] = std::ldexp(1.0f, static_cast<int>(stored[i]) - 127);
        break;
      case ElementType::kF8e4m3:
        scale[i] = scalar::F8e4m3ToFloat(static_cast<uint8_t>(stored[i])) *
                   second_order_scale;
        break;
      default:
        scale[i] = scalar::HalfToFloat(scalar::Load<uint16_t>(stored, i));
        break;
    }
  }
}

void StoreZeroPoints(const Encoding& encoding, const uint8_t* zero_point,
                     size_t groups, std::byte* out) {
  scalar::Pack(ModeTraitsOf(encoding.mode).code_type, zero_point, groups, out);
}

void EncodeRows(const Encoding& encoding, const void* source, size_t rows,
                size_t length, const float* step, const uint8_t* zero_point,
                std::byte* out) {
  const Prepared prepared = scalar::Prepare(encoding);
  if (!HasVectorCodes(encoding.source_type, prepared)) {
    reference::EncodeRows(encoding, source, rows, length, step, zero_point,
                          out);
    return;
  }
  // The steps are only read when they are not made here.
  HWY_DYNAMIC_DISPATCH(DoQuantizeRows)
  (encoding, prepared, scalar::StepRule(), Raw(source), rows, length, false,
   const_cast<float*>(step), const_cast<uint8_t*>(zero_point), Raw(out));
}

bool QuantizeRows(const Encoding& encoding, const void* source, size_t rows,
                  size_t length, float* step, uint8_t* zero_point,
                  std::byte* out) {
  const Prepared prepared = scalar::Prepare(encoding);
  if (!HasVectorCodes(encoding.source_type, prepared)) {
    return reference::QuantizeRows(encoding, source, rows, length, step,
                                   zero_point, out);
  }
  return HWY_DYNAMIC_DISPATCH(DoQuantizeRows)(
      encoding, prepared, scalar::StepRuleOf(encoding), Raw(source), rows,
      length, true, step, zero_point, Raw(out));
}

void EncodeColumns(const Encoding& encoding, const void* source, size_t rows,
                   size_t columns, const float* step, const uint8_t* zero_point,
                   std::byte* out) {
  const Prepared prepared = scalar::Prepare(encoding);
  if (!HasVectorCodes(encoding.source_type, prepared)) {
    reference::EncodeColumns(encoding, source, rows, columns, step, zero_point,
                             out);
    return;
  }
  std::vector<float> divisor;
  const float* divisors = step;
  if (prepared.f64_scale) {
    divisor.resize(columns);
    for (size_t i = 0; i < columns; ++i) divisor[i] = prepared.Divisor(step[i]);
    divisors = divisor.data();
  }
  std::vector<float> zero_points;
  if (zero_point != nullptr) {
    zero_points.assign(zero_point, zero_point + columns);
  }
  HWY_DYNAMIC_DISPATCH(DoEncodeColumns)
  (encoding, prepared, Raw(source), rows, columns, divisors,
   zero_point != nullptr ? zero_points.data() : nullptr, Raw(out));
}

namespace {

SquaredSums ErrorOfBlock(const Encoding& encoding, const void* source,
                         size_t rows, size_t width, bool by_column,
                         const float* scale, const uint8_t* zero_point,
                         const std::byte* codes) {
  const ElementType code_type = scalar::Prepare(encoding).code_type;
  SquaredSums sums;
  std::vector<float> weights(width);
  for (size_t row = 0; row < rows; ++row) {
    ToFloat(encoding.source_type,
            scalar::At(encoding.source_type, source, row * width), width,
            weights.data());
    for (size_t i = 0; i < width; ++i) {
      const size_t group = by_column ? i : row;
      const uint16_t code = scalar::Unpack(code_type, codes, row * width + i);
      const float value = scalar::ValueOf(
          encoding, code, zero_point != nullptr ? zero_point[group] : 0);
      const double difference =
          static_cast<double>(value * scale[group] - weights[i]);
      sums.error += difference * difference;
      sums.signal +=
          static_cast<double>(weights[i]) * static_cast<double>(weights[i]);
    }
  }
  return sums;
}

}  // namespace

SquaredSums ErrorOfRows(const Encoding& encoding, const void* source,
                        size_t rows, size_t length, const float* scale,
                        const uint8_t* zero_point, const std::byte* codes) {
  return ErrorOfBlock(encoding, source, rows, length, false, scale, zero_point,
                      codes);
}

SquaredSums ErrorOfColumns(const Encoding& encoding, const void* source,
                           size_t rows, size_t columns, const float* scale,
                           const uint8_t* zero_point, const std::byte* codes) {
  return ErrorOfBlock(encoding, source, rows, columns, true, scale, zero_point,
                      codes);
}

namespace {

void RowErrorsOf(ElementType type, const void* source, size_t length,
                 float step, float zero_point, float* out) {
  if (HasVectorLoad(type)) {
    HWY_DYNAMIC_DISPATCH(DoRowErrors)
    (type, Raw(source), length, step, zero_point, out);
    return;
  }
  for (size_t i = 0; i < length; ++i) {
    out[i] =
        scalar::Int8Error(scalar::LoadFloat(type, source, i), step, zero_point);
  }
}

}  // namespace

float ScoreRows(ElementType type, Numerics numerics, const void* source,
                size_t rows, size_t length, const float* lo, const float* hi) {
  const Encoding int8;
  float worst = 0;
  if (numerics == Numerics::kOpenVino && HasVectorLoad(type)) {
    constexpr size_t kRows = 64;  // the kernel's limit
    float step[kRows];
    float zero[kRows];
    uint8_t zero_point[kRows];
    double sum[kRows];
    for (size_t row = 0; row < rows; row += kRows) {
      const size_t count = std::min(kRows, rows - row);
      MakeSteps(int8, lo + row, hi + row, count, step, zero_point);
      std::copy(zero_point, zero_point + count, zero);
      HWY_DYNAMIC_DISPATCH(DoRowErrorSums)
      (type, Raw(scalar::At(type, source, row * length)), count, length, step,
       zero, sum);
      for (size_t i = 0; i < count; ++i) {
        const float mean =
            static_cast<float>(sum[i] / static_cast<double>(length));
        worst = mean > worst ? mean : worst;
      }
    }
    return worst;
  }
  std::vector<float> errors(length);
  for (size_t row = 0; row < rows; ++row) {
    float step = 0;
    uint8_t zero_point = 0;
    MakeSteps(int8, lo + row, hi + row, 1, &step, &zero_point);
    RowErrorsOf(type, scalar::At(type, source, row * length), length, step,
                static_cast<float>(zero_point), errors.data());
    const double sum =
        numerics == Numerics::kNumPy
            ? static_cast<double>(PairwiseSum(errors.data(), length))
            : scalar::FixedOrderSum(errors.data(), length);
    const float mean = static_cast<float>(sum / static_cast<double>(length));
    worst = mean > worst ? mean : worst;
  }
  return worst;
}

void AddColumnErrors(ElementType type, Numerics numerics, const void* source,
                     size_t rows, size_t columns, const float* lo,
                     const float* hi, double* sum) {
  const Encoding int8;
  std::vector<float> step(columns), zero(columns), errors(columns);
  std::vector<uint8_t> zero_point(columns);
  MakeSteps(int8, lo, hi, columns, step.data(), zero_point.data());
  zero.assign(zero_point.begin(), zero_point.end());
  for (size_t row = 0; row < rows; ++row) {
    const void* const at = scalar::At(type, source, row * columns);
    if (HasVectorLoad(type)) {
      HWY_DYNAMIC_DISPATCH(DoColumnErrors)
      (type, Raw(at), columns, step.data(), zero.data(), errors.data());
    } else {
      for (size_t i = 0; i < columns; ++i) {
        errors[i] =
            scalar::Int8Error(scalar::LoadFloat(type, at, i), step[i], zero[i]);
      }
    }
    if (numerics == Numerics::kNumPy) {
      for (size_t i = 0; i < columns; ++i) {
        sum[i] = static_cast<double>(static_cast<float>(sum[i]) + errors[i]);
      }
    } else {
      for (size_t i = 0; i < columns; ++i) {
        sum[i] += static_cast<double>(errors[i]);
      }
    }
  }
}

float ScoreFromColumnSums(const double* sum, size_t columns, uint64_t rows) {
  float worst = 0;
  for (size_t i = 0; i < columns; ++i) {
    const float mean = static_cast<float>(sum[i] / static_cast<double>(rows));
    worst = mean > worst ? mean : worst;
  }
  return worst;
}

double RowErrorSum(ElementType type, const void* source, size_t length,
                   float lo, float hi) {
  const Encoding int8;
  float step = 0;
  uint8_t zero_point = 0;
  MakeSteps(int8, &lo, &hi, 1, &step, &zero_point);
  constexpr size_t kBlock = 4096;
  float errors[kBlock];
  double sum = 0;
  for (size_t at = 0; at < length; at += kBlock) {
    const size_t count = std::min(kBlock, length - at);
    RowErrorsOf(type, scalar::At(type, source, at), count, step,
                static_cast<float>(zero_point), errors);
    sum += scalar::FixedOrderSum(errors, count);
  }
  return sum;
}

void ToFloat(ElementType type, const void* source, size_t count, float* out) {
  if (HasVectorLoad(type)) {
    HWY_DYNAMIC_DISPATCH(DoToFloat)(type, Raw(source), count, out);
    return;
  }
  reference::ToFloat(type, source, count, out);
}

void FromFloat(ElementType type, const float* source, size_t count, void* out) {
  char* const to = static_cast<char*>(out);
  for (size_t i = 0; i < count; ++i) {
    switch (type) {
      case ElementType::kF32:
        std::memcpy(to + 4 * i, source + i, 4);
        break;
      case ElementType::kF16: {
        const uint16_t half = scalar::FloatToHalf(source[i]);
        std::memcpy(to + 2 * i, &half, 2);
        break;
      }
      case ElementType::kBf16: {
        const uint16_t bits = scalar::FloatToBf16(source[i]);
        std::memcpy(to + 2 * i, &bits, 2);
        break;
      }
      case ElementType::kF64: {
        const double wide = source[i];
        std::memcpy(to + 8 * i, &wide, 8);
        break;
      }
      case ElementType::kF8e4m3:
        to[i] = static_cast<char>(scalar::FloatToF8e4m3(source[i]));
        break;
      case ElementType::kF8e5m2:
        to[i] = static_cast<char>(scalar::FloatToF8e5m2(source[i]));
        break;
      default:
        break;
    }
  }
}

}  // namespace ovpress
#endif  // HWY_ONCE
