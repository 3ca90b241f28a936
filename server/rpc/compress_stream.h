// One CompressStream call: a model comes in, its compression leaves while input
// still arrives.
#ifndef OVPRESS_SERVER_RPC_COMPRESS_STREAM_H_
#define OVPRESS_SERVER_RPC_COMPRESS_STREAM_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/hash_thread.h"
#include "core/base/mutex.h"
#include "core/engine/compression.h"
#include "ovpress/v1/compression.pb.h"
#include "proto/bulk_message.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/job_manager.h"
#include "server/rpc/services.h"
#include "server/rpc/spool.h"
#include "server/rpc/transfers.h"

namespace ovpress {

// Used once, by the handler's thread, which receives. A second thread, made by
// Run(), compresses and sends.
//
// Both spools are small: while compression keeps up, the .bin goes through
// memory. A client that does not read stops the second thread; then the first
// spool fills up, the handler reads no more, and flow control stops the client.
// Only what the engine must have at once goes to disk: all of the .bin with
// ratio < 1 or AWQ, a weight whose scales run across it.
class CompressStream {
 public:
  using Request = BulkMessage<v1::CompressStreamRequest,
                              v1::CompressStreamRequest::kBinChunkFieldNumber>;
  using Response =
      BulkMessage<v1::CompressStreamResponse,
                  v1::CompressStreamResponse::kBinChunkFieldNumber>;
  using Stream = grpc::ServerReaderWriter<Response, Request>;
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
  void WaitForRoom();
  absl::Status CheckBinDigest();
  absl::Status CheckChunkSize(size_t size) const;
  // Signs of life while nothing else is sent.
  void SendProgressUntilDone();

  // In this order, on the second thread.
  absl::Status CompressAndSend();
  absl::Status Score();
  absl::Status SendText(const std::string& text, bool is_xml);
  absl::Status SendBin();
  absl::Status SendReady(uint64_t ready);
  absl::Status SendReportAndResult();
  // `bytes` of it are data.
  absl::Status Send(const Response& response, uint64_t bytes);

  // Between the two: how much of the .bin is there.
  void Announce(const absl::Status& received);
  // Blocks until more than `bytes` of the .bin are there, or all; returns how
  // much.
  absl::StatusOr<uint64_t> WaitForMoreThan(uint64_t bytes);

  std::unique_ptr<Spool> MakeSpool(uint64_t size_bytes) const;

  const RpcOptions& options_;
  Transfers::Handle& transfer_;
  Stream& stream_;
  const std::string owner_;

  v1::CompressStreamOpen open_;
  uint64_t xml_size_ = 0;
  uint64_t bin_size_ = 0;
  CompressionOptions compression_options_;
  std::unique_ptr<StreamSlot> slot_;
  uint64_t spool_memory_bytes_ = 0;
  std::string xml_;
  std::unique_ptr<Compression> compression_;
  std::unique_ptr<Spool> in_;
  std::unique_ptr<Spool> out_;
  RunOptions run_;
  v1::ModelBlobs received_model_;

  // Of the handler's thread.
  Request request_;
  HashThread in_hash_;
  uint64_t received_ = 0;

  // Of the second thread.
  HashThread out_hash_;
  std::string out_xml_;
  uint64_t sent_ = 0;

  // One writer at a time.
  Mutex write_mutex_;

  Mutex mutex_;
  CondVar changed_;
  uint64_t available_ ABSL_GUARDED_BY(mutex_) = 0;
  // The second thread waits for more than this; nullopt: it works.
  std::optional<uint64_t> waits_beyond_ ABSL_GUARDED_BY(mutex_);
  bool broken_ ABSL_GUARDED_BY(mutex_) = false;
  bool sender_done_ ABSL_GUARDED_BY(mutex_) = false;
  std::optional<Progress> progress_ ABSL_GUARDED_BY(mutex_);
  std::atomic<bool> stop_{false};
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_COMPRESS_STREAM_H_
