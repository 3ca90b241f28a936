// One CompressStream call: a model comes in, its compression leaves while input
// still arrives.
#ifndef OVPRESS_SERVER_RPC_COMPRESS_STREAM_H_
#define OVPRESS_SERVER_RPC_COMPRESS_STREAM_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/mutex.h"
#include "core/engine/compression.h"
#include "ovpress/v1/compression.grpc.pb.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/digest.h"
#include "server/jobs/job_manager.h"
#include "server/rpc/services.h"
#include "server/rpc/transfers.h"

namespace ovpress {

// Used once, by the handler's thread, which receives. A second thread, made by
// Run(), compresses and sends, so a client that does not read stops only
// itself.
class CompressStream {
 public:
  using Stream = grpc::ServerReaderWriter<v1::CompressStreamResponse,
                                          v1::CompressStreamRequest>;
  struct Args {
    // All REQUIRED; outlive the object.
    const RpcOptions* options = nullptr;
    Transfers::Handle* transfer = nullptr;
    Stream* stream = nullptr;
    std::string owner;
  };
  explicit CompressStream(Args args);
  // Returns when the call is over.
  absl::Status Run();

 private:
  // In this order, on the handler's thread.
  absl::Status ReceiveOpen();
  absl::Status OpenSlot();
  absl::Status ReceiveXml();
  absl::Status MakePlan();
  absl::Status SendPlan();
  absl::Status ReceiveBin();
  // One message of the .bin.
  absl::Status ReceiveBinChunk();
  absl::Status CheckBinDigest();
  absl::Status CheckChunkSize(const std::string& chunk) const;

  // In this order, on the second thread.
  absl::Status CompressAndSend();
  absl::Status Score();
  absl::Status SendText(const std::string& text, bool is_xml);
  absl::Status SendBin();
  absl::Status SendReportAndResult();
  // Sends response_; `bytes` of it are data.
  absl::Status Send(uint64_t bytes);

  // Between the two: how much of the .bin is there.
  void Announce(const absl::Status& received);
  // Blocks until more than `bytes` of the .bin are there, or all; returns how
  // much.
  absl::StatusOr<uint64_t> WaitForMoreThan(uint64_t bytes);

  const RpcOptions& options_;
  Transfers::Handle& transfer_;
  Stream& stream_;
  const std::string owner_;

  v1::CompressStreamOpen open_;
  uint64_t xml_size_ = 0;
  uint64_t bin_size_ = 0;
  CompressionOptions compression_options_;
  std::unique_ptr<StreamSlot> slot_;
  std::string xml_;
  std::unique_ptr<Compression> compression_;
  std::unique_ptr<ScratchBlob> in_;
  std::unique_ptr<ScratchBlob> out_;
  RunOptions run_;

  // Of the handler's thread.
  v1::CompressStreamRequest request_;
  Sha256Hasher in_hasher_;
  uint64_t received_ = 0;

  // Of the second thread.
  v1::CompressStreamResponse response_;
  Sha256Hasher out_hasher_;
  std::string out_xml_;
  uint64_t sent_ = 0;

  Mutex mutex_;
  CondVar arrived_;
  uint64_t available_ ABSL_GUARDED_BY(mutex_) = 0;
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  std::atomic<bool> stop_{false};
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_COMPRESS_STREAM_H_
