// Highway kernels for f32, f16 and bf16 sources, dispatched at run time; other
// sources take the scalar reference. All targets give the reference's bits.
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "core/quant/kernels.cc"
#include "core/quant/kernels.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <vector>

#include "core/quant/scalar.h"
#include "hwy/foreach_target.h"  // must stand before highway.h
#include "hwy/highway.h"

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

template <class Load>
bool RowRange(const uint8_t* source, size_t length, float* lo, float* hi) {
  if (length == 0) {
    *lo = std::numeric_limits<float>::infinity();
    *hi = -std::numeric_limits<float>::infinity();
    return true;
  }
  typename Load::Raw ordered_lo, ordered_hi;
  OrderedRange<Load>(source, length, &ordered_lo, &ordered_hi);
  *lo = FromOrdered<Load>(ordered_lo);
  *hi = FromOrdered<Load>(ordered_hi);
  return std::isfinite(*lo) && std::isfinite(*hi);
}

// --- codes -----------------------------------------------------------------

// Rounds, clamps and shifts; one i32 code per lane.
template <scalar::CodeKind kKind>
VI Codes(VF quotient, VF zero_point, const scalar::Prepared& p) {
  const DF df;
  const DI di;
  using scalar::CodeKind;
  if constexpr (kKind == CodeKind::kAsym) {
    const VF x = hn::Add(quotient, zero_point);
    const VF low = hn::IfThenElse(hn::Gt(x, hn::Zero(df)), x, hn::Zero(df));
    return hn::NearestInt(hn::Min(low, hn::Set(df, p.top)));
  } else if constexpr (kKind == CodeKind::kSym) {
    const VF bottom = hn::Set(df, p.bottom);
    const VF low = hn::IfThenElse(hn::Gt(quotient, bottom), quotient, bottom);
    const VI code = hn::NearestInt(hn::Min(low, hn::Set(df, p.top)));
    // Two's complement in the low byte; demotion must not saturate it.
    return hn::And(hn::Add(code, hn::Set(di, p.shift)), hn::Set(di, 0xff));
  } else if constexpr (kKind == CodeKind::kNf4) {
    VI code = hn::Zero(di);
    for (const float threshold : scalar::kNf4Thresholds) {
      // A true comparison is -1.
      code = hn::Sub(
          code, hn::VecFromMask(
                    di, hn::RebindMask(
                            di, hn::Gt(quotient, hn::Set(df, threshold)))));
    }
    return code;
  } else if constexpr (kKind == CodeKind::kF4e2m1) {
    const VF m = hn::Abs(quotient);
    VI code =
        hn::And(hn::ShiftRight<28>(hn::BitCast(di, quotient)), hn::Set(di, 8));
    const auto count = [&](hn::Mask<DF> mask) {
      code = hn::Sub(code, hn::VecFromMask(di, hn::RebindMask(di, mask)));
    };
    count(hn::Gt(m, hn::Set(df, 0.25f)));
    count(hn::Ge(m, hn::Set(df, 0.75f)));
    count(hn::Gt(m, hn::Set(df, 1.25f)));
    count(hn::Ge(m, hn::Set(df, 1.75f)));
    count(hn::Gt(m, hn::Set(df, 2.5f)));
    count(hn::Ge(m, hn::Set(df, 3.5f)));
    count(hn::Gt(m, hn::Set(df, 5.0f)));
    return code;
  } else if constexpr (kKind == CodeKind::kF8e4m3) {
    const VI bits = hn::BitCast(di, quotient);
    const VI sign = hn::And(hn::ShiftRight<24>(bits), hn::Set(di, 0x80));
    VI m = hn::And(bits, hn::Set(di, 0x7fffffff));
    // To f16's eleven bits first. Values below f16's normal range end as 0
    // whichever way they are rounded.
    m = hn::Add(m, hn::Add(hn::Set(di, 0xfff),
                           hn::And(hn::ShiftRight<13>(m), hn::Set(di, 1))));
    m = hn::AndNot(hn::Set(di, 0x1fff), m);
    const VI rounded =
        hn::Add(m, hn::Add(hn::Set(di, 0x7ffff),
                           hn::And(hn::ShiftRight<20>(m), hn::Set(di, 1))));
    const VI normal =
        hn::Min(hn::Sub(hn::ShiftRight<20>(rounded), hn::Set(di, 120 << 3)),
                hn::Set(di, 0x7f));
    const VF magnitude = hn::BitCast(df, m);
    const VI subnormal = hn::NearestInt(
        hn::Mul(hn::Min(magnitude, hn::Set(df, 1.0f)), hn::Set(df, 512.0f)));
    const VI code =
        hn::IfThenElse(hn::Lt(m, hn::Set(di, 0x3c800000)), subnormal, normal);
    return hn::Or(code, sign);
  } else {
    VI code = hn::Zero(di);
    for (const float threshold : p.midpoints_f32) {
      code = hn::Sub(
          code, hn::VecFromMask(
                    di, hn::RebindMask(
                            di, hn::Gt(quotient, hn::Set(df, threshold)))));
    }
    return code;
  }
}

