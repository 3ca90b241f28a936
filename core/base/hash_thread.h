// SHA-256 on a thread of its own, so that who moves bytes need not wait for
// their digest.
#ifndef OVPRESS_CORE_BASE_HASH_THREAD_H_
#define OVPRESS_CORE_BASE_HASH_THREAD_H_

#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <span>
#include <string>
#include <thread>

#include "core/base/mutex.h"
#include "core/base/sha256.h"

namespace ovpress {

// Update() and FinishHex() from one thread.
class HashThread {
 public:
  // Goes on from what `hasher` has seen.
  explicit HashThread(Sha256Hasher hasher = {});
  // Drops what was not hashed yet.
  ~HashThread();
  // `keep_alive` owns the bytes until they are hashed; they must not change.
  // Blocks while kBytesMax wait.
  void Update(std::span<const std::byte> bytes,
              std::shared_ptr<const void> keep_alive);
  // Waits for all of it. Nothing may come after.
  std::string FinishHex();

 private:
  // A few messages: enough to even out, too little to count.
  static constexpr size_t kBytesMax = 4 << 20;
  struct Piece {
    std::span<const std::byte> bytes;
    std::shared_ptr<const void> keep_alive;
  };
  void Run();

  Sha256Hasher hasher_;  // of the thread, then of FinishHex()
  Mutex mutex_;
  CondVar changed_;
  std::deque<Piece> waiting_ ABSL_GUARDED_BY(mutex_);
  size_t waiting_bytes_ ABSL_GUARDED_BY(mutex_) = 0;
  bool ended_ ABSL_GUARDED_BY(mutex_) = false;    // no more will come
  bool dropped_ ABSL_GUARDED_BY(mutex_) = false;  // nobody wants the digest
  std::thread thread_;                            // last: it uses the rest
};

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_HASH_THREAD_H_
