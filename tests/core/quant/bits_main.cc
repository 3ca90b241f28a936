// Prints a digest of what the kernels make of fixed weights, one line for each
// mode and source type, so that two machines can be compared: their outputs
// are equal texts. Within one machine all SIMD targets must agree; where one
// does not, a line "DIFFERS" says so and the exit status is 1.
// Weights come from integers alone: no library's random numbers or logarithms.
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "core/base/sha256.h"
#include "core/quant/kernels.h"
#include "core/quant/scalar.h"
#include "hwy/highway.h"
#include "hwy/targets.h"

namespace ovpress {
namespace {

constexpr ElementType kSources[] = {ElementType::kF32,    ElementType::kF16,
                                    ElementType::kBf16,   ElementType::kF64,
                                    ElementType::kF8e4m3, ElementType::kF8e5m2};

// Knuth's MMIX generator; the upper half is taken.
class Random {
 public:
  uint32_t Next() {
    state_ = state_ * 6364136223846793005u + 1442695040888963407u;
    return static_cast<uint32_t>(state_ >> 32);
  }

 private:
  uint64_t state_ = 1;
};

enum class Kind : uint8_t { kUsual, kWide };
constexpr const char* kKindNames[] = {"usual", "wide"};

float Weight(Random* random, Kind kind) {
  const uint32_t bits = random->Next();
  const uint32_t choice = random->Next() % 32;
  if (kind == Kind::kWide && choice < 8) {
    // Any finite number: subnormals, the largest, halves of codes.
    const uint32_t finite =
        (bits & 0x7f800000u) == 0x7f800000u ? bits & 0xbfffffffu : bits;
    return std::bit_cast<float>(finite);
  }
  if (choice == 1) return 0.0f;
  if (choice == 2) return -0.0f;
  if (choice == 3) return static_cast<float>(bits % 17) / 16.0f - 0.5f;
  return static_cast<float>(static_cast<int32_t>(bits)) * 0x1p-34f;
}

const Codebook& Table(size_t entries, ElementType type) {
  static std::vector<std::unique_ptr<Codebook>> keep;
  auto table = std::make_unique<Codebook>();
  table->type = type;
  for (size_t i = 0; i < entries; ++i) {
    const float value =
        (static_cast<float>(i) - static_cast<float>(entries) * 0.4375f) / 8.0f;
    table->values.push_back(static_cast<double>(value));
  }
  keep.push_back(std::move(table));
  return *keep.back();
}

std::vector<Encoding> EncodingsOf(Mode mode, ElementType source) {
  std::vector<Encoding> all;
  for (const Numerics numerics : {Numerics::kNumPy, Numerics::kOpenVino}) {
    Encoding encoding{mode, numerics, source, nullptr};
    if (mode == Mode::kCb4) encoding.codebook = &Cb4Codebook();
    if (mode != Mode::kCodebook) {
      all.push_back(encoding);
      continue;
    }
    for (const ElementType type :
         {ElementType::kF32, ElementType::kF16, ElementType::kF64}) {
      for (const size_t entries : {5, 16, 60, 300}) {
        encoding.codebook = &Table(entries, type);
        all.push_back(encoding);
      }
    }
  }
  return all;
}

class Digest {
 public:
  template <typename T>
  void Add(const std::vector<T>& values) {
    hasher_.Update(std::as_bytes(std::span<const T>(values)));
  }
  // -0 counts as 0: no formula depends on it.
  void AddNumbers(std::vector<float> values) {
    for (float& value : values) {
      if (value == 0.0f) value = 0.0f;
    }
    Add(values);
  }
  std::string Finish() { return hasher_.FinishHex().substr(0, 16); }

