// What every call has in common: who calls, how it ends, that it is counted.
#ifndef OVPRESS_SERVER_RPC_CALL_H_
#define OVPRESS_SERVER_RPC_CALL_H_

#include <chrono>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/identity.h"
#include "server/rpc/metrics.h"

namespace ovpress {

// Runs `body`, an absl::Status(const Caller&), as the call `method`
// ("google.longrunning.Operations/GetOperation"): identifies the caller first,
// counts the end, turns it into gRPC's.
template <typename Body>
grpc::Status RunCall(Metrics* metrics, const char* method,
                     const grpc::ServerContextBase& context, Body body) {
  const auto start = std::chrono::steady_clock::now();
  const absl::StatusOr<Caller> caller = IdentifyCaller(context);
  const absl::Status status = caller.ok() ? body(*caller) : caller.status();
  metrics->OnRpc(method, absl::StatusCodeToString(status.code()),
                 absl::FromChrono(std::chrono::steady_clock::now() - start));
  return ToGrpcStatus(status);
}

// "operations/ID" -> "ID". kNotFound for a name that no operation can have.
absl::StatusOr<std::string> JobIdOf(const std::string& name);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_CALL_H_
