// The digests of a blob, while its bytes pass by in order: of all of it, and of
// each block.
#ifndef OVPRESS_SERVER_CLUSTER_STREAM_HASH_H_
#define OVPRESS_SERVER_CLUSTER_STREAM_HASH_H_

#include <algorithm>
#include <cstdint>
#include <span>
#include <string>
#include <utility>

#include "absl/strings/escaping.h"
#include "core/base/sha256.h"
#include "server/cluster/sha256_state.h"

namespace ovpress {

// Of a block's SHA-256: 128 bits tell damage, and keep the index small.
inline constexpr size_t kBlockDigestBytes = 16;

inline std::string BlockDigest(std::span<const std::byte> block) {
  Sha256Hasher hasher;
  hasher.Update(block);
  return absl::HexStringToBytes(hasher.FinishHex())
      .substr(0, kBlockDigestBytes);
}

// Not thread-safe.
class StreamHash {
 public:
  explicit StreamHash(uint64_t block_bytes) : block_bytes_(block_bytes) {}
  // Goes on at a block's start, from ResumableSha256's state there.
  StreamHash(uint64_t block_bytes, ResumableSha256 whole)
      : block_bytes_(block_bytes), whole_(std::move(whole)) {}

  void Update(std::span<const std::byte> bytes) {
    whole_.Update(bytes);
    while (!bytes.empty()) {
      const auto n = static_cast<size_t>(
          std::min<uint64_t>(bytes.size(), block_bytes_ - in_block_));
      block_.Update(bytes.first(n));
      in_block_ += n;
      bytes = bytes.subspan(n);
      if (in_block_ == block_bytes_) EndBlock();
    }
  }
  // Digests of the blocks that ended since the last call.
  std::string TakeBlockDigests() { return std::exchange(digests_, {}); }
  // Ends a last, shorter block.
  void EndBlock() {
    if (in_block_ == 0) return;
    digests_ +=
        absl::HexStringToBytes(block_.FinishHex()).substr(0, kBlockDigestBytes);
    block_ = Sha256Hasher();
    in_block_ = 0;
  }
  uint64_t bytes_hashed() const { return whole_.bytes_hashed(); }
  std::string Save() const { return whole_.Save(); }
  std::string FinishHex() { return whole_.FinishHex(); }

 private:
  const uint64_t block_bytes_;
  ResumableSha256 whole_;
  Sha256Hasher block_;
  uint64_t in_block_ = 0;
  std::string digests_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_STREAM_HASH_H_
