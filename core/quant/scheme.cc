#include "core/quant/scheme.h"

#include <cstring>

namespace ovpress {
namespace {

constexpr ModeTraits kTraits[] = {
    {Mode::kInt8Asym, "int8_asym", 8, ElementType::kU8, ElementType::kF16, true,
     false, true, -1, true, true},
    {Mode::kInt8Sym, "int8_sym", 8, ElementType::kI8, ElementType::kF16, false,
     false, true, -1, true, true},
    {Mode::kInt4Asym, "int4_asym", 4, ElementType::kU4, ElementType::kF16, true,
     false, false, 128, false, true},
    {Mode::kInt4Sym, "int4_sym", 4, ElementType::kI4, ElementType::kF16, false,
     false, false, 128, false, true},
    {Mode::kInt3Sym, "int3_sym", 3, ElementType::kU3, ElementType::kF16, false,
     true, false, 128, false, false},
    {Mode::kInt2Sym, "int2_sym", 2, ElementType::kU2, ElementType::kF16, false,
     true, false, 128, false, false},
    {Mode::kNf4, "nf4", 4, ElementType::kNf4, ElementType::kF16, false, false,
     false, 128, false, true},
    {Mode::kFp4, "fp4", 4, ElementType::kF4e2m1, ElementType::kF16, false,
     false, false, 128, false, true},
    {Mode::kFp8E4m3, "fp8_e4m3", 8, ElementType::kF8e4m3, ElementType::kF16,
     false, false, false, 128, false, true},
    {Mode::kMxfp4, "mxfp4", 4, ElementType::kF4e2m1, ElementType::kF8e8m0,
     false, false, false, 32, true, true},
    {Mode::kMxfp8E4m3, "mxfp8_e4m3", 8, ElementType::kF8e4m3,
     ElementType::kF8e8m0, false, false, false, 32, true, true},
    {Mode::kNvfp4, "nvfp4", 4, ElementType::kF4e2m1, ElementType::kF8e4m3,
     false, false, false, 16, true, true},
    {Mode::kCb4, "cb4", 4, ElementType::kU4, ElementType::kF16, false, false,
     false, -1, false, false},
    {Mode::kCodebook, "codebook", 4, ElementType::kU4, ElementType::kF16, false,
     false, false, -1, false, false}};

// cb4's values (NNCF's CB4_QUANTILES) and their f8e4m3 bit patterns.
constexpr struct {
  double value;
  uint8_t bits;
} kCb4[] = {{-3.5, 0xC6},    {-2.5, 0xC2},   {-1.875, 0xBF},  {-1.375, 0xBB},
            {-1.0, 0xB8},    {-0.625, 0xB2}, {-0.3125, 0xAA}, {0.0, 0x00},
            {0.28125, 0x29}, {0.5625, 0x31}, {0.875, 0x36},   {1.125, 0x39},
            {1.5, 0x3C},     {2.0, 0x40},    {2.5, 0x42},     {3.5, 0x46}};

Codebook MakeCb4() {
  Codebook codebook;
  codebook.type = ElementType::kF8e4m3;
  for (const auto& entry : kCb4) {
    codebook.values.push_back(entry.value);
    codebook.stored.push_back(static_cast<std::byte>(entry.bits));
  }
  return codebook;
}

}  // namespace

const ModeTraits& ModeTraitsOf(Mode mode) {
  return kTraits[static_cast<size_t>(mode)];
}

std::optional<Mode> ParseMode(absl::string_view name) {
  for (const ModeTraits& traits : kTraits) {
    if (traits.name == name) return traits.mode;
  }
  return std::nullopt;
}

ElementType Codebook::index_type() const {
  if (values.size() <= 16) return ElementType::kU4;
  if (values.size() <= 256) return ElementType::kU8;
  return ElementType::kU16;
}

const Codebook& Cb4Codebook() {
  static const Codebook* const codebook = new Codebook(MakeCb4());
  return *codebook;
}

}  // namespace ovpress
