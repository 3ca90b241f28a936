#include "core/base/sha256.h"

#include <openssl/evp.h>

#include "absl/strings/escaping.h"
#include "core/base/check.h"
#include "core/base/io.h"

namespace ovpress {

void Sha256Hasher::Deleter::operator()(void* context) const {
  EVP_MD_CTX_free(static_cast<EVP_MD_CTX*>(context));
}

Sha256Hasher::Sha256Hasher() : context_(EVP_MD_CTX_new()) {
  OVPRESS_CHECK(context_ != nullptr);
  OVPRESS_CHECK(EVP_DigestInit_ex(static_cast<EVP_MD_CTX*>(context_.get()),
                                  EVP_sha256(), nullptr) == 1);
}
Sha256Hasher::~Sha256Hasher() = default;
Sha256Hasher::Sha256Hasher(Sha256Hasher&&) noexcept = default;
Sha256Hasher& Sha256Hasher::operator=(Sha256Hasher&&) noexcept = default;

void Sha256Hasher::Update(std::span<const std::byte> bytes) {
  OVPRESS_CHECK(EVP_DigestUpdate(static_cast<EVP_MD_CTX*>(context_.get()),
                                 bytes.data(), bytes.size()) == 1);
  bytes_hashed_ += bytes.size();
}

std::string Sha256Hasher::FinishHex() {
  unsigned char digest[EVP_MAX_MD_SIZE];
  unsigned int length = 0;
  OVPRESS_CHECK(EVP_DigestFinal_ex(static_cast<EVP_MD_CTX*>(context_.get()),
                                   digest, &length) == 1);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(digest), length));
}

std::string Sha256Hex(absl::string_view bytes) {
  Sha256Hasher hasher;
  hasher.Update(AsBytes(bytes));
  return hasher.FinishHex();
}

}  // namespace ovpress
