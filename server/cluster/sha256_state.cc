// The functions below are "deprecated" in OpenSSL 3 for those who could use
// EVP; EVP cannot hand out its state. The fields of SHA256_CTX are documented
// and did not change since 1998.
#define OPENSSL_SUPPRESS_DEPRECATED
#include "server/cluster/sha256_state.h"

#include <openssl/sha.h>

#include "absl/strings/escaping.h"
#include "core/base/check.h"

namespace ovpress {
namespace {

constexpr size_t kWords = 8;
constexpr size_t kBlockBytes = 64;
constexpr size_t kStateBytes = 8 + kWords * 4;

}  // namespace

struct ResumableSha256::Context {
  SHA256_CTX sha;
};

ResumableSha256::ResumableSha256() : context_(std::make_unique<Context>()) {
  SHA256_Init(&context_->sha);
}
ResumableSha256::~ResumableSha256() = default;
ResumableSha256::ResumableSha256(ResumableSha256&&) noexcept = default;
ResumableSha256& ResumableSha256::operator=(ResumableSha256&&) noexcept =
    default;

absl::StatusOr<ResumableSha256> ResumableSha256::Restore(
    absl::string_view state) {
  if (state.size() != kStateBytes) {
    return absl::DataLossError("a stored SHA-256 state has a wrong size");
  }
  const auto byte = [state](size_t i) {
    return uint64_t{static_cast<unsigned char>(state[i])};
  };
  ResumableSha256 hasher;
  for (size_t i = 0; i < 8; ++i) {
    hasher.bytes_hashed_ = hasher.bytes_hashed_ << 8 | byte(i);
  }
  if (hasher.bytes_hashed_ % kBlockBytes != 0) {
    return absl::DataLossError("a stored SHA-256 state is not at a block");
  }
  SHA256_CTX& sha = hasher.context_->sha;
  for (size_t word = 0; word < kWords; ++word) {
    SHA_LONG value = 0;
    for (size_t i = 0; i < 4; ++i) {
      value = value << 8 | static_cast<SHA_LONG>(byte(8 + word * 4 + i));
    }
    sha.h[word] = value;
  }
  const uint64_t bits = hasher.bytes_hashed_ * 8;
  sha.Nl = static_cast<SHA_LONG>(bits);
  sha.Nh = static_cast<SHA_LONG>(bits >> 32);
  return hasher;
}

void ResumableSha256::Update(std::span<const std::byte> bytes) {
  SHA256_Update(&context_->sha, bytes.data(), bytes.size());
  bytes_hashed_ += bytes.size();
}

std::string ResumableSha256::Save() const {
  OVPRESS_CHECK(bytes_hashed_ % kBlockBytes == 0);
  std::string state;
  for (int shift = 56; shift >= 0; shift -= 8) {
    state.push_back(static_cast<char>(bytes_hashed_ >> shift));
  }
  for (size_t word = 0; word < kWords; ++word) {
    for (int shift = 24; shift >= 0; shift -= 8) {
      state.push_back(static_cast<char>(context_->sha.h[word] >> shift));
    }
  }
  return state;
}

std::string ResumableSha256::FinishHex() {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256_Final(digest, &context_->sha);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), sizeof(digest)));
}

}  // namespace ovpress
