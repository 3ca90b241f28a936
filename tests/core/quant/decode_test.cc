// Every code of every small type, and rounding against the scalar conversions.
#include "core/quant/decode.h"

#include <bit>
#include <cmath>
#include <limits>
#include <vector>

#include "core/quant/scalar.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ovpress {
namespace {

using ::testing::ElementsAre;

std::vector<float> DecodeAll(ElementType type, const std::vector<uint8_t>& in,
                             size_t first, size_t count) {
  std::vector<float> out(count);
  Decode(type, reinterpret_cast<const std::byte*>(in.data()), first, count,
         out.data());
  return out;
}

TEST(Decode, SubByteTypesStartAtTheLowBits) {
  EXPECT_THAT(DecodeAll(ElementType::kU4, {0x21, 0x43}, 0, 4),
              ElementsAre(1, 2, 3, 4));
  EXPECT_THAT(DecodeAll(ElementType::kU4, {0x21, 0x43}, 1, 2),
              ElementsAre(2, 3));
  EXPECT_THAT(DecodeAll(ElementType::kI4, {0x87, 0xf0}, 0, 4),
              ElementsAre(7, -8, 0, -1));
  EXPECT_THAT(DecodeAll(ElementType::kU2, {0b11100100}, 0, 4),
              ElementsAre(0, 1, 2, 3));
  EXPECT_THAT(DecodeAll(ElementType::kF4e2m1, {0x70, 0xf9}, 0, 4),
              ElementsAre(0, 6, -0.5f, -6));
  EXPECT_THAT(DecodeAll(ElementType::kNf4, {0xf0, 0x7e}, 0, 4),
              ElementsAre(-1, 1, 0.72295684f, 0));
  // u3: two low bits of elements 0-3 from the top of byte 0, then 4-7, then the
  // high bits. Elements 0 1 2 3 4 5 6 7.
  EXPECT_THAT(
      DecodeAll(ElementType::kU3, {0b00011011, 0b00011011, 0b00001111}, 0, 8),
      ElementsAre(0, 1, 2, 3, 4, 5, 6, 7));
}

TEST(Decode, ByteTypes) {
  EXPECT_THAT(DecodeAll(ElementType::kU8, {0, 128, 255}, 0, 3),
              ElementsAre(0, 128, 255));
  EXPECT_THAT(DecodeAll(ElementType::kI8, {0, 128, 255}, 0, 3),
              ElementsAre(0, -128, -1));
  EXPECT_THAT(DecodeAll(ElementType::kF8e4m3, {0x38, 0xb8, 0x7e, 0x01}, 0, 4),
              ElementsAre(1, -1, 448, 0x1p-9f));
  EXPECT_THAT(DecodeAll(ElementType::kF8e8m0, {127, 128, 0, 254}, 0, 4),
              ElementsAre(1, 2, 0x1p-127f, 0x1p127f));
  EXPECT_TRUE(std::isnan(DecodeAll(ElementType::kF8e8m0, {255}, 0, 1)[0]));
  EXPECT_TRUE(std::isnan(DecodeAll(ElementType::kF8e4m3, {0x7f}, 0, 1)[0]));
}

TEST(Decode, WideIntegers) {
  EXPECT_THAT(DecodeAll(ElementType::kU16, {1, 0, 0xff, 0xff}, 0, 2),
              ElementsAre(1, 65535));
  EXPECT_THAT(
      DecodeAll(ElementType::kI32, {9, 9, 9, 9, 0xfe, 255, 255, 255}, 1, 1),
      ElementsAre(-2));
}

TEST(RoundTo, HalfEqualsTheScalarConversionOverAllExponents) {
  // Each f16 value, its neighbours in f32, and the midpoints between two.
  std::vector<float> values = {
      0.0f,     65504.0f, 65519.99f,
      65520.0f, 1e30f,    std::numeric_limits<float>::infinity()};
  for (uint32_t half = 0; half < 0x7c00; ++half) {
    const float value = scalar::HalfToFloat(static_cast<uint16_t>(half));
    const float next = scalar::HalfToFloat(static_cast<uint16_t>(half + 1));
    for (const float each : {value, (value + next) / 2}) {
      values.push_back(each);
      values.push_back(std::nextafter(each, 0.0f));
      values.push_back(std::nextafter(each, 1e9f));
    }
  }
  const size_t positive = values.size();
  for (size_t i = 0; i < positive; ++i) values.push_back(-values[i]);
  std::vector<float> rounded = values;
  RoundTo(ElementType::kF16, rounded.data(), rounded.size());
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_EQ(rounded[i], scalar::HalfToFloat(scalar::FloatToHalf(values[i])))
        << values[i];
  }
  float nan = std::numeric_limits<float>::quiet_NaN();
  RoundTo(ElementType::kF16, &nan, 1);
  EXPECT_TRUE(std::isnan(nan));
}

TEST(RoundTo, OtherTypes) {
  std::vector<float> values = {1.00390625f, 1.01171875f};  // 1 + 1/256, 3/256
  RoundTo(ElementType::kBf16, values.data(), 2);
  EXPECT_THAT(values, ElementsAre(1.0f, 1.015625f));
  values = {1.0625f, 1.1875f};  // between the eighths
  RoundTo(ElementType::kF8e4m3, values.data(), 2);
  EXPECT_THAT(values, ElementsAre(1.0f, 1.25f));
  values = {0.1f, 3e38f};
  RoundTo(ElementType::kF32, values.data(), 2);
  EXPECT_THAT(values, ElementsAre(0.1f, 3e38f));
}

}  // namespace
}  // namespace ovpress
