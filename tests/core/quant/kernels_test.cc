// Every vector target against the scalar reference, bit for bit; the reference
// against closed forms and edge cases.
#include "core/quant/kernels.h"

#include <cmath>
#include <cstring>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "core/quant/scalar.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "hwy/highway.h"
#include "hwy/targets.h"

namespace ovpress {
namespace {

constexpr ElementType kSources[] = {ElementType::kF32,    ElementType::kF16,
                                    ElementType::kBf16,   ElementType::kF64,
                                    ElementType::kF8e4m3, ElementType::kF8e5m2};

std::vector<int64_t> Targets() { return hwy::SupportedAndGeneratedTargets(); }

void Use(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

class EveryTarget : public ::testing::Test {
 protected:
  ~EveryTarget() override { Use(0); }
};

// Codebooks of each size class.
const Codebook& TestCodebook(size_t entries, ElementType type) {
  static std::vector<std::unique_ptr<Codebook>> keep;
  auto codebook = std::make_unique<Codebook>();
  codebook->type = type;
  for (size_t i = 0; i < entries; ++i) {
    codebook->values.push_back(static_cast<float>(i) / 7.0f -
                               static_cast<float>(entries) / 15.0f);
  }
  keep.push_back(std::move(codebook));
  return *keep.back();
}

std::vector<Encoding> Encodings(ElementType source) {
  std::vector<Encoding> all;
  for (const Mode mode : kAllModes) {
    for (const Numerics numerics : {Numerics::kNumPy, Numerics::kOpenVino}) {
      Encoding encoding{mode, numerics, source, nullptr};
      if (mode == Mode::kCb4) encoding.codebook = &Cb4Codebook();
      if (mode == Mode::kCodebook) {
        for (const size_t entries : {2, 16, 17, 100, 300}) {
          encoding.codebook = &TestCodebook(entries, ElementType::kF32);
          all.push_back(encoding);
        }
        encoding.codebook = &TestCodebook(9, ElementType::kF64);
      }
      all.push_back(encoding);
    }
  }
  return all;
}

std::string Name(const Encoding& e, int64_t target) {
  return std::string(ModeTraitsOf(e.mode).name) + " " +
         std::string(ElementTypeName(e.source_type)) +
         (e.numerics == Numerics::kNumPy ? " numpy " : " openvino ") +
         hwy::TargetName(target) +
         (e.codebook != nullptr
              ? " " + std::to_string(e.codebook->values.size())
              : "");
}

// Weights with everything that could go wrong: ties, zeros of both signs,
// subnormals, huge values, whole groups of zeros or of one sign.
std::vector<float> Weights(size_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0.0f, 0.1f);
  std::vector<float> weights(count);
  for (size_t i = 0; i < count; ++i) {
    switch (random() % 24) {
      case 0:
        weights[i] = 0.0f;
        break;
      case 1:
        weights[i] = -0.0f;
        break;
      case 2:
        weights[i] = 1e-41f;
        break;
      case 3:
        weights[i] =
            static_cast<float>(static_cast<int>(random() % 17) - 8) / 16.0f;
        break;
      default:
        weights[i] = normal(random);
    }
  }
  return weights;
}

std::vector<std::byte> Stored(ElementType type,
                              const std::vector<float>& values,
                              size_t misalign) {
  std::vector<std::byte> bytes(
      misalign + values.size() * scalar::SizeOf(type) + 64,
      std::byte{0xff});  // NaN behind the block
  FromFloat(type, values.data(), values.size(), bytes.data() + misalign);
  return bytes;
}

TEST_F(EveryTarget, RowsEqualTheReference) {
  for (const int64_t target : Targets()) {
    for (const ElementType source : kSources) {
      for (const Encoding& encoding : Encodings(source)) {
        SCOPED_TRACE(Name(encoding, target));
        for (const size_t length :
             {1, 2, 7, 8, 15, 16, 17, 31, 32, 33, 64, 67, 128, 259, 4100}) {
          const size_t rows = length > 1000 ? 2 : 5;
          const std::vector<float> weights =
              Weights(rows * length, static_cast<uint32_t>(length));
          const size_t misalign = length % 4;
          const auto bytes = Stored(source, weights, misalign);
          const auto bits_size = PackedSizeBytes(
              scalar::Prepare(encoding).code_type, rows * length);
          struct Out {
            std::vector<float> step;
            std::vector<uint8_t> zero_point;
            std::vector<std::byte> codes;
            bool finite = false;
          };
          const auto run = [&](auto quantize) {
            Out out;
            out.step.resize(rows);
            out.zero_point.resize(rows);
            out.codes.resize(*bits_size + 64, std::byte{0x5a});
            out.finite =
                quantize(encoding, bytes.data() + misalign, rows, length,
                         out.step.data(),
                         ModeTraitsOf(encoding.mode).zero_point_per_group
                             ? out.zero_point.data()
                             : nullptr,
                         out.codes.data());
            return out;
          };
          Use(target);
          const Out fast = run(&QuantizeRows);
          const Out slow = run(&reference::QuantizeRows);
          ASSERT_EQ(0, std::memcmp(fast.step.data(), slow.step.data(),
                                   rows * sizeof(float)));
          ASSERT_EQ(fast.zero_point, slow.zero_point);
          ASSERT_TRUE(std::equal(
              fast.codes.begin(),
              fast.codes.begin() + static_cast<ptrdiff_t>(*bits_size),
              slow.codes.begin()))
              << "length " << length;
          ASSERT_EQ(fast.finite, slow.finite);
        }
      }
    }
  }
}

// Steps, zero points and codes of QuantizeRows against the reference's.
void ExpectRowsEqualTheReference(const Encoding& encoding, const void* data,
                                 size_t rows, size_t length) {
  const bool asym = ModeTraitsOf(encoding.mode).zero_point_per_group;
  std::vector<float> step(rows), step2(rows);
  std::vector<uint8_t> zero(rows), zero2(rows);
  const size_t size =
      *PackedSizeBytes(scalar::Prepare(encoding).code_type, rows * length);
  std::vector<std::byte> fast(size + 64), slow(size + 64);
  ASSERT_EQ(QuantizeRows(encoding, data, rows, length, step.data(),
                         asym ? zero.data() : nullptr, fast.data()),
            reference::QuantizeRows(encoding, data, rows, length, step2.data(),
                                    asym ? zero2.data() : nullptr,
                                    slow.data()));
  ASSERT_EQ(0,
            std::memcmp(step.data(), step2.data(), rows * sizeof(float)));
  ASSERT_EQ(zero, zero2);
  ASSERT_TRUE(std::equal(fast.begin(),
                         fast.begin() + static_cast<ptrdiff_t>(size),
                         slow.begin()))
      << "length " << length;
}

TEST_F(EveryTarget, ManyRowsEqualTheReference) {
  // More rows than are taken at once, and rows shorter than any vector; the
  // scales and the ranges, too.
  for (const int64_t target : Targets()) {
    Use(target);
    for (const ElementType source : kSources) {
      for (const Encoding& encoding : Encodings(source)) {
        SCOPED_TRACE(Name(encoding, target));
        for (const size_t length : {1, 5, 8, 16, 32, 40}) {
          const size_t rows = 75;
          const auto bytes =
              Stored(source, Weights(rows * length, 9), length % 2);
          const void* const data = bytes.data() + length % 2;
          std::vector<float> lo(rows), hi(rows), lo2(rows), hi2(rows);
          ASSERT_EQ(
              RangeOfRows(source, data, rows, length, lo.data(), hi.data()),
              reference::RangeOfRows(source, data, rows, length, lo2.data(),
                                     hi2.data()));
          ASSERT_EQ(lo, lo2);
          ASSERT_EQ(hi, hi2);
          ExpectRowsEqualTheReference(encoding, data, rows, length);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(EveryTarget, StepsOfAllSizesEqualTheReference) {
  // Powers of two for steps are taken another way than other steps, but for the
  // smallest and the largest ones; rows of some lengths, too.
  for (const int64_t target : Targets()) {
    Use(target);
    for (const ElementType source : kSources) {
      for (const Encoding& encoding : Encodings(source)) {
        SCOPED_TRACE(Name(encoding, target));
        if (ModeTraitsOf(encoding.mode).zero_point_per_group) continue;
        for (const size_t length : {4, 16, 32, 48, 64, 80}) {
          const size_t rows = 277;  // a binary exponent each
          std::vector<float> weights = Weights(rows * length, 3);
          for (size_t i = 0; i < weights.size(); ++i) {
            weights[i] =
                std::ldexp(weights[i], static_cast<int>(i / length) - 149);
            // What an infinity gives is not specified.
            const float largest =
                source == ElementType::kF16 ? 65504.0f : 0x1.fep127f;
            weights[i] = std::clamp(weights[i], -largest, largest);
          }
          const auto bytes = Stored(source, weights, 0);
          ExpectRowsEqualTheReference(encoding, bytes.data(), rows, length);
          if (HasFatalFailure()) return;
        }
      }
    }
  }
}

TEST_F(EveryTarget, StepsAndStoredScalesEqualTheReference) {
  // Ranges of all magnitudes and signs, next to powers of two, empty ones, and
  // in one block of each kind one that is not finite.
  std::vector<float> lo, hi;
  for (int k = -30; k <= 30; ++k) {
    for (int ulps = -3; ulps <= 3; ++ulps) {
      const float value = std::bit_cast<float>(
          std::bit_cast<int32_t>(6.0f * std::ldexp(1.0f, k)) + ulps);
      lo.push_back(ulps % 2 == 0 ? -value : value * 0.3f);
      hi.push_back(value);
      lo.push_back(-value);
      hi.push_back(ulps % 2 == 0 ? -value * 0.7f : value * 0.99f);
    }
  }
  lo.insert(lo.end(), {INFINITY, 0.0f, -0.0f, 1e-40f});
  hi.insert(hi.end(), {-INFINITY, 0.0f, 0.0f, 2e-40f});
  for (const int64_t target : Targets()) {
    Use(target);
    for (const Encoding& encoding : Encodings(ElementType::kF32)) {
      SCOPED_TRACE(Name(encoding, target));
      for (const bool finite : {true, false}) {
        std::vector<float> low = lo, high = hi;
        if (!finite) {
          low[5] = -INFINITY;
          high[5] = 1.0f;
        }
        const size_t groups = low.size();
        const bool asym = ModeTraitsOf(encoding.mode).zero_point_per_group;
        std::vector<float> step(groups), step2(groups);
        std::vector<uint8_t> zero(groups), zero2(groups);
        MakeSteps(encoding, low.data(), high.data(), groups, step.data(),
                  asym ? zero.data() : nullptr);
        reference::MakeSteps(encoding, low.data(), high.data(), groups,
                             step2.data(), asym ? zero2.data() : nullptr);
        ASSERT_EQ(0, std::memcmp(step.data(), step2.data(), groups * 4));
        ASSERT_EQ(zero, zero2);
        if (!finite) continue;
        std::vector<std::byte> stored(groups * 2);
        StoreScales(encoding, step.data(), groups, 0.37f, stored.data());
        for (size_t i = 0; i < groups; ++i) {
          const float s = step[i];
          switch (ModeTraitsOf(encoding.mode).scale_type) {
            case ElementType::kF8e8m0:
              ASSERT_EQ(std::ldexp(1.0f, static_cast<int>(stored[i]) - 127), s);
              break;
            case ElementType::kF8e4m3:
              ASSERT_EQ(static_cast<uint8_t>(stored[i]),
                        scalar::FloatToF8e4m3(s / 0.37f));
              break;
            default:
              if (!scalar::Prepare(encoding).f64_scale) {
                ASSERT_EQ(scalar::Load<uint16_t>(stored.data(), i),
                          scalar::FloatToHalf(s));
              }
              break;
          }
        }
      }
    }
  }
}

TEST_F(EveryTarget, NotANumberGivesTheSameBytesEverywhere) {
  // Allowed by an option; what comes out is not specified, but it must not
  // depend on the machine.
  for (const ElementType source : {ElementType::kF16, ElementType::kBf16}) {
    for (const Encoding& encoding : Encodings(source)) {
      std::vector<float> weights = Weights(12 * 32, 3);
      weights[7] = std::numeric_limits<float>::quiet_NaN();
      weights[40] = -std::numeric_limits<float>::quiet_NaN();
      weights[70] = std::numeric_limits<float>::infinity();
      weights[100] = -std::numeric_limits<float>::infinity();
      const auto bytes = Stored(source, weights, 0);
      std::vector<std::byte> first;
      for (const int64_t target : Targets()) {
        SCOPED_TRACE(Name(encoding, target));
        Use(target);
        const bool asym = ModeTraitsOf(encoding.mode).zero_point_per_group;
        std::vector<float> step(12);
        std::vector<uint8_t> zero(12);
        std::vector<std::byte> codes(*PackedSizeBytes(
            scalar::Prepare(encoding).code_type, weights.size()));
        EXPECT_FALSE(QuantizeRows(encoding, bytes.data(), 12, 32, step.data(),
                                  asym ? zero.data() : nullptr, codes.data()));
        if (first.empty()) first = codes;
        ASSERT_EQ(codes, first);
      }
    }
  }
}

TEST_F(EveryTarget, ColumnsEqualTheReference) {
  for (const int64_t target : Targets()) {
    for (const ElementType source : kSources) {
      for (const Encoding& encoding : Encodings(source)) {
        SCOPED_TRACE(Name(encoding, target));
        for (const size_t columns : {1, 3, 16, 17, 37, 2050}) {
          const size_t rows = 5;
          const auto bytes =
              Stored(source, Weights(rows * columns, 77), columns % 3);
          const void* const data = bytes.data() + columns % 3;
          std::vector<float> lo(columns, INFINITY), hi(columns, -INFINITY);
          std::vector<float> lo2 = lo, hi2 = hi;
          Use(target);
          ASSERT_EQ(
              RangeOfColumns(source, data, rows, columns, lo.data(), hi.data()),
              reference::RangeOfColumns(source, data, rows, columns, lo2.data(),
                                        hi2.data()));
          ASSERT_EQ(lo, lo2);  // -0 equals 0: no formula depends on it
          ASSERT_EQ(hi, hi2);
          std::vector<float> step(columns);
          std::vector<uint8_t> zero_point(columns);
          const bool asym = ModeTraitsOf(encoding.mode).zero_point_per_group;
          MakeSteps(encoding, lo.data(), hi.data(), columns, step.data(),
                    asym ? zero_point.data() : nullptr);
          const size_t size = *PackedSizeBytes(
              scalar::Prepare(encoding).code_type, rows * columns);
          std::vector<std::byte> fast(size + 64), slow(size + 64);
          EncodeColumns(encoding, data, rows, columns, step.data(),
                        asym ? zero_point.data() : nullptr, fast.data());
          reference::EncodeColumns(encoding, data, rows, columns, step.data(),
                                   asym ? zero_point.data() : nullptr,
                                   slow.data());
          ASSERT_TRUE(std::equal(fast.begin(),
                                 fast.begin() + static_cast<ptrdiff_t>(size),
                                 slow.begin()))
              << "columns " << columns;
        }
      }
    }
  }
}

TEST_F(EveryTarget, AllHalvesInAllModesEqualTheReference) {
  // Each finite f16 as a weight, under steps from subnormal to huge.
  std::vector<uint16_t> halves;
  for (uint32_t h = 0; h < 0x10000; ++h) {
    if ((h & 0x7c00) != 0x7c00) halves.push_back(static_cast<uint16_t>(h));
  }
  for (const int64_t target : Targets()) {
    Use(target);
    for (const Encoding& encoding : Encodings(ElementType::kF16)) {
      SCOPED_TRACE(Name(encoding, target));
      const bool asym = ModeTraitsOf(encoding.mode).zero_point_per_group;
      for (const float step :
           {1.1920929e-07f, 3.7e-4f, -0.0123f, 0.25f, 977.0f}) {
        if (step < 0 &&
            scalar::Prepare(encoding).kind != scalar::CodeKind::kSym) {
          continue;
        }
        const uint8_t zero_point = 7;
        const size_t size = *PackedSizeBytes(
            scalar::Prepare(encoding).code_type, halves.size());
        std::vector<std::byte> fast(size + 64), slow(size + 64);
        EncodeRows(encoding, halves.data(), 1, halves.size(), &step,
                   asym ? &zero_point : nullptr, fast.data());
        reference::EncodeRows(encoding, halves.data(), 1, halves.size(), &step,
                              asym ? &zero_point : nullptr, slow.data());
        ASSERT_TRUE(std::equal(fast.begin(),
                               fast.begin() + static_cast<ptrdiff_t>(size),
                               slow.begin()))
            << "step " << step;
      }
    }
  }
}

TEST_F(EveryTarget, RangesFindNonFiniteValuesWhereverTheyAre) {
  for (const int64_t target : Targets()) {
    Use(target);
    for (const ElementType type :
         {ElementType::kF32, ElementType::kF16, ElementType::kBf16,
          ElementType::kF64, ElementType::kF8e5m2}) {
      SCOPED_TRACE(std::string(hwy::TargetName(target)) + " " +
                   std::string(ElementTypeName(type)));
      for (const float bad : {std::numeric_limits<float>::quiet_NaN(),
                              -std::numeric_limits<float>::quiet_NaN(),
                              std::numeric_limits<float>::infinity(),
                              -std::numeric_limits<float>::infinity()}) {
        for (size_t at = 0; at < 75; ++at) {
          std::vector<float> weights(75, 0.5f);
          weights[at] = bad;
          const auto bytes = Stored(type, weights, 1);
          float lo, hi;
          EXPECT_FALSE(RangeOfRows(type, bytes.data() + 1, 1, 75, &lo, &hi));
          std::vector<float> los(75, INFINITY), his(75, -INFINITY);
          EXPECT_FALSE(RangeOfColumns(type, bytes.data() + 1, 1, 75, los.data(),
                                      his.data()));
        }
      }
      const auto fine = Stored(type, std::vector<float>(75, -2.0f), 0);
      float lo, hi;
      EXPECT_TRUE(RangeOfRows(type, fine.data(), 1, 75, &lo, &hi));
      EXPECT_EQ(lo, -2.0f);
      EXPECT_EQ(hi, -2.0f);
    }
  }
}

TEST_F(EveryTarget, ScoresAreTheSameOnAllTargets) {
  for (const ElementType type : kSources) {
    for (const size_t length : {5, 64, 127, 128, 129, 1000, 5000}) {
      const size_t rows = length > 500 ? 3 : 70;
      const auto bytes = Stored(type, Weights(rows * length, 5), 0);
      std::vector<float> lo(rows), hi(rows);
      reference::RangeOfRows(type, bytes.data(), rows, length, lo.data(),
                             hi.data());
      for (const Numerics numerics : {Numerics::kNumPy, Numerics::kOpenVino}) {
        const float expected = reference::ScoreRows(
            type, numerics, bytes.data(), rows, length, lo.data(), hi.data());
        for (const int64_t target : Targets()) {
          Use(target);
          EXPECT_EQ(ScoreRows(type, numerics, bytes.data(), rows, length,
                              lo.data(), hi.data()),
                    expected)
              << hwy::TargetName(target) << " " << length;
        }
      }
    }
  }
}

TEST(Conversions, HalfRoundTripsAndRoundsToEven) {
  for (uint32_t h = 0; h < 0x10000; ++h) {
    if ((h & 0x7fff) > 0x7c00) continue;  // NaN
    const float value = scalar::HalfToFloat(static_cast<uint16_t>(h));
    ASSERT_EQ(scalar::FloatToHalf(value), h);
    ASSERT_EQ(scalar::DoubleToHalf(value), h);
    if ((h & 0x7fff) >= 0x7bff) continue;
    // Half way to the next: to the even one; a hair more: up.
    const float next = scalar::HalfToFloat(static_cast<uint16_t>(h + 1));
    const float middle = 0.5f * (value + next);
    ASSERT_EQ(scalar::FloatToHalf(middle), h + (h & 1));
    ASSERT_EQ(scalar::DoubleToHalf(middle), h + (h & 1));
    ASSERT_EQ(scalar::FloatToHalf(std::nextafter(middle, next)), h + 1);
  }
  EXPECT_EQ(scalar::FloatToHalf(65519.996f), 0x7bff);
  EXPECT_EQ(scalar::FloatToHalf(65520.0f), 0x7c00);
  EXPECT_EQ(scalar::FloatToHalf(0x1p-25f), 0);
}

TEST(Conversions, F8RoundsTwice) {
  EXPECT_EQ(scalar::F8e4m3ToFloat(scalar::FloatToF8e4m3(1.0625001f)), 1.0f);
  EXPECT_EQ(scalar::F8e4m3ToFloat(scalar::FloatToF8e4m3(464.00009f)), 448.0f);
  EXPECT_EQ(scalar::FloatToF8e4m3(465.0f), 0x7f);
  EXPECT_EQ(scalar::FloatToF8e4m3(-465.0f), 0xff);
  EXPECT_EQ(scalar::FloatToF8e4m3(-0.0f), 0x80);
  for (int code = 0; code < 256; ++code) {
    if ((code & 0x7f) == 0x7f) continue;
    EXPECT_EQ(scalar::FloatToF8e4m3(
                  scalar::F8e4m3ToFloat(static_cast<uint8_t>(code))),
              code);
  }
}

TEST(Formulas, AsymmetricIncludesZeroAndAddsBeforeRounding) {
  const Encoding e{Mode::kInt4Asym, Numerics::kNumPy, ElementType::kF32,
                   nullptr};
  const float weights[] = {1.0f, 4.0f};  // range 0..4
  float step;
  uint8_t zero_point, codes[1];
  QuantizeRows(e, weights, 1, 2, &step, &zero_point,
               reinterpret_cast<std::byte*>(codes));
  EXPECT_EQ(step, 4.0f / 15.0f);
  EXPECT_EQ(zero_point, 0);
  EXPECT_EQ(codes[0], 0xf4);  // 3.75 -> 4, 15
}

TEST(Formulas, SymmetricScaleIsSigned) {
  const Encoding e{Mode::kInt8Sym, Numerics::kNumPy, ElementType::kF32,
                   nullptr};
  const float positive[] = {0.5f, -0.25f};
  float step;
  int8_t codes[2];
  QuantizeRows(e, positive, 1, 2, &step, nullptr,
               reinterpret_cast<std::byte*>(codes));
  EXPECT_EQ(step, -0.5f / 128.0f);
  EXPECT_EQ(codes[0], -128);
  EXPECT_EQ(codes[1], 64);
  const float tie[] = {0.5f, -0.5f};
  QuantizeRows(e, tie, 1, 2, &step, nullptr,
               reinterpret_cast<std::byte*>(codes));
  EXPECT_EQ(step, 0.5f / 128.0f);
  EXPECT_EQ(codes[0], 127);
  EXPECT_EQ(codes[1], -128);
  const float zeros[] = {0.0f, -0.0f};
  QuantizeRows(e, zeros, 1, 2, &step, nullptr,
               reinterpret_cast<std::byte*>(codes));
  EXPECT_EQ(step, 1.1920929e-07f);
  std::byte stored[2];
  StoreScales(e, &step, 1, 0, stored);
  EXPECT_EQ(scalar::Load<uint16_t>(stored, 0), 0x0002);
}

TEST(Formulas, MxExponentsNextToPowersOfTwo) {
  // In the OpenVINO path these exact powers get the next exponent.
  const Encoding ov{Mode::kMxfp8E4m3, Numerics::kOpenVino, ElementType::kF32,
                    nullptr};
  const Encoding np{Mode::kMxfp8E4m3, Numerics::kNumPy, ElementType::kF32,
                    nullptr};
  for (int k = -22; k <= 20; ++k) {
    const float hi = 448.0f * std::ldexp(1.0f, k);
    const float lo = 0;
    float step;
    MakeSteps(np, &lo, &hi, 1, &step, nullptr);
    EXPECT_EQ(step, std::ldexp(1.0f, k)) << k;
    MakeSteps(ov, &lo, &hi, 1, &step, nullptr);
    const bool odd = k == -15 || k == -13;
    EXPECT_EQ(step, std::ldexp(1.0f, odd ? k + 1 : k)) << k;
  }
}

TEST(Formulas, MxStepsFollowTheLogarithms) {
  // The tables against the definition, around every power of two and between.
  for (const Numerics numerics : {Numerics::kNumPy, Numerics::kOpenVino}) {
    const Encoding encoding{Mode::kMxfp4, numerics, ElementType::kF32, nullptr};
    for (int k = -22; k <= 100; ++k) {
      for (int ulps = -20; ulps <= 20; ++ulps) {
        const float power = 6.0f * std::ldexp(1.0f, k);
        const float hi =
            std::bit_cast<float>(std::bit_cast<int32_t>(power) + ulps);
        const float lo = 0;
        float step;
        MakeSteps(encoding, &lo, &hi, 1, &step, nullptr);
        const float t = hi / 6.0f;
        const float log2 =
            numerics == Numerics::kNumPy
                ? static_cast<float>(std::log2(static_cast<double>(t)))
                : static_cast<float>(std::log(static_cast<double>(t))) *
                      1.44269502f;
        ASSERT_EQ(step, std::ldexp(1.0f, static_cast<int>(std::ceil(log2))))
            << k << " " << ulps;
      }
    }
  }
}

TEST(Formulas, EmptyGroupsOfFloatModesDependOnThePath) {
  const float lo = 0, hi = 0;
  float step;
  MakeSteps({Mode::kFp4, Numerics::kNumPy, ElementType::kF32, nullptr}, &lo,
            &hi, 1, &step, nullptr);
  EXPECT_EQ(step, 1.1920929e-07f);
  MakeSteps({Mode::kFp4, Numerics::kOpenVino, ElementType::kF32, nullptr}, &lo,
            &hi, 1, &step, nullptr);
  EXPECT_EQ(step, 1.1920929e-07f / 6.0f);
}

TEST(PairwiseSum, AddsAsNumpyDoes) {
  // np.add.reduce(np.float32(1) / np.arange(1, n + 1, dtype=np.float32)) of
  // NumPy 2.4.6, bit for bit.
  const struct {
    size_t count;
    float sum;
  } kCases[] = {{7, 0x1.4be2c0p+1f},
                {8, 0x1.5be2c0p+1f},
                {127, 0x1.5b38b2p+2f},
                {129, 0x1.5c37b4p+2f},
                {1000, 0x1.df11f8p+2f}};
  for (const auto& c : kCases) {
    std::vector<float> values(c.count);
    for (size_t i = 0; i < c.count; ++i) {
      values[i] = 1.0f / static_cast<float>(i + 1);
    }
    EXPECT_EQ(PairwiseSum(values.data(), c.count), c.sum) << c.count;
  }
}

}  // namespace
}  // namespace ovpress
