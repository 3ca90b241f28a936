// The plain scalar versions: written to be read, and the oracle of the tests.
#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <limits>

#include "core/base/check.h"
#include "core/quant/kernels.h"
#include "core/quant/scalar.h"

namespace ovpress {
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
// the tables are made from the functions themselves, once. By biased exponent:
// [0] is that of 2^-127.
class MxThresholds {
 public:
  explicit MxThresholds(Numerics numerics) {
    largest_.fill(std::numeric_limits<float>::infinity());
    for (int e = kMin; e < kMax; ++e) {
      // Bits of positive floats order like the floats: bisect.
      uint32_t low = 1;             // MxExponent <= e, or none is
      uint32_t high = 0x7f800000u;  // infinity: above
      float& largest = largest_[static_cast<size_t>(e - kMin)];
      if (MxExponent(numerics, std::bit_cast<float>(low)) > e) {
        largest = 0.0f;
        continue;
      }
      while (high - low > 1) {
        const uint32_t middle = low + (high - low) / 2;
        (MxExponent(numerics, std::bit_cast<float>(middle)) <= e ? low : high) =
            middle;
      }
      largest = std::bit_cast<float>(low);
    }
  }
  const float* largest() const { return largest_.data(); }

 private:
  static constexpr int kMin = -127;
  static constexpr int kMax = 127;
  std::array<float, scalar::kMxThresholds> largest_{};
};

const float* MxLargest(Numerics numerics) {
  static const MxThresholds* const numpy = new MxThresholds(Numerics::kNumPy);
  static const MxThresholds* const openvino =
      new MxThresholds(Numerics::kOpenVino);
  return (numerics == Numerics::kNumPy ? numpy : openvino)->largest();
}

float MxStep(Numerics numerics, float t) {
  return std::ldexp(1.0f, MxExponent(numerics, t));
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

float TableMax(const Codebook& table) {
  return static_cast<float>(std::max(std::fabs(table.values.front()),
                                     std::fabs(table.values.back())));
}

}  // namespace

namespace scalar {

Prepared Prepare(const Encoding& encoding) {
  Prepared prepared;
  const ModeTraits& traits = ModeTraitsOf(encoding.mode);
  prepared.code_type = traits.code_type;
  switch (encoding.mode) {
    case Mode::kInt8Asym:
    case Mode::kInt4Asym:
      prepared.kind = CodeKind::kAsym;
      prepared.top = static_cast<float>((1 << traits.bits) - 1);
      break;
    case Mode::kInt8Sym:
    case Mode::kInt4Sym:
    case Mode::kInt3Sym:
    case Mode::kInt2Sym: {
      const int half = 1 << (traits.bits - 1);
      prepared.kind = CodeKind::kSym;
      prepared.bottom = static_cast<float>(-half);
      prepared.top = static_cast<float>(half - 1);
      prepared.shift = traits.scalar_zero_point ? half : 0;
      break;
    }
    case Mode::kNf4:
      prepared.kind = CodeKind::kNf4;
      break;
    case Mode::kFp4:
    case Mode::kMxfp4:
    case Mode::kNvfp4:
      prepared.kind = CodeKind::kF4e2m1;
      break;
    case Mode::kFp8E4m3:
    case Mode::kMxfp8E4m3:
      prepared.kind = CodeKind::kF8e4m3;
      break;
    case Mode::kCb4:
    case Mode::kCodebook: {
      OVPRESS_CHECK(encoding.codebook != nullptr);
      const Codebook& table = *encoding.codebook;
      prepared.kind = CodeKind::kCodebook;
      prepared.code_type = table.index_type();
      // NumPy takes 0.5 * (a + b) in the table's own type; integers go to f64.
      for (size_t i = 0; i + 1 < table.values.size(); ++i) {
        const double a = table.values[i];
        const double b = table.values[i + 1];
        double middle = 0.5 * (a + b);
        if (table.type == ElementType::kF16) {
          const float sum = HalfToFloat(
              FloatToHalf(static_cast<float>(a) + static_cast<float>(b)));
          middle = HalfToFloat(FloatToHalf(0.5f * sum));
        } else if (IsFloatingPoint(table.type) &&
                   table.type != ElementType::kF64) {
          middle = 0.5f * (static_cast<float>(a) + static_cast<float>(b));
        }
        prepared.midpoints.push_back(middle);
        // For an f32 x: x > m exactly if x > the largest f32 not above m.
        float narrow = static_cast<float>(middle);
        if (static_cast<double>(narrow) > middle) {
          narrow =
              std::nextafter(narrow, -std::numeric_limits<float>::infinity());
        }
        prepared.midpoints_f32.push_back(narrow);
      }
      prepared.table_max = std::max(std::fabs(table.values.front()),
                                    std::fabs(table.values.back()));
      prepared.f64_scale =
          table.type == ElementType::kF64 || table.type == ElementType::kI32 ||
          table.type == ElementType::kU32 || table.type == ElementType::kI64;
      break;
    }
  }
  return prepared;
}

StepRule StepRuleOf(const Encoding& encoding) {
  StepRule rule;
  const ModeTraits& traits = ModeTraitsOf(encoding.mode);
  switch (encoding.mode) {
    case Mode::kInt8Asym:
    case Mode::kInt4Asym:
      rule.kind = StepKind::kAsym;
      rule.range = static_cast<float>((1 << traits.bits) - 1);
      break;
    case Mode::kInt8Sym:
    case Mode::kInt4Sym:
    case Mode::kInt3Sym:
    case Mode::kInt2Sym:
      rule.kind = StepKind::kSym;
      rule.range = static_cast<float>(1 << (traits.bits - 1));
      break;
    case Mode::kCb4:
    case Mode::kCodebook:
      // A table's divisor is NumPy's whatever the size of the weight.
      rule.kind =
          Prepare(encoding).f64_scale ? StepKind::kMagnitude : StepKind::kFloat;
      rule.range = TableMax(*encoding.codebook);
      break;
    default:
      rule.kind =
          encoding.mode == Mode::kMxfp4 || encoding.mode == Mode::kMxfp8E4m3
              ? StepKind::kMx
              : StepKind::kFloat;
      rule.range = FloatModeMax(encoding.mode);
      rule.divide = encoding.mode != Mode::kNf4;
      rule.clamp_first = encoding.numerics == Numerics::kOpenVino;
      if (rule.kind == StepKind::kMx) {
        rule.mx_largest = MxLargest(encoding.numerics);
      }
      break;
  }
  return rule;
}

uint16_t CodeOf(const Prepared& p, float weight, float divisor,
                uint8_t zero_point) {
  const float quotient = weight / divisor;
  switch (p.kind) {
    case CodeKind::kAsym: {
      // Rounding is monotone and the bounds are integers, so clamping first
      // gives the same code and keeps the conversion in range.
      const float x = quotient + static_cast<float>(zero_point);
      const float clamped = x > 0.0f ? (x < p.top ? x : p.top) : 0.0f;
      return static_cast<uint16_t>(std::nearbyint(clamped));
    }
    case CodeKind::kSym: {
      const float clamped = quotient > p.bottom
                                ? (quotient < p.top ? quotient : p.top)
                                : p.bottom;
      const int code = static_cast<int>(std::nearbyint(clamped)) + p.shift;
      return static_cast<uint16_t>(code & 0xff);
    }
    case CodeKind::kNf4:
      return FloatToNf4(quotient);
    case CodeKind::kF4e2m1:
      return FloatToF4e2m1(quotient);
    case CodeKind::kF8e4m3:
      return FloatToF8e4m3(quotient);
    case CodeKind::kCodebook: {
      const auto found = std::lower_bound(p.midpoints_f32.begin(),
                                          p.midpoints_f32.end(), quotient);
      return static_cast<uint16_t>(found - p.midpoints_f32.begin());
    }
  }
  return 0;
}

float ValueOf(const Encoding& encoding, uint16_t code, uint8_t zero_point) {
  switch (encoding.mode) {
    case Mode::kInt8Asym:
    case Mode::kInt4Asym:
      return static_cast<float>(static_cast<int>(code) -
                                static_cast<int>(zero_point));
    case Mode::kInt8Sym:
      return static_cast<float>(static_cast<int8_t>(code));
    case Mode::kInt4Sym:
      return static_cast<float>(code < 8 ? code : code - 16);
    case Mode::kInt3Sym:
      return static_cast<float>(static_cast<int>(code) - 4);
    case Mode::kInt2Sym:
      return static_cast<float>(static_cast<int>(code) - 2);
    case Mode::kNf4:
      return kNf4Values[code & 15];
    case Mode::kFp4:
    case Mode::kMxfp4:
    case Mode::kNvfp4: {
      const float value = kF4e2m1Values[code & 7];
      return (code & 8) != 0 ? -value : value;
    }
    case Mode::kFp8E4m3:
    case Mode::kMxfp8E4m3:
      return F8e4m3ToFloat(static_cast<uint8_t>(code));
    case Mode::kCb4:
    case Mode::kCodebook:
      return static_cast<float>(encoding.codebook->values[code]);
  }
  return 0;
}

void Pack(ElementType code_type, const uint8_t* codes, size_t count,
          std::byte* out) {
  if (count == 0) return;  // pointers may be null then
  switch (code_type) {
    case ElementType::kU2:
      for (size_t i = 0; i < count; i += 4) {
        unsigned byte = 0;
        for (size_t k = 0; k < 4 && i + k < count; ++k) {
          byte |= static_cast<unsigned>(codes[i + k] & 3) << (2 * k);
        }
        out[i / 4] = static_cast<std::byte>(byte);
      }
      return;
    case ElementType::kU3:
      // Bytes 0 and 1: the low two bits of elements 0-3 and 4-7, the first in
      // the highest bits; byte 2: the top bits, element 0 in bit 7.
      for (size_t i = 0; i < count; i += 8) {
        unsigned bytes[3] = {0, 0, 0};
        for (size_t k = 0; k < 8 && i + k < count; ++k) {
          const unsigned code = codes[i + k];
          bytes[k / 4] |= (code & 3u) << (6 - 2 * (k % 4));
          bytes[2] |= (code >> 2 & 1u) << (7 - k);
        }
        for (size_t k = 0; k < 3; ++k) {
          out[i / 8 * 3 + k] = static_cast<std::byte>(bytes[k]);
        }
      }
      return;
    default:
      break;
  }
  if (BitsPerElement(code_type) == 4) {
    for (size_t i = 0; i < count; i += 2) {
      const unsigned low = codes[i] & 15u;
      const unsigned high = i + 1 < count ? codes[i + 1] & 15u : 0;
      out[i / 2] = static_cast<std::byte>(low | high << 4);
    }
    return;
  }
  std::memcpy(out, codes, count);
}

uint16_t Unpack(ElementType code_type, const std::byte* packed, size_t index) {
  const auto byte = [&](size_t i) { return static_cast<unsigned>(packed[i]); };
  switch (code_type) {
    case ElementType::kU2:
      return static_cast<uint16_t>(byte(index / 4) >> (2 * (index % 4)) & 3u);
    case ElementType::kU3: {
      const size_t block = index / 8 * 3;
      const size_t k = index % 8;
      return static_cast<uint16_t>(
          (byte(block + k / 4) >> (6 - 2 * (k % 4)) & 3u) |
          (byte(block + 2) >> (7 - k) & 1u) << 2);
    }
    case ElementType::kU16:
      return Load<uint16_t>(packed, index);
    default:
      break;
  }
  if (BitsPerElement(code_type) == 4) {
    return static_cast<uint16_t>(byte(index / 2) >> (4 * (index % 2)) & 15u);
  }
  return static_cast<uint16_t>(byte(index));
}

double FixedOrderSum(const float* values, size_t count) {
  double r[8] = {};
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (size_t k = 0; k < 8; ++k) r[k] += static_cast<double>(values[i + k]);
  }
  for (size_t k = 0; i < count; ++i, ++k) {
    r[k] += static_cast<double>(values[i]);
  }
  return ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
}

}  // namespace scalar

