// SHA-256 whose state can be kept and taken up again, by another process on
// another machine: an upload goes on without reading what was sent before.
#ifndef OVPRESS_SERVER_CLUSTER_SHA256_STATE_H_
#define OVPRESS_SERVER_CLUSTER_SHA256_STATE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <span>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"

namespace ovpress {

// Not thread-safe.
class ResumableSha256 {
 public:
  ResumableSha256();
  ~ResumableSha256();
  ResumableSha256(ResumableSha256&&) noexcept;
  ResumableSha256& operator=(ResumableSha256&&) noexcept;

  // kDataLoss unless `state` came from Save().
  static absl::StatusOr<ResumableSha256> Restore(absl::string_view state);

  void Update(std::span<const std::byte> bytes);
  uint64_t bytes_hashed() const { return bytes_hashed_; }
  // 40 bytes, the same on every machine. REQUIRES: bytes_hashed() is a multiple
  // of 64.
  std::string Save() const;
  // Lower-case hexadecimal; ends the hasher.
  std::string FinishHex();

 private:
  struct Context;
  std::unique_ptr<Context> context_;
  uint64_t bytes_hashed_ = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_SHA256_STATE_H_
