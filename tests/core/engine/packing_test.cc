#include "core/engine/packing.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ovpress {
namespace {

using ::testing::ElementsAre;

std::vector<int> Packed(ElementType type, const std::vector<uint8_t>& codes) {
  std::vector<std::byte> out(*PackedSizeBytes(type, codes.size()));
  PackCodes(type, codes.data(), codes.size(), out.data());
  std::vector<int> bytes;
  for (const std::byte b : out) bytes.push_back(static_cast<int>(b));
  return bytes;
}

TEST(Packing, FourBitsFirstElementInTheLowNibble) {
  EXPECT_THAT(Packed(ElementType::kU4, {1, 2, 15}), ElementsAre(0x21, 0x0f));
}

TEST(Packing, TwoBitsFirstElementInTheLowestBits) {
  EXPECT_THAT(Packed(ElementType::kU2, {3, 0, 1, 2, 1}),
              ElementsAre(0x93, 0x01));
}

TEST(Packing, ThreeBitsSplitIntoTwoAndOne) {
  // Elements 0..7: low bits of 0-3 in byte 0 from the top, of 4-7 in byte 1,
  // top bits in byte 2 from the top.
  EXPECT_THAT(Packed(ElementType::kU3, {0, 1, 2, 3, 4, 5, 6, 7}),
              ElementsAre(0b00011011, 0b00011011, 0b00001111));
  EXPECT_THAT(Packed(ElementType::kU3, {7}), ElementsAre(0xc0, 0, 0x80));
}

TEST(Packing, UnpackGivesBackEveryCodeAtEveryLength) {
  for (const ElementType type :
       {ElementType::kU2, ElementType::kU3, ElementType::kU4}) {
    for (size_t count = 0; count <= 33; ++count) {
      std::vector<uint8_t> codes;
      for (size_t i = 0; i < count; ++i) {
        codes.push_back(static_cast<uint8_t>(
            (i * 7 + 3) & ((1u << BitsPerElement(type)) - 1)));
      }
      std::vector<std::byte> packed(*PackedSizeBytes(type, count));
      PackCodes(type, codes.data(), count, packed.data());
      std::vector<uint8_t> back;
      UnpackCodes(type, packed.data(), count, &back);
      EXPECT_EQ(back, codes) << ElementTypeName(type) << " " << count;
    }
  }
}

}  // namespace
}  // namespace ovpress
