// google.bytestream.ByteStream over the BlobStore: uploads that resume, reads
// from any offset.
#ifndef OVPRESS_SERVER_RPC_BYTE_STREAM_SERVICE_H_
#define OVPRESS_SERVER_RPC_BYTE_STREAM_SERVICE_H_

#include "absl/status/status.h"
#include "google/bytestream/bytestream.grpc.pb.h"
#include "proto/bulk_message.h"
#include "server/rpc/identity.h"
#include "server/rpc/services.h"
#include "server/rpc/transfers.h"

namespace ovpress {

// Both arguments outlive the service.
class ByteStreamService final : public google::bytestream::ByteStream::Service {
 public:
  ByteStreamService(const RpcOptions& options, Transfers* transfers);

  grpc::Status Write(
      grpc::ServerContext* context,
      grpc::ServerReader<google::bytestream::WriteRequest>* reader,
      google::bytestream::WriteResponse* response) override;
  grpc::Status QueryWriteStatus(
      grpc::ServerContext* context,
      const google::bytestream::QueryWriteStatusRequest* request,
      google::bytestream::QueryWriteStatusResponse* response) override;

 private:
  absl::Status DoWrite(
      const Caller& caller, grpc::ServerContext* context,
      grpc::ServerReader<google::bytestream::WriteRequest>* reader,
      google::bytestream::WriteResponse* response);
  // Read, with its data past protobuf (proto/bulk_message.h).
  using ReadStream = grpc::ServerReaderWriter<
      BulkMessage<google::bytestream::ReadResponse,
                  google::bytestream::ReadResponse::kDataFieldNumber>,
      google::bytestream::ReadRequest>;
  grpc::Status BulkRead(grpc::ServerContext* context, ReadStream* stream);
  absl::Status DoRead(const Caller& caller, grpc::ServerContext* context,
                      ReadStream* stream);

  const RpcOptions& options_;
  Transfers* const transfers_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_BYTE_STREAM_SERVICE_H_
