// Files that appear whole or not at all; executors that agree.
#include "core/base/io.h"

#include <sys/stat.h>

#include <atomic>
#include <cerrno>
#include <filesystem>
#include <fstream>
#include <sstream>

#include "core/base/element_type.h"
#include "core/base/executor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using ::ovpress::testing::StatusIs;
using ::testing::HasSubstr;
namespace fs = std::filesystem;

class IoTest : public ::testing::Test {
 protected:
  IoTest() {
    std::string name =
        (fs::temp_directory_path() / "ovpress-io-XXXXXX").string();
    directory_ = ::mkdtemp(name.data());
  }
  ~IoTest() override { fs::remove_all(directory_); }
  std::string Path(const std::string& name) const {
    return (directory_ / name).string();
  }
  size_t FileCount() const {
    return static_cast<size_t>(std::distance(fs::directory_iterator(directory_),
                                             fs::directory_iterator()));
  }
  fs::path directory_;
};

std::span<const std::byte> Bytes(const std::string& text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

std::string Content(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

TEST_F(IoTest, AtomicFileAppearsOnCommit) {
  {
    auto file = AtomicFile::Create(Path("a"), 10);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE((*file)->WriteAt(5, Bytes("world")).ok());
    ASSERT_TRUE((*file)->WriteAt(0, Bytes("hello")).ok());
    EXPECT_FALSE(fs::exists(Path("a")));
    ASSERT_TRUE((*file)->Commit().ok());
  }
  EXPECT_EQ(Content(Path("a")), "helloworld");
  EXPECT_EQ(FileCount(), 1u);
}

TEST_F(IoTest, WithoutCommitNothingIsLeftAndTheOldFileStays) {
  std::ofstream(Path("a")) << "old";
  {
    auto file = AtomicFile::Create(Path("a"), 1 << 20);
    ASSERT_TRUE(file.ok());
    ASSERT_TRUE((*file)->WriteAt(0, Bytes("new")).ok());
  }
  EXPECT_EQ(Content(Path("a")), "old");
  EXPECT_EQ(FileCount(), 1u);
}

TEST_F(IoTest, FilesThatBelongTogetherArePublishedTogetherOrNot) {
  for (const bool replace : {false, true}) {
    // The second name is taken by a folder that appeared meanwhile, so that its
    // rename fails after the first one's.
    if (replace) {
      std::ofstream(Path("a.bin")) << "old bin";
      std::ofstream(Path("a.xml")) << "old xml";
    }
    for (const bool broken : {true, false}) {
      auto bin = AtomicFile::Create(Path("a.bin"), 0);
      auto xml = AtomicFile::Create(Path("a.xml"), 0);
      ASSERT_TRUE(bin.ok() && xml.ok());
      ASSERT_TRUE((*bin)->WriteAt(0, Bytes("new bin")).ok());
      ASSERT_TRUE((*xml)->WriteAt(0, Bytes("new xml")).ok());
      ASSERT_TRUE((*bin)->Sync().ok() && (*xml)->Sync().ok());
      if (broken) fs::remove((*xml)->temporary_path());
      AtomicFile* const files[] = {bin->get(), xml->get()};
      const absl::Status status = PublishTogether(files);
      bin->reset();
      xml->reset();
      EXPECT_EQ(status.ok(), !broken) << status;
      if (!broken) {
        EXPECT_EQ(Content(Path("a.bin")), "new bin");
        EXPECT_EQ(Content(Path("a.xml")), "new xml");
        EXPECT_EQ(FileCount(), 2u);
      } else {
        EXPECT_THAT(status,
                    StatusIs(absl::StatusCode::kNotFound, HasSubstr("a.xml")));
        EXPECT_EQ(FileCount(), replace ? 2u : 0u);
        EXPECT_EQ(Content(Path("a.bin")), replace ? "old bin" : "");
        EXPECT_EQ(Content(Path("a.xml")), replace ? "old xml" : "");
      }
    }
    fs::remove(Path("a.bin"));
    fs::remove(Path("a.xml"));
  }
}

TEST_F(IoTest, FinishedFilesHaveOrdinaryPermissions) {
  const mode_t old = ::umask(027);
  auto file = AtomicFile::Create(Path("a"), 0);
  ::umask(old);
  ASSERT_TRUE(file.ok());
  ASSERT_TRUE((*file)->Commit().ok());
  struct stat info;
  ASSERT_EQ(::stat(Path("a").c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0640u);
}

TEST_F(IoTest, ErrorsNameThePath) {
  EXPECT_THAT(
      AtomicFile::Create(Path("no/such/dir/a"), 0),
      StatusIs(absl::StatusCode::kNotFound, HasSubstr("no/such/dir/a")));
  EXPECT_THAT(AtomicFile::Create(directory_.string(), 0),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("not a regular file")));
  EXPECT_THAT(OpenFileSource(Path("absent")),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("absent")));
  EXPECT_THAT(OpenFileSource(directory_.string()),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("not a regular file")));
  ASSERT_EQ(::mkfifo(Path("fifo").c_str(), 0600), 0);
  EXPECT_THAT(OpenFileSource(Path("fifo")),
              StatusIs(absl::StatusCode::kInvalidArgument,
                       HasSubstr("not a regular file")));
  EXPECT_FALSE(AtomicFile::Create(Path("huge"), 1ull << 62).ok());
  EXPECT_FALSE(fs::exists(Path("huge")));
}

