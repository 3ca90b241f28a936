// The multiplied quotient against the division, for all significands of
// divisors and of weights with eleven bits. Exponents only shift both, within
// the bounds that Reciprocals checks.
#include <atomic>
#include <bit>
#include <cstdint>
#include <vector>

#include "core/base/executor.h"
#include "gtest/gtest.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "tests/core/quant/quotient_test.cc"
#include "hwy/foreach_target.h"  // must stand before highway.h
#include "hwy/highway.h"
// After highway.h:
#include "core/quant/quotient-inl.h"

HWY_BEFORE_NAMESPACE();
namespace ovpress {
namespace HWY_NAMESPACE {

// Quotients that differ from w / s, over s = 2^e * (1 + m / 2^23) for m from
// `first` in steps of `stride` and w = sign * (1 + k / 2^10) for all k. 0 where
// the target does not multiply.
uint64_t WrongQuotients(uint32_t first, uint32_t stride, int exponent) {
  if (!kHasFma) return 0;
  const hn::ScalableTag<float> df;
  const hn::RebindToSigned<decltype(df)> di;
  const size_t n = hn::Lanes(df);
  uint64_t wrong = 0;
  for (uint32_t m = first; m < 1u << 23; m += stride) {
    const float divisor =
        std::bit_cast<float>(static_cast<uint32_t>(127 + exponent) << 23 | m);
    const auto s = hn::Set(df, divisor);
    const auto y = hn::Set(df, 1.0f / divisor);
    auto same = hn::Eq(s, s);
    for (uint32_t k = 0; k < 1u << 10; k += static_cast<uint32_t>(n)) {
      const auto significand =
          hn::ShiftLeft<13>(hn::Iota(di, static_cast<int32_t>(k)));
      const auto w =
          hn::BitCast(df, hn::Or(significand, hn::Set(di, 0x3f800000)));
      same = hn::And(same, hn::Eq(MultipliedQuotient(w, s, y), hn::Div(w, s)));
    }
    wrong += !hn::AllTrue(df, same);
  }
  return wrong;
}

}  // namespace HWY_NAMESPACE
}  // namespace ovpress
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace ovpress {
namespace {

HWY_EXPORT(WrongQuotients);

void Use(int64_t target) {
  hwy::SetSupportedTargetsForTest(target);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

uint64_t CountWrong(uint32_t stride, int exponent) {
  constexpr size_t kParts = 64;
  std::atomic<uint64_t> wrong{0};
  const auto status =
      MakeThreadsExecutor(2)->ParallelFor(kParts, [&](size_t part) {
        wrong += HWY_DYNAMIC_DISPATCH(WrongQuotients)(
            static_cast<uint32_t>(part) * stride,
            stride * static_cast<uint32_t>(kParts), exponent);
        return absl::OkStatus();
      });
  EXPECT_TRUE(status.ok());
  return wrong;
}

TEST(MultipliedQuotient, IsTheDivisionForAllWeightsOfElevenBits) {
  const std::vector<int64_t> targets = hwy::SupportedAndGeneratedTargets();
  for (size_t i = 0; i < targets.size(); ++i) {
    Use(targets[i]);
    // All divisors on the best target (2^33 quotients); the operations are
    // IEEE's on all of them, so a sample shows that the others do the same.
    EXPECT_EQ(CountWrong(i == 0 ? 1 : 257, 0), 0u)
        << hwy::TargetName(targets[i]);
    // The bounds of the divisor.
    EXPECT_EQ(CountWrong(1021, -24), 0u);
    EXPECT_EQ(CountWrong(1021, 23), 0u);
  }
  Use(0);
}

}  // namespace
}  // namespace ovpress
#endif  // HWY_ONCE
