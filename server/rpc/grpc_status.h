// The one place where absl::Status becomes grpc::Status: codes are numerically
// equal, text is kept, details follow google.rpc (ErrorInfo always; RetryInfo,
// QuotaFailure, PreconditionFailure where they apply).
#ifndef OVPRESS_SERVER_RPC_GRPC_STATUS_H_
#define OVPRESS_SERVER_RPC_GRPC_STATUS_H_

#include "absl/status/status.h"
#include "google/rpc/status.pb.h"
#include "grpcpp/support/status.h"

namespace ovpress {

// Messages are cut at 2 KiB and made UTF-8: trailers share 8 KiB.
google::rpc::Status ToRpcStatus(const absl::Status& status);
grpc::Status ToGrpcStatus(const absl::Status& status);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_GRPC_STATUS_H_