HWY_INLINE void StoreCodes(VI codes, uint8_t* out) {
  const hn::Rebind<uint8_t, DI> d8;
  hn::StoreU(hn::DemoteTo(d8, codes), d8, out);
}

// Unpacked codes of one row with one divisor.
template <class Load, scalar::CodeKind kKind>
void RowCodes(const uint8_t* source, size_t length, float divisor,
              uint8_t zero_point, const scalar::Prepared& p, uint8_t* out) {
  const DF df;
  const size_t n = hn::Lanes(df);
  const VF vdivisor = hn::Set(df, divisor);
  const VF vzero = hn::Set(df, static_cast<float>(zero_point));
  size_t i = 0;
  for (; i + n <= length; i += n) {
    const VF x = hn::Div(Load::Vector(source + i * Load::kSize), vdivisor);
    StoreCodes(Codes<kKind>(x, vzero, p), out + i);
  }
  for (; i < length; ++i) {
    out[i] = static_cast<uint8_t>(scalar::CodeOf(
        p, Load::One(source + i * Load::kSize), divisor, zero_point));
  }
}

// Unpacked codes of one row of columns: a divisor for each.
template <class Load, scalar::CodeKind kKind>
void ColumnCodes(const uint8_t* source, size_t columns, const float* divisor,
                 const float* zero_point, const scalar::Prepared& p,
                 uint8_t* out) {
  const DF df;
  const size_t n = hn::Lanes(df);
  size_t i = 0;
  for (; i + n <= columns; i += n) {
    const VF x = hn::Div(Load::Vector(source + i * Load::kSize),
                         hn::LoadU(df, divisor + i));
    const VF zero = kKind == scalar::CodeKind::kAsym
                        ? hn::LoadU(df, zero_point + i)
                        : hn::Zero(df);
    StoreCodes(Codes<kKind>(x, zero, p), out + i);
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

// Eight 3-bit or 2-bit codes at a time in one 64-bit word.
void PackTwoBits(const uint8_t* codes, size_t count, uint8_t* out) {
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t word = scalar::Load<uint64_t>(codes + i, 0) & 0x0303030303030303u;
    word = (word | word >> 6) & 0x000f000f000f000fu;
    word = (word | word >> 12) & 0x000000ff000000ffu;
    out[i / 4] = static_cast<uint8_t>(word);
    out[i / 4 + 1] = static_cast<uint8_t>(word >> 32);
  }
  scalar::Pack(ElementType::kU2, codes + i, count - i,
               reinterpret_cast<std::byte*>(out + i / 4));
}

void PackThreeBits(const uint8_t* codes, size_t count, uint8_t* out) {
  size_t i = 0;
  uint8_t* at = out;
  for (; i + 8 <= count; i += 8, at += 3) {
    const uint64_t word = scalar::Load<uint64_t>(codes + i, 0);
    // Low two bits, first element highest: gather bytes 0-3 and 4-7.
    const uint64_t low = word & 0x0303030303030303u;
    const auto four = [](uint32_t x) {
      return static_cast<uint8_t>(x << 6 | x >> 4 | x >> 14 | x >> 24);
    };
    at[0] = four(static_cast<uint32_t>(low));
    at[1] = four(static_cast<uint32_t>(low >> 32));
    // Top bits: bit 0 of byte k goes to bit 7 - k.
    const uint64_t top = word >> 2 & 0x0101010101010101u;
    at[2] = static_cast<uint8_t>(top * 0x8040201008040201u >> 56);
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
  void Finish() {
    if (used_ > 0) Flush();
  }

 private:
  void Flush() {
    PackCodesTo(type_, buffer_, used_, out_);
    // Only the last flush is not full, and full ones end on a byte.
    out_ += *PackedSizeBytes(type_, used_);
    used_ = 0;
  }
  static constexpr size_t kCapacity = 4096;

  const bool direct_;
  const ElementType type_;
  uint8_t* out_;
  size_t used_ = 0;
  // Vector stores may run past the last code of a part.
  HWY_ALIGN uint8_t buffer_[kCapacity + HWY_MAX_BYTES];
};

// --- entry points ----------------------------------------------------------

template <class Load, scalar::CodeKind kKind>
bool QuantizeRowsOf(const Encoding& encoding, const scalar::Prepared& p,
                    const uint8_t* source, size_t rows, size_t length,
                    bool make_steps, float* step, uint8_t* zero_point,
                    uint8_t* out) {
  Packer packer(p.code_type, out);
  bool finite = true;
  for (size_t row = 0; row < rows; ++row) {
    const uint8_t* const at = source + row * length * Load::kSize;
    if (make_steps) {
      float lo, hi;
      finite &= RowRange<Load>(at, length, &lo, &hi);
      MakeSteps(encoding, &lo, &hi, 1, step + row,
                zero_point != nullptr ? zero_point + row : nullptr);
    }
    const float divisor = p.Divisor(step[row]);
    const uint8_t zero = zero_point != nullptr ? zero_point[row] : uint8_t{0};
    packer.Row(length, [&](uint8_t* codes, size_t from, size_t count) {
      RowCodes<Load, kKind>(at + from * Load::kSize, count, divisor, zero, p,
                            codes);
    });
  }
  packer.Finish();
  return finite;
}

template <class Load, scalar::CodeKind kKind>
void EncodeColumnsOf(const scalar::Prepared& p, const uint8_t* source,
                     size_t rows, size_t columns, const float* divisor,
                     const float* zero_point, uint8_t* out) {
  Packer packer(p.code_type, out);
  for (size_t row = 0; row < rows; ++row) {
    const uint8_t* const at = source + row * columns * Load::kSize;
    packer.Row(columns, [&](uint8_t* codes, size_t from, size_t count) {
      ColumnCodes<Load, kKind>(
          at + from * Load::kSize, count, divisor + from,
          zero_point != nullptr ? zero_point + from : nullptr, p, codes);
    });
  }
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
    for (size_t row = 0; row < rows; ++row) {
      finite &= RowRange<Load>(source + row * length * Load::kSize, length,
                               lo + row, hi + row);
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
                    const uint8_t* source, size_t rows, size_t length,
                    bool make_steps, float* step, uint8_t* zero_point,
                    uint8_t* out) {
  return WithLoad(encoding.source_type, [&](auto load) {
    using Load = decltype(load);
    return WithKind<Load>(p.kind, [&](auto kind) {
      return QuantizeRowsOf<Load, decltype(kind)::value>(
          encoding, p, source, rows, length, make_steps, step, zero_point, out);
    });
  });
}

void DoEncodeColumns(const Encoding& encoding, const scalar::Prepared& p,
                     const uint8_t* source, size_t rows, size_t columns,
                     const float* divisor, const float* zero_point,
                     uint8_t* out) {
  WithLoad(encoding.source_type, [&](auto load) {
    using Load = decltype(load);
    WithKind<Load>(p.kind, [&](auto kind) {
      EncodeColumnsOf<Load, decltype(kind)::value>(p, source, rows, columns,
                                                   divisor, zero_point, out);
    });
  });
}

// e of each weight of a row under int8_asym, to out.
template <class Load>
void RowErrors(const uint8_t* source, size_t length, float step,
               float zero_point, float* out) {
  const DF df;
  const size_t n = hn::Lanes(df);
  const VF vstep = hn::Set(df, step);
  const VF vzero = hn::Set(df, zero_point);
  size_t i = 0;
  for (; i + n <= length; i += n) {
    const VF w = Load::Vector(source + i * Load::kSize);
    const VF x = hn::Add(hn::Div(w, vstep), vzero);
    const VF low = hn::IfThenElse(hn::Gt(x, hn::Zero(df)), x, hn::Zero(df));
    const VF q = hn::Round(hn::Min(low, hn::Set(df, 255.0f)));
    const VF d = hn::Sub(hn::Mul(hn::Sub(q, vzero), vstep), w);
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
    RowErrors<decltype(load)>(source, length, step, zero_point, out);
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

}  // namespace HWY_NAMESPACE
}  // namespace ovpress
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ovpress {

HWY_EXPORT(DoRangeOfRows);
HWY_EXPORT(DoRangeOfColumns);
HWY_EXPORT(DoQuantizeRows);
HWY_EXPORT(DoEncodeColumns);
HWY_EXPORT(DoRowErrors);
HWY_EXPORT(DoColumnErrors);
HWY_EXPORT(DoToFloat);

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

namespace {

// The exponent of an MX scale: ceil(log2 t), with the logarithm that the path
// takes, which matters next to powers of two.
int MxExponent(Numerics numerics, float t) {
  float exponent = 0;
  if (numerics == Numerics::kNumPy) {
    exponent = std::ceil(static_cast<float>(std::log2(static_cast<double>(t))));
  } else {
    const float ln = static_cast<float>(std::log(static_cast<double>(t)));
    // log2(e) as f32, 0x3FB8AA3B.
    exponent = std::ceil(ln * 1.44269502f);
  }
  // NaN has no integer; it is refused later, or taken like an infinity.
  if (std::isnan(exponent)) return 127;
  return static_cast<int>(std::clamp(exponent, -127.0f, 127.0f));
}

// A logarithm for every 32 weights would cost more than the weights do. Both
// functions are monotone steps, so the largest t of each exponent says it all;
// the tables are made from the functions themselves, once.
class MxThresholds {
 public:
  explicit MxThresholds(Numerics numerics) {
    for (int e = kMin; e <= kMax; ++e) {
      // Bits of positive floats order like the floats: bisect.
      uint32_t low = 1;             // MxExponent <= e, or none is
      uint32_t high = 0x7f800000u;  // infinity: above
      if (MxExponent(numerics, std::bit_cast<float>(low)) > e) {
        largest_[static_cast<size_t>(e - kMin)] = 0.0f;
        continue;
      }
      while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        (MxExponent(numerics, std::bit_cast<float>(middle)) <= e ? low : high) =
            middle;
      }
      largest_[static_cast<size_t>(e - kMin)] = std::bit_cast<float>(low);
    }
  }

  // 2^MxExponent(t). REQUIRES: t > 0.
  float Step(float t) const {
    const int guess =
        static_cast<int>(std::bit_cast<uint32_t>(t) >> 23) - 127 - 1;
    int e = std::clamp(guess, kMin, kMax);
    while (e < kMax && t > largest_[static_cast<size_t>(e - kMin)]) ++e;
    return e == -127
               ? 0x1p-127f
               : std::bit_cast<float>(static_cast<uint32_t>(e + 127) << 23);
  }

 private:
  static constexpr int kMin = -127;
  static constexpr int kMax = 127;
  std::array<float, kMax - kMin + 1> largest_{};
};

float MxStep(Numerics numerics, float t) {
  static const MxThresholds* const numpy = new MxThresholds(Numerics::kNumPy);
  static const MxThresholds* const openvino =
      new MxThresholds(Numerics::kOpenVino);
  if (!std::isfinite(t)) return std::ldexp(1.0f, MxExponent(numerics, t));
  return (numerics == Numerics::kNumPy ? numpy : openvino)->Step(t);
}

float FloatModeMax(Mode mode) {
  switch (mode) {
    case Mode::kFp4:
    case Mode::kMxfp4:
    case Mode::kNvfp4:
      return 6.0f;
    case Mode::kFp8E4m3:
    case Mode::kMxfp8E4m3:
      return 448.0f;
    default:
      return 1.0f;
  }
}

// max|w| to the scale of a float mode (row "t" of the note's table).
float FloatStep(float magnitude, float max_value, Numerics numerics,
                bool divide) {
  if (numerics == Numerics::kOpenVino) {
    const float t = magnitude < scalar::kEps ? scalar::kEps : magnitude;
    return divide ? t / max_value : t;
  }
  const float t = divide ? magnitude / max_value : magnitude;
  return t < scalar::kEps ? scalar::kEps : t;
}

}  // namespace

void MakeSteps(const Encoding& encoding, const float* lo, const float* hi,
               size_t groups, float* step, uint8_t* zero_point) {
  const ModeTraits& traits = ModeTraitsOf(encoding.mode);
  switch (encoding.mode) {
    case Mode::kInt8Asym:
    case Mode::kInt4Asym: {
      const float levels = static_cast<float>((1 << traits.bits) - 1);
      for (size_t i = 0; i < groups; ++i) {
        const float low = lo[i] < 0.0f ? lo[i] : 0.0f;
        const float high = hi[i] > 0.0f ? hi[i] : 0.0f;
        float s = (high - low) / levels;
        if (std::fabs(s) < scalar::kEps) s = scalar::kEps;
        const float z = 0.0f - std::nearbyint(low / s);
        step[i] = s;
        // A NaN (infinite range over infinite step) counts as 0.
        zero_point[i] =
            static_cast<uint8_t>(z > 0.0f ? (z < levels ? z : levels) : 0.0f);
      }
      return;
    }
    case Mode::kInt8Sym:
    case Mode::kInt4Sym:
    case Mode::kInt3Sym:
    case Mode::kInt2Sym: {
      const float half = static_cast<float>(1 << (traits.bits - 1));
      for (size_t i = 0; i < groups; ++i) {
        // The scale is signed: the extreme of larger magnitude maps to -half.
        const float a = std::fabs(lo[i]);
        float s = (a >= hi[i] ? a : -hi[i]) / half;
        if (lo[i] > hi[i]) s = 0.0f;  // an empty group
        if (std::fabs(s) < scalar::kEps) s = scalar::kEps;
        step[i] = s;
      }
      return;
    }
    default:
      break;
  }
  const Codebook* const table = encoding.codebook;
  const bool is_table =
      encoding.mode == Mode::kCb4 || encoding.mode == Mode::kCodebook;
  const bool f64_scale = is_table && scalar::Prepare(encoding).f64_scale;
  for (size_t i = 0; i < groups; ++i) {
    const float a = std::fabs(lo[i]);
    const float b = std::fabs(hi[i]);
    const float magnitude = lo[i] > hi[i] ? 0.0f : (a > b ? a : b);
    if (f64_scale) {
      step[i] = magnitude;  // see Prepared::f64_scale
    } else if (is_table) {
      const float table_max = static_cast<float>(std::max(
          std::fabs(table->values.front()), std::fabs(table->values.back())));
      step[i] = FloatStep(magnitude, table_max, Numerics::kNumPy, true);
    } else {
      step[i] = FloatStep(magnitude, FloatModeMax(encoding.mode),
                          encoding.numerics, encoding.mode != Mode::kNf4);
      if (encoding.mode == Mode::kMxfp4 || encoding.mode == Mode::kMxfp8E4m3) {
        step[i] = MxStep(encoding.numerics, step[i]);
      }
    }
  }
}

float MakeSecondOrderScale(float largest_group_scale, uint64_t group_count) {
  return FloatStep(largest_group_scale, 448.0f,
                   group_count >= kOpenVinoPathMinElements ? Numerics::kOpenVino
                                                           : Numerics::kNumPy,
                   true);
}

void StoreScales(const Encoding& encoding, const float* step, size_t groups,
                 float second_order_scale, std::byte* out) {
  switch (ModeTraitsOf(encoding.mode).scale_type) {
    case ElementType::kF8e8m0:
      for (size_t i = 0; i < groups; ++i) {
        int exponent = 0;
        std::frexp(step[i], &exponent);  // step = 0.5 * 2^exponent
        out[i] = static_cast<std::byte>(exponent - 1 + 127);
      }
      return;
    case ElementType::kF8e4m3:
      for (size_t i = 0; i < groups; ++i) {
        out[i] = static_cast<std::byte>(
            scalar::FloatToF8e4m3(step[i] / second_order_scale));
      }
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
  for (size_t i = 0; i < groups; ++i) {
    const uint16_t half = scalar::FloatToHalf(step[i]);
    std::memcpy(out + 2 * i, &half, 2);
  }
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
  (encoding, prepared, Raw(source), rows, length, false,
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
  return HWY_DYNAMIC_DISPATCH(DoQuantizeRows)(encoding, prepared, Raw(source),
                                              rows, length, true, step,
                                              zero_point, Raw(out));
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
  std::vector<float> errors(length);
  float worst = 0;
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
