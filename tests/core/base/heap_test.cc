#include "core/base/heap.h"

#include <malloc.h>

#include <memory>
#include <vector>

#include "gtest/gtest.h"

namespace ovpress {
namespace {

TEST(HeapTest, GivesBackWhatLiesBetween) {
  constexpr size_t kPiece = 50'000;
  constexpr size_t kPieces = 8'000;  // 400 MB
  std::vector<std::unique_ptr<char[]>> pieces;
  for (size_t i = 0; i < kPieces; ++i) {
    pieces.push_back(std::make_unique<char[]>(kPiece));
  }
  if (::mallinfo2().uordblks < kPiece * kPieces) {
    GTEST_SKIP() << "not glibc's allocator, but a sanitizer's or Valgrind's";
  }
  EXPECT_FALSE(GiveBackIdleHeap()) << "all of it is in use";
  // The last one stays, so that glibc by itself gives back nothing.
  pieces.erase(pieces.begin(), pieces.end() - 1);
  const uint64_t before = ResidentBytes();
  ASSERT_GT(before, kPiece * kPieces / 2);
  EXPECT_TRUE(GiveBackIdleHeap());
  EXPECT_LT(ResidentBytes() + kPiece * kPieces / 2, before);
  EXPECT_FALSE(GiveBackIdleHeap()) << "there is no more";
}

}  // namespace
}  // namespace ovpress
