// What the tests over the real programs (tests/package) cannot provoke:
// characters that mean something to roff or a shell, and hidden things.
#include "core/usage/usage.h"

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ovpress {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class UsageTest : public ::testing::Test {
 protected:
  UsageTest() {
    app_.add_option("--plain", text_, ".dotted \\ and the user's [own]: list")
        ->type_name("FILE");
    app_.add_option("--format", text_, "How")
        ->check(CLI::IsMember({"text", "json"}));
    app_.add_option("--many", list_, "Again; and again")
        ->allow_extra_args(false);
    app_.add_flag("--secret", flag_, "Not for users")->group("");
    app_.add_subcommand("hidden", "Not for users")->group("");
    app_.add_subcommand("shown", "For users");
  }

  CLI::App app_{"Does things", "do-it"};
  std::string text_;
  std::vector<std::string> list_;
  bool flag_ = false;
};

TEST_F(UsageTest, TextCannotBeTakenForRoffOrShell) {
  EXPECT_THAT(ManPage(app_, {.section = 1, .version = "1", .summary = "do"}),
              HasSubstr("\n\\&.dotted \\e and the user's [own]: list."));
  EXPECT_THAT(CompletionScript(app_, Shell::kZsh, {}),
              HasSubstr("'--plain=[.dotted \\ and the user'\\''s \\[own\\]]"));
  EXPECT_THAT(CompletionScript(app_, Shell::kFish, {}),
              HasSubstr("-d '.dotted \\\\ and the user\\'s [own]'"));
}

TEST_F(UsageTest, WhatIsHiddenStaysHidden) {
  std::vector<std::string> texts = {
      ManPage(app_, {.section = 1, .version = "1", .summary = "do"})};
  for (const Shell shell : {Shell::kBash, Shell::kZsh, Shell::kFish}) {
    texts.push_back(CompletionScript(app_, shell, {}));
  }
  for (const std::string& text : texts) {
    EXPECT_THAT(text, AllOf(HasSubstr("shown"), Not(HasSubstr("secret")),
                            Not(HasSubstr("hidden"))));
  }
}

TEST_F(UsageTest, ValuesComeFromTheCheckOrTheCaller) {
  EXPECT_THAT(CompletionScript(app_, Shell::kBash, {{"--plain", {"a", "b"}}}),
              AllOf(HasSubstr("' --format') words='text json' value=1"),
                    HasSubstr("' --plain') words='a b' value=1")));
  EXPECT_THAT(CompletionScript(app_, Shell::kBash, {}),
              HasSubstr("' --plain') return"));
  EXPECT_THAT(CompletionScript(app_, Shell::kZsh, {}),
              AllOf(HasSubstr("'*--many=[Again]"), HasSubstr("_do_it()")));
}

}  // namespace
}  // namespace ovpress
