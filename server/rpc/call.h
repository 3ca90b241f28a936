// What every call has in common: who calls, how it ends, that it is counted.
#ifndef OVPRESS_SERVER_RPC_CALL_H_
#define OVPRESS_SERVER_RPC_CALL_H_

#include <chrono>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "grpcpp/server_context.h"
#include "grpcpp/support/status.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/identity.h"
#include "server/rpc/services.h"

namespace ovpress {

// A call as it is counted, and what its caller must be allowed to.
struct Method {
  const char* name;            // "google.longrunning.Operations/GetOperation"
  std::optional<Scope> scope;  // nullopt: whoever is known may
};

// Counts and logs that a caller was turned away; never logs what it sent.
void ReportRefusal(const RpcOptions& options, const Method& method,
                   const grpc::ServerContextBase& context,
                   const absl::Status& status);

// Runs `body`, an absl::Status(const Caller&), as the call `method`: identifies
// the caller first, counts the end, turns it into gRPC's.
template <typename Body>
grpc::Status RunCall(const RpcOptions& options, const Method& method,
                     const grpc::ServerContextBase& context, Body body) {
  const auto start = std::chrono::steady_clock::now();
  const absl::StatusOr<Caller> caller =
      IdentifyCaller(options.access, context, method.scope);
  if (!caller.ok()) ReportRefusal(options, method, context, caller.status());
  const absl::Status status = caller.ok() ? body(*caller) : caller.status();
  options.metrics->OnRpc(
      method.name, absl::StatusCodeToString(status.code()),
      absl::FromChrono(std::chrono::steady_clock::now() - start));
  return ToGrpcStatus(status);
}

// "operations/ID" -> "ID". kNotFound for a name that no operation can have.
absl::StatusOr<std::string> JobIdOf(const std::string& name);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_CALL_H_
