// The local job on real files: plans of real models, whole outputs or none.
#include <signal.h>
#include <sys/resource.h>

#include <filesystem>
#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "core/engine/compression.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using ::ovpress::testing::StatusIs;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

std::string Read(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string ModelXml(const std::string& name) {
  return absl::StrCat(OVPRESS_TEST_DATA_DIR, "/models/", name,
                      "/openvino_model.xml");
}

class Files : public ::testing::Test {
 protected:
  Files() : executor_(MakeThreadsExecutor(2)) {
    std::string name =
        (fs::temp_directory_path() / "ovpress-files-XXXXXX").string();
    directory_ = ::mkdtemp(name.data());
    run_.executor = executor_.get();
  }
  ~Files() override { fs::remove_all(directory_); }
  bool Empty() const { return fs::is_empty(directory_); }
  std::string Out() const { return (directory_ / "out.xml").string(); }

  fs::path directory_;
  std::unique_ptr<Executor> executor_;
  RunOptions run_;
};

TEST(Plans, AreThoseRecorded) {
  for (const char* name :
       {"bert", "gpt2", "llama", "llama_tied", "qwen2", "resnet"}) {
    const auto compression = Compression::Create(
        Read(ModelXml(name)),
        {.mode = Mode::kInt4Sym,
         .ratio = 0.8,
         .group_size = 32,
         .group_size_fallback = GroupSizeFallback::kAdjust});
    ASSERT_TRUE(compression.ok()) << name << ": " << compression.status();
    EXPECT_EQ((*compression)->PlanText(),
              Read(fs::path(OVPRESS_TEST_DATA_DIR) / "plans" /
                   absl::StrCat(name, ".txt")))
        << name;
  }
}

TEST_F(Files, WritesBothFilesAndNothingElse) {
  const auto report = CompressFiles({ModelXml("llama"), "", Out()}, {}, run_);
  ASSERT_TRUE(report.ok()) << report.status();
  EXPECT_EQ(std::distance(fs::directory_iterator(directory_),
                          fs::directory_iterator()),
            2);
  EXPECT_EQ(fs::file_size(directory_ / "out.bin"), report->bin_bytes_after);
  // What was written reads again, and nothing is left to compress.
  const auto again = Compression::Create(Read(directory_ / "out.xml"), {});
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(
      (*again)->model().CheckConstantRanges(report->bin_bytes_after).ok());
}

TEST_F(Files, RefusesToOverwriteTheInput) {
  fs::copy(ModelXml("resnet"), directory_ / "m.xml");
  fs::copy(fs::path(ModelXml("resnet")).replace_extension(".bin"),
           directory_ / "m.bin");
  const std::string in = (directory_ / "m.xml").string();
  EXPECT_THAT(CompressFiles({in, "", in}, {}, run_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("never overwritten")));
  fs::create_symlink(directory_ / "m.bin", directory_ / "out.bin");
  EXPECT_THAT(CompressFiles({in, "", Out()}, {}, run_),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("never overwritten")));
  EXPECT_EQ(Read(directory_ / "m.xml"), Read(ModelXml("resnet")));
}

TEST_F(Files, FailuresLeaveNothingBehind) {
  EXPECT_THAT(CompressFiles({"absent.xml", "", Out()}, {}, run_),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("absent.xml")));
  EXPECT_THAT(CompressFiles({ModelXml("llama"), "absent.bin", Out()}, {}, run_),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("absent.bin")));
  EXPECT_THAT(CompressFiles({ModelXml("llama"), "", "/proc/out.xml"}, {}, run_),
              ::testing::Not(StatusIs(absl::StatusCode::kOk, "")));
  std::atomic<bool> stop{true};
  run_.stop = &stop;
  EXPECT_THAT(CompressFiles({ModelXml("llama"), "", Out()}, {}, run_),
              StatusIs(absl::StatusCode::kCancelled, HasSubstr("cancelled")));
  EXPECT_TRUE(Empty());
}

TEST_F(Files, ADiskThatTakesNoMoreIsResourceExhausted) {
  // A limit on file sizes fails reservations and writes as a full disk does.
  ::signal(SIGXFSZ, SIG_IGN);
  rlimit old{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &old), 0);
  for (const rlim_t bytes : {0, 1000, 300000}) {
    rlimit small = old;
    small.rlim_cur = bytes;
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
    const auto report = CompressFiles({ModelXml("llama"), "", Out()}, {}, run_);
    ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &old), 0);
    EXPECT_EQ(report.status().code(), absl::StatusCode::kResourceExhausted)
        << report.status();
    EXPECT_TRUE(Empty()) << bytes;
  }
}

TEST_F(Files, ACutWeightsFileIsDataLossBeforeAnyWork) {
  fs::copy(ModelXml("llama"), directory_ / "m.xml");
  const std::string bin =
      Read(fs::path(ModelXml("llama")).replace_extension(".bin"));
  std::ofstream(directory_ / "m.bin") << bin.substr(0, bin.size() - 1);
  EXPECT_THAT(
      CompressFiles({(directory_ / "m.xml").string(), "", Out()}, {}, run_),
      StatusIs(absl::StatusCode::kDataLoss,
               HasSubstr("leaves the weights file")));
  EXPECT_FALSE(fs::exists(Out()));
}

}  // namespace
}  // namespace ovpress
