// Every byte arrives once, in few aligned writes, whatever the order.
#include "core/base/gathering_sink.h"

#include <algorithm>
#include <mutex>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using ::ovpress::testing::StatusIs;
using ::testing::HasSubstr;

constexpr uint64_t kBlock = GatheringSink::kBlockBytes;

class RecordingSink : public ByteSink {
 public:
  explicit RecordingSink(size_t size) : bytes(size), times(size) {}
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> data) override {
    std::lock_guard<std::mutex> lock(mutex);
    if (!failure.ok()) return failure;
    writes.emplace_back(offset, data.size());
    for (size_t i = 0; i < data.size(); ++i) {
      bytes.at(offset + i) = data[i];
      ++times.at(offset + i);
    }
    return absl::OkStatus();
  }
  bool EachOnce() const {
    return std::all_of(times.begin(), times.end(),
                       [](int count) { return count == 1; });
  }

  std::mutex mutex;
  absl::Status failure;
  std::vector<std::byte> bytes;
  std::vector<int> times;
  std::vector<std::pair<uint64_t, uint64_t>> writes;
};

std::vector<std::byte> Noise(size_t size) {
  std::mt19937 random(7);
  std::vector<std::byte> bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random());
  return bytes;
}

// [0, size) cut at random places.
std::vector<std::pair<uint64_t, uint64_t>> Pieces(uint64_t size,
                                                  uint64_t longest) {
  std::mt19937 random(static_cast<uint32_t>(size + longest));
  std::vector<std::pair<uint64_t, uint64_t>> pieces;
  for (uint64_t at = 0; at < size;) {
    const uint64_t length = std::min(size - at, 1 + random() % longest);
    pieces.emplace_back(at, at + length);
    at += length;
  }
  std::shuffle(pieces.begin(), pieces.end(), random);
  return pieces;
}

TEST(GatheringSinkTest, AnyOrderFromSeveralThreads) {
  for (const uint64_t size :
       {uint64_t{1}, kBlock - 1, kBlock, kBlock + 1, 40 * kBlock + 4321}) {
    for (const uint64_t longest : {uint64_t{700}, kBlock, 5 * kBlock}) {
      const std::vector<std::byte> bytes = Noise(size);
      RecordingSink to(size);
      GatheringSink sink(&to, size);
      const auto pieces = Pieces(size, longest);
      std::vector<std::thread> threads;
      for (size_t t = 0; t < 3; ++t) {
        threads.emplace_back([&, t] {
          for (size_t i = t; i < pieces.size(); i += 3) {
            const auto [begin, end] = pieces[i];
            EXPECT_TRUE(sink.WriteAt(begin, std::span<const std::byte>(bytes)
                                                .subspan(begin, end - begin))
                            .ok());
          }
        });
      }
      for (std::thread& thread : threads) thread.join();
      // All blocks are complete: nothing is left to flush.
      EXPECT_TRUE(to.EachOnce()) << size << " " << longest;
      EXPECT_EQ(to.bytes, bytes);
      for (const auto& [offset, length] : to.writes) {
        EXPECT_EQ(offset % kBlock, 0u);
        EXPECT_TRUE(length % kBlock == 0 || offset + length == size) << length;
      }
      ASSERT_TRUE(sink.Flush().ok());
      EXPECT_TRUE(to.EachOnce());
    }
  }
}

TEST(GatheringSinkTest, FlushWritesWhatCameAndNoMore) {
  RecordingSink to(2 * kBlock);
  GatheringSink sink(&to, 2 * kBlock);
  const std::vector<std::byte> bytes = Noise(100);
  ASSERT_TRUE(sink.WriteAt(50, bytes).ok());
  ASSERT_TRUE(sink.WriteAt(300, bytes).ok());
  ASSERT_TRUE(sink.WriteAt(150, bytes).ok());
  ASSERT_TRUE(sink.WriteAt(kBlock - 30, bytes).ok());
  EXPECT_TRUE(to.writes.empty());
  ASSERT_TRUE(sink.Flush().ok());
  using Write = std::pair<uint64_t, uint64_t>;
  EXPECT_THAT(to.writes, ::testing::UnorderedElementsAre(
                             Write(50, 200), Write(300, 100),
                             Write(kBlock - 30, 30), Write(kBlock, 70)));
}

TEST(GatheringSinkTest, HoldsABoundedNumberOfBlocks) {
  const uint64_t blocks = 3 * GatheringSink::kBlocksMax;
  RecordingSink to(blocks * kBlock);
  GatheringSink sink(&to, blocks * kBlock);
  const std::vector<std::byte> bytes = Noise(kBlock);
  const std::span<const std::byte> all(bytes);
  for (uint64_t i = 0; i < blocks; ++i) {
    ASSERT_TRUE(sink.WriteAt(i * kBlock + 5, all.subspan(5, 10)).ok());
  }
  EXPECT_EQ(to.writes.size(), blocks - GatheringSink::kBlocksMax);
  for (uint64_t i = 0; i < blocks; ++i) {
    ASSERT_TRUE(sink.WriteAt(i * kBlock + 15, all.subspan(15)).ok());
    ASSERT_TRUE(sink.WriteAt(i * kBlock, all.first(5)).ok());
  }
  ASSERT_TRUE(sink.Flush().ok());
  EXPECT_TRUE(to.EachOnce());
  for (uint64_t i = 0; i < blocks; ++i) {
    EXPECT_TRUE(std::equal(bytes.begin(), bytes.end(),
                           to.bytes.begin() +
                               static_cast<ptrdiff_t>(i * kBlock)));
  }
}

TEST(GatheringSinkTest, TellsOfFailedWritesAndOfBytesBeyondTheEnd) {
  RecordingSink to(kBlock);
  GatheringSink sink(&to, kBlock);
  const std::vector<std::byte> bytes = Noise(kBlock);
  const std::span<const std::byte> all(bytes);
  EXPECT_THAT(sink.WriteAt(1, all),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("leave")));
  to.failure = absl::ResourceExhaustedError("the disk is full");
  EXPECT_TRUE(sink.WriteAt(0, all.first(10)).ok());
  EXPECT_THAT(sink.WriteAt(10, all.subspan(10)),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("the disk is full")));
}

}  // namespace
}  // namespace ovpress
