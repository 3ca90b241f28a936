// SHA-256 of a stream, by OpenSSL's EVP.
#ifndef OVPRESS_CORE_BASE_SHA256_H_
#define OVPRESS_CORE_BASE_SHA256_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/strings/string_view.h"

namespace ovpress {

// Not thread-safe.
class Sha256Hasher {
 public:
  Sha256Hasher();
  ~Sha256Hasher();
  Sha256Hasher(Sha256Hasher&&) noexcept;
  Sha256Hasher& operator=(Sha256Hasher&&) noexcept;

  void Update(std::span<const std::byte> bytes);
  uint64_t bytes_hashed() const { return bytes_hashed_; }
  // Lower-case hexadecimal. Ends the hasher: no Update() after it.
  std::string FinishHex();

 private:
  struct Deleter {
    void operator()(void* context) const;
  };
  std::unique_ptr<void, Deleter> context_;
  uint64_t bytes_hashed_ = 0;
};

std::string Sha256Hex(absl::string_view bytes);

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_SHA256_H_
