// One try of CompressStream from the client's side.
#ifndef OVPRESS_CLIENT_LIB_STREAM_CALL_H_
#define OVPRESS_CLIENT_LIB_STREAM_CALL_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "client/lib/client.h"
#include "core/base/hash_thread.h"
#include "core/base/mutex.h"
#include "grpcpp/channel.h"
#include "grpcpp/client_context.h"
#include "proto/bulk_message.h"

namespace ovpress {

// Used once. Run()'s thread receives; a second one, which Run() makes, sends.
class StreamCall {
 public:
  struct Args {
    // All REQUIRED; outlive the object.
    grpc::Channel* channel = nullptr;
    grpc::ClientContext* context = nullptr;
    const Client::StreamInput* input = nullptr;
    ByteSink* out = nullptr;
    // Bytes moved, either way.
    std::function<void()> moved;
    std::function<void(const Client::StreamProgress&)> progress;
  };
  explicit StreamCall(Args args);
  absl::StatusOr<Client::StreamOutput> Run();

 private:
  using Request = BulkMessage<v1::CompressStreamRequest,
                              v1::CompressStreamRequest::kBinChunkFieldNumber>;
  using Response =
      BulkMessage<v1::CompressStreamResponse,
                  v1::CompressStreamResponse::kBinChunkFieldNumber>;

  // On the second thread. An error of ours; a broken stream is none, for its
  // reason comes with the end of the call.
  absl::Status SendAll();
  bool SendOpen();
  bool SendXml();
  absl::Status SendBin();
  absl::Status Receive(const Response& response);
  absl::Status ReceiveBin(const BulkBytes& data);
  absl::Status Check();
  void Tell(const std::function<void(Client::StreamProgress&)>& change);

  const Args args_;
  const std::unique_ptr<grpc::ClientReaderWriter<Request, Response>> stream_;
  HashThread sent_hash_;      // of the second thread
  std::string sent_digest_;   // after its end
  bool sent_all_ = false;     // after its end
  HashThread received_hash_;  // of Run()'s thread
  uint64_t received_ = 0;
  bool has_result_ = false;
  Client::StreamOutput output_;
  Mutex mutex_;
  Client::StreamProgress progress_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace ovpress

#endif  // OVPRESS_CLIENT_LIB_STREAM_CALL_H_
