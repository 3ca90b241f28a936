// What Python prints, checked against recorded output of CPython 3.11.
#include "core/engine/python_text.h"

#include <cmath>
#include <limits>

#include "gtest/gtest.h"

namespace ovpress {
namespace {

TEST(PythonFloat, PrintsShortestDigitsAsRepr) {
  const struct {
    double value;
    const char* text;
  } kCases[] = {{0.8, "0.8"},
                {1.0, "1.0"},
                {0.0, "0.0"},
                {-2.5, "-2.5"},
                {0.1 + 0.2, "0.30000000000000004"},
                {1e-4, "0.0001"},
                {1e-5, "1e-05"},
                {1.5e-7, "1.5e-07"},
                {123456789012345680.0, "1.2345678901234568e+17"},
                {1e16, "1e+16"},
                {1e15, "1000000000000000.0"},
                {1e22, "1e+22"},
                {1e100, "1e+100"},
                {5e-324, "5e-324"},
                {1.0 / 3, "0.3333333333333333"},
                {std::numeric_limits<double>::infinity(), "inf"}};
  for (const auto& c : kCases) EXPECT_EQ(PythonFloat(c.value), c.text);
  EXPECT_EQ(PythonFloat(std::nan("")), "nan");
}

TEST(PythonString, ChoosesQuotesAndEscapes) {
  EXPECT_EQ(PythonString("mm1"), "'mm1'");
  EXPECT_EQ(PythonString("it's"), "\"it's\"");
  EXPECT_EQ(PythonString("a'b\"c"), "'a\\'b\"c'");
  EXPECT_EQ(PythonString("a\\d+\n\t"), "'a\\\\d+\\n\\t'");
  EXPECT_EQ(PythonString(absl::string_view("\x01\x7f", 2)), "'\\x01\\x7f'");
}

TEST(PythonString, EscapesWhatDoesNotPrint) {
  EXPECT_EQ(PythonString("Ünï 日本 😀"), "'Ünï 日本 😀'");
  EXPECT_EQ(PythonString("a\u200bb"), "'a\\u200bb'");
  EXPECT_EQ(PythonString("a\u00a0b\u00ad"), "'a\\xa0b\\xad'");
  EXPECT_EQ(PythonString("\u2028\ufeff\ue000"), "'\\u2028\\ufeff\\ue000'");
  EXPECT_EQ(PythonString("\U000e0001"), "'\\U000e0001'");
  // No UTF-8: as it is.
  EXPECT_EQ(PythonString("\xc3"), "'\xc3'");
  EXPECT_EQ(PythonString("\xe6\x97"), "'\xe6\x97'");
}

TEST(PythonList, JoinsReprs) {
  EXPECT_EQ(PythonList({}), "[]");
  EXPECT_EQ(PythonList({"a", "b'"}), "['a', \"b'\"]");
}

}  // namespace
}  // namespace ovpress
