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

auto Refused(const char* reason) {
  return StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr(reason));
}

TEST(CheckTargetDevice, NpuTakesWhatItsGuideNames) {
  const auto check = [](const CompressionOptions& options) {
    return CheckTargetDevice(options, "npu");
  };
  EXPECT_TRUE(check({.mode = Mode::kInt8Asym}).ok());
  EXPECT_TRUE(check({.mode = Mode::kInt4Sym}).ok());
  EXPECT_TRUE(check({.mode = Mode::kInt4Sym, .group_size = -1}).ok());
  EXPECT_TRUE(check({.mode = Mode::kInt4Sym, .ratio = 1.0}).ok());
  EXPECT_TRUE(check({.mode = Mode::kNf4, .group_size = -1}).ok());
  EXPECT_THAT(check({.mode = Mode::kInt4Asym}),
              Refused("mode int4_asym: 4-bit weights must be int4_sym or nf4"));
  EXPECT_THAT(check({.mode = Mode::kMxfp4}), Refused("mode mxfp4"));
  EXPECT_THAT(check({.mode = Mode::kInt4Sym, .group_size = 64}),
              Refused("group size 64: it must be 128 or -1"));
  EXPECT_THAT(check({.mode = Mode::kNf4}), Refused("nf4 must be channel-wise"));
  EXPECT_THAT(check({.mode = Mode::kInt4Sym, .ratio = 0.8}),
              Refused("ratio 0.8"));
}

TEST(CheckTargetDevice, GpuTakesWhatIsDocumentedForIt) {
  for (const Mode mode : kAllModes) {
    const bool refused = mode == Mode::kInt3Sym || mode == Mode::kInt2Sym ||
                         mode == Mode::kFp4 || mode == Mode::kFp8E4m3 ||
                         mode == Mode::kCb4 || mode == Mode::kCodebook;
    const absl::Status status = CheckTargetDevice({.mode = mode}, "gpu");
    EXPECT_EQ(status.ok(), !refused) << ModeTraitsOf(mode).name;
  }
  EXPECT_THAT(CheckTargetDevice({.mode = Mode::kFp4}, "gpu"),
              Refused("mode fp4: no documentation"));
  EXPECT_THAT(
      CheckTargetDevice(
          {.mode = Mode::kMxfp4, .backup_mode = BackupMode::kFp8E4m3}, "gpu"),
      Refused("backup mode fp8_e4m3"));
}

TEST(CheckTargetDevice, CpuTakesEveryMode) {
  for (const Mode mode : kAllModes) {
    EXPECT_TRUE(CheckTargetDevice({.mode = mode}, "cpu").ok());
  }
  EXPECT_THAT(CheckTargetDevice({}, "tpu"), Refused("one of: cpu, gpu, npu"));
}

}  // namespace
}  // namespace ovpress
