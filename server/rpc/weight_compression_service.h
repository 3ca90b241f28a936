// ovpress.v1.WeightCompression over the JobManager and the BlobStore.
#ifndef OVPRESS_SERVER_RPC_WEIGHT_COMPRESSION_SERVICE_H_
#define OVPRESS_SERVER_RPC_WEIGHT_COMPRESSION_SERVICE_H_

#include <string>

#include "absl/status/status.h"
#include "ovpress/v1/compression.grpc.pb.h"
#include "server/rpc/compress_stream.h"
#include "server/rpc/identity.h"
#include "server/rpc/services.h"
#include "server/rpc/transfers.h"
#include "server/rpc/watchers.h"

namespace ovpress {

// All arguments outlive the service.
class WeightCompressionService final : public v1::WeightCompression::Service {
 public:
  WeightCompressionService(const RpcOptions& options, Transfers* transfers,
                           Watchers* watchers);

  grpc::Status GetCapabilities(grpc::ServerContext* context,
                               const v1::GetCapabilitiesRequest* request,
                               v1::GetCapabilitiesResponse* response) override;
  grpc::Status FindMissingBlobs(
      grpc::ServerContext* context, const v1::FindMissingBlobsRequest* request,
      v1::FindMissingBlobsResponse* response) override;
  grpc::Status EstimateCompression(
      grpc::ServerContext* context,
      const v1::EstimateCompressionRequest* request,
      v1::EstimateCompressionResponse* response) override;
  grpc::Status CompressModel(grpc::ServerContext* context,
                             const v1::CompressModelRequest* request,
                             google::longrunning::Operation* response) override;
  grpc::Status WatchOperation(
      grpc::ServerContext* context, const v1::WatchOperationRequest* request,
      grpc::ServerWriter<google::longrunning::Operation>* writer) override;

 private:
  // CompressStream, with its bulk past protobuf (proto/bulk_message.h).
  grpc::Status Stream(grpc::ServerContext* context,
                      ovpress::CompressStream::Stream* stream);
  absl::Status Estimate(const Caller& caller,
                        const v1::EstimateCompressionRequest& request,
                        v1::EstimateCompressionResponse* response);
  absl::Status Watch(
      const Caller& caller, const grpc::ServerContext& context,
      const std::string& name,
      grpc::ServerWriter<google::longrunning::Operation>* writer);

  const RpcOptions& options_;
  Transfers* const transfers_;
  Watchers* const watchers_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_WEIGHT_COMPRESSION_SERVICE_H_