float MakeSecondOrderScale(float largest_group_scale, uint64_t group_count) {
  return FloatStep(largest_group_scale, 448.0f,
                   group_count >= kOpenVinoPathMinElements ? Numerics::kOpenVino
                                                           : Numerics::kNumPy,
                   true);
}

float PairwiseSum(const float* values, size_t count) {
  // numpy/_core/src/umath/loops_utils.h: up to 128 elements with eight
  // accumulators, halves (multiples of eight) above.
  if (count < 8) {
    float sum = -0.0f;
    for (size_t i = 0; i < count; ++i) sum += values[i];
    return sum;
  }
  if (count <= 128) {
    float r[8];
    for (size_t k = 0; k < 8; ++k) r[k] = values[k];
    size_t i = 8;
    for (; i < count - count % 8; i += 8) {
      for (size_t k = 0; k < 8; ++k) r[k] += values[i + k];
    }
    float sum =
        ((r[0] + r[1]) + (r[2] + r[3])) + ((r[4] + r[5]) + (r[6] + r[7]));
    for (; i < count; ++i) sum += values[i];
    return sum;
  }
  size_t half = count / 2;
  half -= half % 8;
  return PairwiseSum(values, half) + PairwiseSum(values + half, count - half);
}

namespace reference {

using scalar::At;
using scalar::CodeOf;
using scalar::LoadFloat;
using scalar::Prepare;
using scalar::Prepared;

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
      step[i] = FloatStep(magnitude, TableMax(*table), Numerics::kNumPy, true);
    } else {
      step[i] = FloatStep(magnitude, FloatModeMax(encoding.mode),
                          encoding.numerics, encoding.mode != Mode::kNf4);
      if (encoding.mode == Mode::kMxfp4 || encoding.mode == Mode::kMxfp8E4m3) {
        step[i] = MxStep(encoding.numerics, step[i]);
      }
    }
  }
}

