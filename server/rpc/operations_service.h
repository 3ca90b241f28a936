// google.longrunning.Operations over the JobManager.
#ifndef OVPRESS_SERVER_RPC_OPERATIONS_SERVICE_H_
#define OVPRESS_SERVER_RPC_OPERATIONS_SERVICE_H_

#include "google/longrunning/operations.grpc.pb.h"
#include "server/rpc/services.h"
#include "server/rpc/watchers.h"

namespace ovpress {

// Both arguments outlive the service.
class OperationsService final
    : public google::longrunning::Operations::Service {
 public:
  OperationsService(const RpcOptions& options, Watchers* watchers)
      : options_(options), watchers_(watchers) {}

  grpc::Status ListOperations(
      grpc::ServerContext* context,
      const google::longrunning::ListOperationsRequest* request,
      google::longrunning::ListOperationsResponse* response) override;
  grpc::Status GetOperation(
      grpc::ServerContext* context,
      const google::longrunning::GetOperationRequest* request,
      google::longrunning::Operation* response) override;
  grpc::Status DeleteOperation(
      grpc::ServerContext* context,
      const google::longrunning::DeleteOperationRequest* request,
      google::protobuf::Empty* response) override;
  grpc::Status CancelOperation(
      grpc::ServerContext* context,
      const google::longrunning::CancelOperationRequest* request,
      google::protobuf::Empty* response) override;
  grpc::Status WaitOperation(
      grpc::ServerContext* context,
      const google::longrunning::WaitOperationRequest* request,
      google::longrunning::Operation* response) override;

 private:
  const RpcOptions& options_;
  Watchers* const watchers_;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_OPERATIONS_SERVICE_H_
