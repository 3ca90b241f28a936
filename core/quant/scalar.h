// Scalar conversions and the arithmetic of one weight: what the reference
// loops over and what vector code falls back to. Internal to core/quant.
#ifndef OVPRESS_CORE_QUANT_SCALAR_H_
#define OVPRESS_CORE_QUANT_SCALAR_H_

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "core/quant/kernels.h"

namespace ovpress::scalar {

inline constexpr float kEps = 1.1920929e-07f;  // 2^-23

template <typename T>
T Load(const void* bytes, size_t index) {
  T value;
  std::memcpy(&value, static_cast<const char*>(bytes) + index * sizeof(T),
              sizeof(T));
  return value;
}

inline float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) {  // infinity, NaN
    return std::bit_cast<float>(sign | 0x7f800000u |
                                (magnitude & 0x3ffu) << 13);
  }
  if (magnitude >= 0x400u) {
    return std::bit_cast<float>(sign | ((magnitude << 13) + (112u << 23)));
  }
  // Zero and subnormals: units of 2^-24, exact in f32.
  const float value = static_cast<float>(magnitude) * 0x1p-24f;
  return sign != 0 ? -value : value;
}

// Round to nearest even; 65520 and above give infinity.
inline uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>(bits >> 16 & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude >= 0x38800000u) {  // normal: 2^-14 and above
    const uint32_t rounded =
        magnitude + 0xfffu + (magnitude >> 13 & 1u) - (112u << 23);
    return static_cast<uint16_t>(sign | rounded >> 13);
  }
  // Units of 2^-24; the product is exact, the default rounding is to even.
  const float units = std::bit_cast<float>(magnitude) * 0x1p24f;
  return static_cast<uint16_t>(sign |
                               static_cast<uint16_t>(std::nearbyint(units)));
}

// The same from f64 in one rounding.
inline uint16_t DoubleToHalf(double value) {
  const uint16_t sign = std::signbit(value) ? 0x8000u : 0;
  const double magnitude = std::fabs(value);
  if (std::isnan(value)) return static_cast<uint16_t>(sign | 0x7e00u);
  if (magnitude >= 65520.0) return static_cast<uint16_t>(sign | 0x7c00u);
  if (magnitude < 0x1p-14) {
    return static_cast<uint16_t>(
        sign | static_cast<uint16_t>(std::nearbyint(magnitude * 0x1p24)));
  }
  int exponent = 0;
  const double fraction = std::frexp(magnitude, &exponent);  // [0.5, 1)
  const double units = std::nearbyint(fraction * 2048.0);    // [1024, 2048]
  const uint32_t mantissa = static_cast<uint32_t>(units);
  const uint32_t biased = static_cast<uint32_t>(exponent - 1 + 15);
  return static_cast<uint16_t>(sign | ((biased << 10) + (mantissa - 1024u)));
}

