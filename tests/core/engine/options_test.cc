// What NNCF refuses, we refuse, and say why.
#include "core/engine/options.h"

#include <cstring>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ovpress {
namespace {

using ::testing::HasSubstr;

void ExpectRefused(const CompressionOptions& options, const char* piece) {
  const absl::Status status = ValidateOptions(options);
  EXPECT_EQ(status.code(), absl::StatusCode::kInvalidArgument);
  EXPECT_THAT(std::string(status.message()), HasSubstr(piece));
}

TEST(ValidateOptions, Int8IsForTheWholeModel) {
  ExpectRefused({.mode = Mode::kInt8Asym, .ratio = 0.5}, "ratio cannot be 0.5");
  ExpectRefused({.mode = Mode::kInt8Sym, .group_size = 64},
                "group size cannot be 64");
  ExpectRefused({.mode = Mode::kInt8Asym, .all_layers = false}, "all_layers");
  ExpectRefused({.mode = Mode::kInt8Asym, .backup_mode = BackupMode::kInt8Sym},
                "backup_mode");
  ExpectRefused({.mode = Mode::kInt8Asym, .awq = false}, "awq");
  EXPECT_TRUE(ValidateOptions({.mode = Mode::kInt8Asym, .ratio = 1.0}).ok());
  EXPECT_TRUE(
      ValidateOptions({.mode = Mode::kInt8Asym, .group_size = -1}).ok());
}

TEST(ValidateOptions, Ranges) {
  ExpectRefused({.mode = Mode::kInt4Sym, .ratio = 1.5}, "[0, 1]");
  ExpectRefused({.mode = Mode::kInt4Sym, .ratio = -0.1}, "[0, 1]");
  ExpectRefused({.mode = Mode::kInt4Sym, .group_size = 0}, "not 0");
  ExpectRefused({.mode = Mode::kInt4Sym, .group_size = -2}, "not -2");
  EXPECT_TRUE(ValidateOptions({.mode = Mode::kInt4Sym, .ratio = 0.0}).ok());
}

TEST(ValidateOptions, FixedGroupSizes) {
  ExpectRefused({.mode = Mode::kMxfp4, .group_size = 64}, "group size of 32");
  ExpectRefused({.mode = Mode::kNvfp4, .group_size = 32}, "group size of 16");
  ExpectRefused({.mode = Mode::kMxfp8E4m3,
                 .group_size_fallback = GroupSizeFallback::kAdjust},
                "cannot be adjust");
  EXPECT_TRUE(ValidateOptions({.mode = Mode::kNvfp4, .group_size = 16}).ok());
}

TEST(ValidateOptions, AwqHasItsModes) {
  for (const Mode mode : {Mode::kMxfp4, Mode::kMxfp8E4m3, Mode::kFp8E4m3,
                          Mode::kFp4, Mode::kNvfp4}) {
    ExpectRefused({.mode = mode, .awq = true}, "does not work with awq");
  }
  EXPECT_TRUE(ValidateOptions({.mode = Mode::kNf4, .awq = true}).ok());
}

TEST(ValidateOptions, MetricsThatNeedData) {
  ExpectRefused({.mode = Mode::kInt4Sym,
                 .ratio = 0.5,
                 .sensitivity_metric = "max_activation_variance"},
                "needs a data set");
  // Nothing to rank: NNCF lets it pass.
  EXPECT_TRUE(ValidateOptions({.mode = Mode::kInt4Sym,
                               .sensitivity_metric = "max_activation_variance"})
                  .ok());
  ExpectRefused({.mode = Mode::kInt4Sym, .sensitivity_metric = "magic"},
                "unknown sensitivity metric 'magic'");
}

TEST(ValidateOptions, CodebookIsRequiredAndChecked) {
  ExpectRefused({.mode = Mode::kCodebook}, "needs a table");
}

TEST(CanonicalOptions, EqualMeaningGivesEqualText) {
  const CompressionOptions a{.mode = Mode::kInt4Sym};
  const CompressionOptions b{.mode = Mode::kInt4Sym, .group_size = 128};
  const CompressionOptions c{.mode = Mode::kInt4Sym, .ratio = 1.0};
  EXPECT_EQ(CanonicalOptions(a), CanonicalOptions(b));
  // "1" and "1.0" stand in rt_info, so these two results differ.
  EXPECT_NE(CanonicalOptions(a), CanonicalOptions(c));
  CompressionOptions d{.mode = Mode::kInt4Sym};
  d.ignored.names = {"x"};
  EXPECT_NE(CanonicalOptions(a), CanonicalOptions(d));
}

TEST(ParseCodebook, JsonArray) {
  std::string text;
  const auto codebook = ParseCodebook("[-1, 0, 0.5, 1]", &text);
  ASSERT_TRUE(codebook.ok()) << codebook.status();
  EXPECT_EQ((*codebook)->type, ElementType::kF32);
  EXPECT_THAT((*codebook)->values, ::testing::ElementsAre(-1, 0, 0.5, 1));
  EXPECT_EQ((*codebook)->stored.size(), 16u);
  // As NumPy prints it.
  EXPECT_EQ(text, "array([-1. ,  0. ,  0.5,  1. ], dtype=float32)");
}

// Against repr() of NumPy 2.4.6.
TEST(ParseCodebook, TextIsThatOfNumpy) {
  const struct {
    const char* json;
    const char* text;
  } kCases[] = {
      {"[-1e-5, 0.001, 123456.75]",
       "array([-9.9999997e-06,  1.0000000e-03,  1.2345675e+05], "
       "dtype=float32)"},
      {R"({"dtype": "f16", "values": [-65504, -40000, 0, 40000, 65504]})",
       "array([-6.55e+04, -4.00e+04,  0.00e+00,  4.00e+04,  6.55e+04],\n"
       "      dtype=float16)"},
      {R"({"dtype": "f64", "values": [-1e300, 0, 1e300]})",
       "array([-1.e+300,  0.e+000,  1.e+300])"},
      // The limits are those of the type: f32(0.0001) is no less than 0.0001.
      {"[0.0001, 0.05]", "array([0.0001, 0.05  ], dtype=float32)"},
      {"[0.0001, 0.002]", "array([0.0001, 0.002 ], dtype=float32)"},
      {"[999999, 999999.5]", "array([999999. , 999999.5], dtype=float32)"},
      {"[999999, 1000000]", "array([9.99999e+05, 1.00000e+06], dtype=float32)"},
      {R"({"dtype": "f64", "values": [999999, 1000000]})",
       "array([ 999999., 1000000.])"},
  };
  for (const auto& c : kCases) {
    std::string text;
    const auto codebook = ParseCodebook(c.json, &text);
    ASSERT_TRUE(codebook.ok()) << codebook.status();
    EXPECT_EQ(text, c.text) << c.json;
  }
}

TEST(ParseCodebook, RefusesWhatNncfRefuses) {
  const struct {
    const char* text;
    const char* piece;
  } kCases[] = {{"[1]", "at least two"},
                {"[]", "at least two"},
                {"[1, 1]", "ascend strictly"},
                {"[2, 1]", "ascend strictly"},
                {"[1, \"a\"]", "not a number"},
                {"[[1, 2]]", "not a number"},
                {"{\"values\": 3}", "array of numbers"},
                {"{}", "\"values\" is missing"},
                {"hello", "not valid JSON"},
                {"[1, 1e999]", ""},
                {"{\"dtype\": \"i4\", \"values\": [1, 2]}", "not supported"},
                {"{\"dtype\": \"u8\", \"values\": [1, 300]}", "does not fit"}};
  for (const auto& c : kCases) {
    const auto codebook = ParseCodebook(c.text, nullptr);
    EXPECT_FALSE(codebook.ok()) << c.text;
    EXPECT_THAT(std::string(codebook.status().message()), HasSubstr(c.piece));
  }
}

std::string Npy(const std::string& header, const std::string& data) {
  std::string padded = header;
  padded.append(63 - (10 + padded.size()) % 64, ' ');
  padded.push_back('\n');
  std::string out("\x93NUMPY\x01\x00", 8);
  out += static_cast<char>(padded.size() & 255);
  out += static_cast<char>(padded.size() >> 8);
  return out + padded + data;
}

TEST(ParseCodebook, NumpyFile) {
  const double values[] = {-2, 0.25, 3};
  const std::string data(reinterpret_cast<const char*>(values), sizeof(values));
  const std::string header =
      "{'descr': '<f8', 'fortran_order': False, 'shape': (3,), }";
  std::string text;
  const auto codebook = ParseCodebook(Npy(header, data), &text);
  ASSERT_TRUE(codebook.ok()) << codebook.status();
  EXPECT_EQ((*codebook)->type, ElementType::kF64);
  EXPECT_THAT((*codebook)->values, ::testing::ElementsAre(-2, 0.25, 3));
  EXPECT_EQ(text, "array([-2.  ,  0.25,  3.  ])");
  // Integers come whole or not at all.
  const int64_t large[] = {-2, 0, (1ll << 53) + 1};
  const auto refused = ParseCodebook(
      Npy("{'descr': '<i8', 'fortran_order': False, 'shape': (3,), }",
          std::string(reinterpret_cast<const char*>(large), sizeof(large))),
      nullptr);
  EXPECT_THAT(std::string(refused.status().message()),
              HasSubstr("9007199254740992 is not below 2^53"));
  // Cut off at every byte: an error, never a crash.
  const std::string whole = Npy(header, data);
  for (size_t size = 0; size < whole.size(); ++size) {
    EXPECT_FALSE(ParseCodebook(whole.substr(0, size), nullptr).ok()) << size;
  }
  EXPECT_FALSE(
      ParseCodebook(
          Npy("{'descr': '<f8', 'fortran_order': False, 'shape': (1, 3), }",
              data),
          nullptr)
          .ok());
  EXPECT_FALSE(
      ParseCodebook(
          Npy("{'descr': '>f8', 'fortran_order': False, 'shape': (3,), }",
              data),
          nullptr)
          .ok());
}

}  // namespace
}  // namespace ovpress