TEST(ErrnoToStatus, MapsToCodesACallerCanActOn) {
  EXPECT_EQ(ErrnoToStatus(ENOSPC, "x").code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(ErrnoToStatus(EACCES, "x").code(),
            absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(ErrnoToStatus(EIO, "x").code(), absl::StatusCode::kUnavailable);
}

TEST_F(IoTest, AFileCutShortIsDataLoss) {
  std::ofstream(Path("a")) << std::string(1000, 'x');
  const auto source = OpenFileSource(Path("a"));
  ASSERT_TRUE(source.ok());
  fs::resize_file(Path("a"), 500);
  std::vector<std::byte> buffer(600);
  EXPECT_THAT((*source)->ReadAt(0, buffer),
              StatusIs(absl::StatusCode::kDataLoss, HasSubstr("cut short")));
  EXPECT_THAT(
      (*source)->ReadAt(900, buffer),
      StatusIs(absl::StatusCode::kDataLoss, HasSubstr("which has 1000")));
}

TEST_F(IoTest, SmallFilesHaveALimit) {
  std::ofstream(Path("a")) << "12345";
  EXPECT_EQ(*ReadSmallFile(Path("a"), 5), "12345");
  EXPECT_THAT(ReadSmallFile(Path("a"), 4),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("the limit is 4")));
}

TEST(ElementType, SizesPackAndOverflowIsSeen) {
  EXPECT_EQ(PackedSizeBytes(ElementType::kU4, 3), 2u);
  EXPECT_EQ(PackedSizeBytes(ElementType::kU1, 9), 2u);
  EXPECT_EQ(PackedSizeBytes(ElementType::kU2, 5), 2u);
  EXPECT_EQ(PackedSizeBytes(ElementType::kU3, 1), 3u);
  EXPECT_EQ(PackedSizeBytes(ElementType::kU3, 9), 6u);
  EXPECT_EQ(PackedSizeBytes(ElementType::kF16, 0), 0u);
  EXPECT_EQ(PackedSizeBytes(ElementType::kF16, 1ull << 63), std::nullopt);
  EXPECT_EQ(PackedSizeBytes(ElementType::kString, 1), std::nullopt);
  for (int i = 0; i <= static_cast<int>(ElementType::kString); ++i) {
    const auto type = static_cast<ElementType>(i);
    EXPECT_EQ(ParseElementType(ElementTypeName(type)), type);
    EXPECT_EQ(ParseElementType(PortPrecisionName(type)), type);
  }
  EXPECT_EQ(ParseElementType("f33"), std::nullopt);
}

class Executors : public ::testing::TestWithParam<int> {
 protected:
  static std::unique_ptr<Executor> Make() {
    switch (GetParam()) {
      case 0:
        return MakeSerialExecutor();
      case 1:
        return MakeThreadsExecutor(4);
      default:
        return MakeTbbExecutor(4);
    }
  }
};
INSTANTIATE_TEST_SUITE_P(All, Executors, ::testing::Values(0, 1, 2));

TEST_P(Executors, RunsEachIndexOnce) {
  const auto executor = Make();
  std::vector<std::atomic<int>> counts(1000);
  const absl::Status status = executor->ParallelFor(1000, [&](size_t i) {
    counts[i].fetch_add(1);
    return absl::OkStatus();
  });
  EXPECT_TRUE(status.ok());
  for (const auto& count : counts) EXPECT_EQ(count.load(), 1);
  EXPECT_TRUE(
      executor
          ->ParallelFor(0, [](size_t) { return absl::InternalError("never"); })
          .ok());
}

TEST_P(Executors, StopsAfterAnErrorAndReturnsTheFirst) {
  const auto executor = Make();
  std::atomic<int> ran{0};
  const absl::Status status = executor->ParallelFor(100000, [&](size_t i) {
    ran.fetch_add(1);
    return i >= 10 ? absl::DataLossError(std::to_string(i)) : absl::OkStatus();
  });
  EXPECT_EQ(status.message(), "10");
  EXPECT_LT(ran.load(), 1000);
}

TEST_P(Executors, LoopsNest) {
  const auto executor = Make();
  std::atomic<int> ran{0};
  const absl::Status status = executor->ParallelFor(8, [&](size_t) {
    return executor->ParallelFor(8, [&](size_t) {
      ran.fetch_add(1);
      return absl::OkStatus();
    });
  });
  EXPECT_TRUE(status.ok());
  EXPECT_EQ(ran.load(), 64);
}

}  // namespace
}  // namespace ovpress
