#include "core/base/hash_thread.h"

#include <utility>

namespace ovpress {

HashThread::HashThread(Sha256Hasher hasher)
    : hasher_(std::move(hasher)), thread_([this] { Run(); }) {}

HashThread::~HashThread() {
  {
    MutexLock lock(&mutex_);
    ended_ = true;
    dropped_ = true;
    changed_.SignalAll();
  }
  if (thread_.joinable()) thread_.join();
}

void HashThread::Update(std::span<const std::byte> bytes,
                        std::shared_ptr<const void> keep_alive) {
  MutexLock lock(&mutex_);
  while (waiting_bytes_ >= kBytesMax) changed_.Wait(&mutex_);
  waiting_bytes_ += bytes.size();
  waiting_.push_back({bytes, std::move(keep_alive)});
  changed_.SignalAll();
}

std::string HashThread::FinishHex() {
  {
    MutexLock lock(&mutex_);
    ended_ = true;
    changed_.SignalAll();
  }
  thread_.join();
  return hasher_.FinishHex();
}

void HashThread::Run() {
  while (true) {
    Piece piece;
    {
      MutexLock lock(&mutex_);
      while (waiting_.empty() && !ended_) changed_.Wait(&mutex_);
      if (waiting_.empty() || dropped_) return;
      piece = std::move(waiting_.front());
      waiting_.pop_front();
    }
    hasher_.Update(piece.bytes);
    MutexLock lock(&mutex_);
    waiting_bytes_ -= piece.bytes.size();
    changed_.SignalAll();
  }
}

}  // namespace ovpress
