#include "core/base/hash_thread.h"

#include <memory>
#include <string>

#include "core/base/io.h"
#include "gtest/gtest.h"

namespace ovpress {
namespace {

TEST(HashThreadTest, GivesTheDigestOfAllPieces) {
  EXPECT_EQ(HashThread().FinishHex(), Sha256Hex(""));
  std::string all;
  HashThread hash;
  // More than may wait, so that Update() has to.
  for (int i = 0; i < 40; ++i) {
    const auto piece = std::make_shared<const std::string>(
        static_cast<size_t>(300'000 + i), static_cast<char>('a' + i % 26));
    all += *piece;
    hash.Update(AsBytes(*piece), piece);
  }
  EXPECT_EQ(hash.FinishHex(), Sha256Hex(all));
}

TEST(HashThreadTest, KeepsPiecesAliveAndLetsGoOfThem) {
  auto piece = std::make_shared<const std::string>(1'000'000, 'x');
  const std::weak_ptr<const std::string> seen = piece;
  {
    HashThread hash;
    const std::span<const std::byte> bytes = AsBytes(*piece);
    hash.Update(bytes, std::move(piece));
    EXPECT_EQ(hash.FinishHex(), Sha256Hex(std::string(1'000'000, 'x')));
    EXPECT_TRUE(seen.expired());
  }
  // One that nobody asks for its digest ends all the same.
  HashThread dropped;
  dropped.Update(AsBytes("abc"), nullptr);
}

}  // namespace
}  // namespace ovpress