bool RangeOfRows(ElementType type, const void* source, size_t rows,
                 size_t length, float* lo, float* hi) {
  bool finite = true;
  for (size_t row = 0; row < rows; ++row) {
    lo[row] = std::numeric_limits<float>::infinity();
    hi[row] = -std::numeric_limits<float>::infinity();
    for (size_t i = 0; i < length; ++i) {
      const float value = LoadFloat(type, source, row * length + i);
      finite &= std::isfinite(value);
      lo[row] = value < lo[row] ? value : lo[row];
      hi[row] = value > hi[row] ? value : hi[row];
    }
  }
  return finite;
}

bool RangeOfColumns(ElementType type, const void* source, size_t rows,
                    size_t columns, float* lo, float* hi) {
  bool finite = true;
  for (size_t row = 0; row < rows; ++row) {
    for (size_t k = 0; k < columns; ++k) {
      const float value = LoadFloat(type, source, row * columns + k);
      finite &= std::isfinite(value);
      lo[k] = value < lo[k] ? value : lo[k];
      hi[k] = value > hi[k] ? value : hi[k];
    }
  }
  return finite;
}

namespace {

// Writes code number `index`; 16-bit codes directly, others to `unpacked`.
void EncodeBlock(const Encoding& encoding, const void* source, size_t rows,
                 size_t width, bool by_column, const float* step,
                 const uint8_t* zero_point, std::byte* out) {
  const Prepared prepared = Prepare(encoding);
  std::vector<uint8_t> unpacked;
  const bool wide = prepared.code_type == ElementType::kU16;
  if (!wide) unpacked.resize(rows * width);
  for (size_t row = 0; row < rows; ++row) {
    for (size_t i = 0; i < width; ++i) {
      const size_t index = row * width + i;
      const size_t group = by_column ? i : row;
      const uint16_t code =
          CodeOf(prepared, LoadFloat(encoding.source_type, source, index),
                 prepared.Divisor(step[group]),
                 zero_point != nullptr ? zero_point[group] : 0);
      if (wide) {
        std::memcpy(out + 2 * index, &code, 2);
      } else {
        unpacked[index] = static_cast<uint8_t>(code);
      }
    }
  }
  if (!wide) {
    scalar::Pack(prepared.code_type, unpacked.data(), unpacked.size(), out);
  }
}

}  // namespace