inline float Bf16ToFloat(uint16_t bits) {
  return std::bit_cast<float>(static_cast<uint32_t>(bits) << 16);
}
inline uint16_t FloatToBf16(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>(bits >> 16 | 0x40u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float F8e4m3ToFloat(uint8_t code) {
  const float sign = (code & 0x80u) != 0 ? -1.0f : 1.0f;
  const int exponent = code >> 3 & 15;
  const int mantissa = code & 7;
  if (exponent == 15 && mantissa == 7) {
    return std::bit_cast<float>((code & 0x80u) != 0 ? 0xffc00000u
                                                    : 0x7fc00000u);
  }
  if (exponent == 0) return sign * static_cast<float>(mantissa) * 0x1p-9f;
  return sign *
         std::ldexp(1.0f + static_cast<float>(mantissa) / 8.0f, exponent - 7);
}

// First to f16, then to f8e4m3, each to nearest even: OpenVINO's conversion.
// Above 464 (in f16): NaN, 0x7f with the sign.
inline uint8_t FloatToF8e4m3(float value) {
  const float half = HalfToFloat(FloatToHalf(value));
  const uint32_t bits = std::bit_cast<uint32_t>(half);
  const uint8_t sign = static_cast<uint8_t>(bits >> 24 & 0x80u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t code = 0;
  if (magnitude >= 0x3c800000u) {  // 2^-6: normal
    const uint32_t rounded = magnitude + 0x7ffffu + (magnitude >> 20 & 1u);
    code = std::min((rounded >> 20) - (120u << 3), 0x7fu);
  } else {
    code = static_cast<uint32_t>(
        std::nearbyint(std::bit_cast<float>(magnitude) * 512.0f));
  }
  return static_cast<uint8_t>(sign | code);
}

inline float F8e5m2ToFloat(uint8_t code) {
  return HalfToFloat(static_cast<uint16_t>(code << 8));
}
inline uint8_t FloatToF8e5m2(float value) {
  const uint16_t half = FloatToHalf(value);
  if ((half & 0x7fffu) > 0x7c00u) return static_cast<uint8_t>(half >> 8 | 2u);
  return static_cast<uint8_t>((half + 0x7fu + (half >> 8 & 1u)) >> 8);
}

// 0 to 7 for 0, .5, 1, 1.5, 2, 3, 4, 6: nearest, ties to the even code;
// saturates.
inline uint8_t FloatToF4e2m1(float value) {
  const float m = std::fabs(value);
  const int code = (m > 0.25f) + (m >= 0.75f) + (m > 1.25f) + (m >= 1.75f) +
                   (m > 2.5f) + (m >= 3.5f) + (m > 5.0f);
  return static_cast<uint8_t>((std::signbit(value) ? 8 : 0) | code);
}
inline constexpr float kF4e2m1Values[] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6};

inline constexpr float kNf4Thresholds[] = {
    -0.84809643f, -0.6106329f,   -0.45999527f, -0.33967942f, -0.2346074f,
    -0.13791174f, -0.045525018f, 0.03979015f,  0.120255254f, 0.20352125f,
    0.29201376f,  0.38931254f,   0.5016634f,   0.6427869f,   0.8614784f};
inline constexpr float kNf4Values[] = {
    -1.0f,        -0.6961928f,  -0.52507305f,  -0.3949175f,
    -0.28444138f, -0.18477343f, -0.091050036f, 0.0f,
    0.0795803f,   0.1609302f,   0.2461123f,    0.33791524f,
    0.44070983f,  0.562617f,    0.72295684f,   1.0f};

inline uint8_t FloatToNf4(float value) {
  int code = 0;
  for (const float threshold : kNf4Thresholds) code += value > threshold;
  return static_cast<uint8_t>(code);
}

inline float LoadFloat(ElementType type, const void* source, size_t index) {
  switch (type) {
    case ElementType::kF32:
      return Load<float>(source, index);
    case ElementType::kF16:
      return HalfToFloat(Load<uint16_t>(source, index));
    case ElementType::kBf16:
      return Bf16ToFloat(Load<uint16_t>(source, index));
    case ElementType::kF64:
      return static_cast<float>(Load<double>(source, index));
    case ElementType::kF8e4m3:
      return F8e4m3ToFloat(Load<uint8_t>(source, index));
    case ElementType::kF8e5m2:
      return F8e5m2ToFloat(Load<uint8_t>(source, index));
    default:
      return 0;
  }
}

inline size_t SizeOf(ElementType type) {
  return static_cast<size_t>(BitsPerElement(type)) / 8;
}
inline const void* At(ElementType type, const void* source, size_t index) {
  return static_cast<const char*>(source) + index * SizeOf(type);
}

// How a code is made from a quotient.
enum class CodeKind : uint8_t {
  kAsym,  // clamp(rne(x + z), 0, top)
  kSym,   // clamp(rne(x), bottom, top) + shift
  kNf4,
  kF4e2m1,
  kF8e4m3,
  kCodebook,  // number of midpoints below x
};

// An Encoding made ready for loops.
struct Prepared {
  CodeKind kind = CodeKind::kAsym;
  ElementType code_type = ElementType::kU8;
  float bottom = 0;
  float top = 255;
  int shift = 0;  // int2, int3: stored code = q + shift
  // Codebook: midpoints between neighbours as the comparison sees them. Double
  // holds those of every table type exactly.
  std::vector<double> midpoints;
  std::vector<float> midpoints_f32;  // rounded down to f32: x > m as before
  // An f64 table makes the scale f64: `step` then holds max|w| itself.
  bool f64_scale = false;
  double table_max = 1;

  // The f32 divisor of a group.
  float Divisor(float step) const {
    return f64_scale ? static_cast<float>(Scale64(step)) : step;
  }
  double Scale64(float step) const {
    const double scale = static_cast<double>(step) / table_max;
    return std::fabs(scale) < kEps ? kEps : scale;
  }
};
Prepared Prepare(const Encoding& encoding);

// How a step is made from a range.
enum class StepKind : uint8_t {
  kAsym,       // (max(hi, 0) - min(lo, 0)) / range, and a zero point
  kSym,        // the extreme of larger magnitude / range, signed
  kFloat,      // max|w| / range
  kMx,         // that, to the next power of two
  kMagnitude,  // max|w|; see Prepared::f64_scale
};
struct StepRule {
  StepKind kind = StepKind::kAsym;
  float range = 1;
  // kFloat, kMx: the OpenVINO path raises max|w| to EPS before the division,
  // NumPy's the quotient after it.
  bool clamp_first = false;
  bool divide = true;
  // kMx: the largest quotient of each biased exponent, kMxThresholds of them.
  const float* mx_largest = nullptr;
};
inline constexpr size_t kMxThresholds = 258;  // three may be read from 255 on
StepRule StepRuleOf(const Encoding& encoding);

// The code of one weight, unpacked; 16 bits only for large codebooks.
uint16_t CodeOf(const Prepared& prepared, float weight, float divisor,
                uint8_t zero_point);
// What a code stands for, before the scale.
float ValueOf(const Encoding& encoding, uint16_t code, uint8_t zero_point);

// Packs unpacked codes from bit 0 of out on; see EncodeRows.
void Pack(ElementType code_type, const uint8_t* codes, size_t count,
          std::byte* out);
uint16_t Unpack(ElementType code_type, const std::byte* packed, size_t index);

// Eight f64 accumulators, added in a fixed tree.
double FixedOrderSum(const float* values, size_t count);

// e = fl32((d - w)^2) of one weight under int8_asym.
inline float Int8Error(float weight, float step, float zero_point) {
  const float x = weight / step + zero_point;
  const float clamped = x > 0.0f ? (x < 255.0f ? x : 255.0f) : 0.0f;
  const float decompressed = (std::nearbyint(clamped) - zero_point) * step;
  const float difference = decompressed - weight;
  return difference * difference;
}

}  // namespace ovpress::scalar

#endif  // OVPRESS_CORE_QUANT_SCALAR_H_
