#include "core/engine/presets.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using ::ovpress::testing::StatusIs;
using ::testing::HasSubstr;

TEST(Presets, AreValidAndFound) {
  for (const Preset& preset : Presets()) {
    CompressionOptions options;
    options.mode = preset.mode;
    options.ratio = preset.ratio;
    options.group_size = preset.group_size;
    if (preset.awq) options.awq = true;
    EXPECT_TRUE(ValidateOptions(options).ok()) << preset.name;
    EXPECT_EQ(FindPreset(preset.name), &preset);
    if (preset.name.substr(0, 3) == "npu") {
      EXPECT_TRUE(CheckTargetDevice(options, "npu").ok()) << preset.name;
    }
  }
  EXPECT_EQ(FindPreset("nothing"), nullptr);
}

TEST(CheckTargetDevice, NpuTakesSymmetricIntegersOnly) {
  EXPECT_THAT(CheckTargetDevice({.mode = Mode::kInt4Asym}, "npu"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("mode int4_asym")));
  EXPECT_THAT(
      CheckTargetDevice({.mode = Mode::kInt4Sym, .group_size = 64}, "npu"),
      StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("group size 64")));
  EXPECT_TRUE(CheckTargetDevice({.mode = Mode::kInt4Sym}, "npu").ok());
  EXPECT_TRUE(CheckTargetDevice({.mode = Mode::kInt4Asym}, "gpu").ok());
  EXPECT_THAT(CheckTargetDevice({}, "tpu"),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("one of: cpu, gpu, npu")));
}

}  // namespace
}  // namespace ovpress