 private:
  Sha256Hasher hasher_;
};

void AddStored(const Encoding& encoding, const std::vector<float>& step,
               Digest* digest) {
  std::vector<std::byte> scales(2 * step.size());
  StoreScales(encoding, step.data(), step.size(),
              MakeSecondOrderScale(step.front(), step.size()), scales.data());
  digest->Add(scales);
}

std::string DigestOf(Mode mode, ElementType source, Kind kind) {
  Digest digest;
  Random random;
  constexpr size_t kRows = 37;
  for (const Encoding& encoding : EncodingsOf(mode, source)) {
    const bool asym = ModeTraitsOf(mode).zero_point_per_group;
    for (const size_t length : {1, 19, 32, 64, 128, 301}) {
      std::vector<float> weights(kRows * length);
      for (float& weight : weights) weight = Weight(&random, kind);
      const size_t size = weights.size() * scalar::SizeOf(source);
      std::vector<std::byte> bytes(size);
      FromFloat(source, weights.data(), weights.size(), bytes.data());
      // What the type cannot hold became an infinity or a NaN.
      reference::ToFloat(source, bytes.data(), weights.size(), weights.data());
      for (float& weight : weights) {
        if (!std::isfinite(weight)) weight = 0.0f;
      }
      FromFloat(source, weights.data(), weights.size(), bytes.data());
      const size_t code_bytes =
          *PackedSizeBytes(scalar::Prepare(encoding).code_type, weights.size());
      std::vector<std::byte> codes(code_bytes);
      std::vector<float> step(kRows), lo(kRows), hi(kRows);
      std::vector<uint8_t> zero(kRows);
      QuantizeRows(encoding, bytes.data(), kRows, length, step.data(),
                   asym ? zero.data() : nullptr, codes.data());
      digest.Add(codes);
      digest.Add(zero);
      AddStored(encoding, step, &digest);
      RangeOfRows(source, bytes.data(), kRows, length, lo.data(), hi.data());
      digest.AddNumbers({ScoreRows(source, encoding.numerics, bytes.data(),
                                   kRows, length, lo.data(), hi.data())});

      std::vector<float> low(length, std::numeric_limits<float>::infinity());
      std::vector<float> high(length, -std::numeric_limits<float>::infinity());
      RangeOfColumns(source, bytes.data(), kRows, length, low.data(),
                     high.data());
      digest.AddNumbers(low);
      digest.AddNumbers(high);
      std::vector<float> steps(length);
      std::vector<uint8_t> zeros(length);
      MakeSteps(encoding, low.data(), high.data(), length, steps.data(),
                asym ? zeros.data() : nullptr);
      EncodeColumns(encoding, bytes.data(), kRows, length, steps.data(),
                    asym ? zeros.data() : nullptr, codes.data());
      digest.Add(codes);
      digest.Add(zeros);
      AddStored(encoding, steps, &digest);
      std::vector<double> sums(length);
      AddColumnErrors(source, encoding.numerics, bytes.data(), kRows, length,
                      low.data(), high.data(), sums.data());
      digest.AddNumbers({ScoreFromColumnSums(sums.data(), length, kRows)});
    }
  }
  return digest.Finish();
}

int Main() {
  bool equal = true;
  // Asked once: a target that is in use hides the better ones.
  const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  for (const Kind kind : {Kind::kUsual, Kind::kWide}) {
    for (const Mode mode : kAllModes) {
      for (const ElementType source : kSources) {
        const std::string name = std::string(ModeTraitsOf(mode).name) + " " +
                                 std::string(ElementTypeName(source)) + " " +
                                 kKindNames[static_cast<size_t>(kind)];
        std::string first;
        for (const int64_t target : targets) {
          hwy::SetSupportedTargetsForTest(target);
          hwy::GetChosenTarget().Update(hwy::SupportedTargets());
          const std::string digest = DigestOf(mode, source, kind);
          if (first.empty()) {
            first = digest;
            std::printf("%s %s\n", name.c_str(), digest.c_str());
          } else if (digest != first) {
            std::printf("DIFFERS %s %s %s\n", name.c_str(),
                        hwy::TargetName(target), digest.c_str());
            equal = false;
          }
        }
      }
    }
  }
  return equal ? 0 : 1;
}

}  // namespace
}  // namespace ovpress

int main() { return ovpress::Main(); }