void EncodeRows(const Encoding& encoding, const void* source, size_t rows,
                size_t length, const float* step, const uint8_t* zero_point,
                std::byte* out) {
  EncodeBlock(encoding, source, rows, length, false, step, zero_point, out);
}

void EncodeColumns(const Encoding& encoding, const void* source, size_t rows,
                   size_t columns, const float* step, const uint8_t* zero_point,
                   std::byte* out) {
  EncodeBlock(encoding, source, rows, columns, true, step, zero_point, out);
}

bool QuantizeRows(const Encoding& encoding, const void* source, size_t rows,
                  size_t length, float* step, uint8_t* zero_point,
                  std::byte* out) {
  std::vector<float> lo(rows), hi(rows);
  const bool finite = reference::RangeOfRows(encoding.source_type, source, rows,
                                             length, lo.data(), hi.data());
  reference::MakeSteps(encoding, lo.data(), hi.data(), rows, step, zero_point);
  reference::EncodeRows(encoding, source, rows, length, step, zero_point, out);
  return finite;
}

float ScoreRows(ElementType type, Numerics numerics, const void* source,
                size_t rows, size_t length, const float* lo, const float* hi) {
  const Encoding int8;
  std::vector<float> errors(length);
  float worst = 0;
  for (size_t row = 0; row < rows; ++row) {
    float step = 0;
    uint8_t zero_point = 0;
    reference::MakeSteps(int8, lo + row, hi + row, 1, &step, &zero_point);
    for (size_t i = 0; i < length; ++i) {
      errors[i] = scalar::Int8Error(LoadFloat(type, source, row * length + i),
                                    step, static_cast<float>(zero_point));
    }
    const double sum =
        numerics == Numerics::kNumPy
            ? static_cast<double>(PairwiseSum(errors.data(), length))
            : scalar::FixedOrderSum(errors.data(), length);
    const float mean = static_cast<float>(sum / static_cast<double>(length));
    worst = mean > worst ? mean : worst;
  }
  return worst;
}

void ToFloat(ElementType type, const void* source, size_t count, float* out) {
  for (size_t i = 0; i < count; ++i) out[i] = LoadFloat(type, source, i);
}

}  // namespace reference
}  // namespace ovpress
