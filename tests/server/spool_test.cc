// The memory and the file of a stream's spool.
#include "server/rpc/spool.h"

#include <atomic>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"

namespace ovpress {
namespace {

constexpr uint64_t kBlock = Spool::kBlockBytes;

class FakeScratch final : public ScratchBlob {
 public:
  explicit FakeScratch(uint64_t size) : bytes_(size, '?') {}
  uint64_t size_bytes() const override { return bytes_.size(); }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override {
    std::memcpy(out.data(), bytes_.data() + offset, out.size());
    return absl::OkStatus();
  }
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    std::memcpy(bytes_.data() + offset, bytes.data(), bytes.size());
    return absl::OkStatus();
  }

 private:
  std::string bytes_;
};

struct Fixture {
  int files_made = 0;
  absl::Status refuse;
  Spool::Args Args(uint64_t size, uint64_t memory) {
    return {.size_bytes = size,
            .memory_bytes = memory,
            .make_scratch =
                [this, size]() -> absl::StatusOr<std::unique_ptr<ScratchBlob>> {
              ++files_made;
              if (!refuse.ok()) return refuse;
              return std::make_unique<FakeScratch>(size);
            }};
  }
};

std::string Pattern(uint64_t from, size_t size) {
  std::string text(size, '\0');
  for (size_t i = 0; i < size; ++i) {
    text[i] = static_cast<char>((from + i) * 131 >> 7);
  }
  return text;
}

std::string Read(Spool& spool, uint64_t from, size_t size) {
  std::string text(size, '\0');
  const absl::Status status = spool.ReadAt(from, AsWritableBytes(text));
  return status.ok() ? text : std::string(status.message());
}

TEST(SpoolTest, WhatWasWrittenIsReadWhereverItLies) {
  for (const uint64_t memory : {kBlock, 3 * kBlock, 100 * kBlock}) {
    Fixture fixture;
    const uint64_t size = 5 * kBlock + 17;
    Spool spool(fixture.Args(size, memory));
    for (uint64_t at = 0; at < size; at += 70001) {
      const size_t part = std::min<uint64_t>(70001, size - at);
      ASSERT_TRUE(spool.WriteAt(at, AsBytes(Pattern(at, part))).ok());
    }
    EXPECT_EQ(Read(spool, 0, size), Pattern(0, size));
    EXPECT_EQ(fixture.files_made, memory < 6 * kBlock);
    std::string sliced;
    while (sliced.size() < size) {
      const auto slice = spool.SliceAt(sliced.size(), 300000);
      ASSERT_TRUE(slice.ok()) << slice.status();
      ASSERT_GT(slice->size(), 0u);
      sliced.append(slice->begin(), slice->end());
    }
    EXPECT_EQ(sliced, Pattern(0, size));
  }
}

TEST(SpoolTest, DroppedBlocksMakeRoomSoThatNoFileIsMade) {
  Fixture fixture;
  const uint64_t size = 50 * kBlock;
  Spool spool(fixture.Args(size, 2 * kBlock));
  for (uint64_t at = 0; at < size; at += kBlock) {
    ASSERT_TRUE(spool.WriteAt(at, AsBytes(Pattern(at, kBlock))).ok());
    EXPECT_EQ(spool.memory_full(), at > 0);
    EXPECT_EQ(Read(spool, at, kBlock), Pattern(at, kBlock));
    spool.DropBelow(at);  // the block before
  }
  EXPECT_EQ(fixture.files_made, 0);
}

TEST(SpoolTest, ASliceOutlivesItsBlockAndTheSpool) {
  Fixture fixture;
  grpc::Slice slice;
  {
    Spool spool(fixture.Args(4 * kBlock, 2 * kBlock));
    ASSERT_TRUE(spool.WriteAt(0, AsBytes(Pattern(0, kBlock))).ok());
    slice = *spool.SliceAt(0, kBlock);
    spool.DropBelow(kBlock);
    // Must not be written into the memory that the slice still shows.
    ASSERT_TRUE(spool.WriteAt(kBlock, AsBytes(Pattern(7, kBlock))).ok());
    ASSERT_TRUE(spool.WriteAt(2 * kBlock, AsBytes(Pattern(9, kBlock))).ok());
  }
  EXPECT_EQ(std::string(slice.begin(), slice.end()), Pattern(0, kBlock));
}

TEST(SpoolTest, MistakesAndFullDisksAreErrors) {
  Fixture fixture;
  Spool spool(fixture.Args(3 * kBlock, kBlock));
  EXPECT_THAT(Read(spool, 0, 1), testing::HasSubstr("never written"));
  ASSERT_TRUE(spool.WriteAt(0, AsBytes("x")).ok());
  fixture.refuse = absl::ResourceExhaustedError("disk full");
  EXPECT_EQ(spool.WriteAt(kBlock, AsBytes("x")), fixture.refuse);
  EXPECT_EQ(spool.ReserveFile(), fixture.refuse);
  spool.DropBelow(kBlock);
  EXPECT_THAT(Read(spool, 0, 1), testing::HasSubstr("dropped"));
  EXPECT_EQ(spool.WriteAt(3 * kBlock, AsBytes("x")).code(),
            absl::StatusCode::kInternal);
}

// One thread writes, another reads and drops behind it.
TEST(SpoolTest, WriterAndReaderAtOnce) {
  Fixture fixture;
  const uint64_t size = 40 * kBlock;
  Spool spool(fixture.Args(size, 4 * kBlock));
  std::atomic<uint64_t> written{0};
  std::thread writer([&] {
    for (uint64_t at = 0; at < size; at += kBlock / 4) {
      const absl::Status status =
          spool.WriteAt(at, AsBytes(Pattern(at, kBlock / 4)));
      ASSERT_TRUE(status.ok()) << status;
      written = at + kBlock / 4;
    }
  });
  for (uint64_t at = 0; at < size; at += kBlock) {
    while (written < at + kBlock) std::this_thread::yield();
    ASSERT_EQ(Read(spool, at, kBlock), Pattern(at, kBlock));
    spool.DropBelow(at + kBlock);
  }
  writer.join();
}

}  // namespace
}  // namespace ovpress
