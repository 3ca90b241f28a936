// Who makes a call: the one place that turns a connection and its metadata into
// the owner that blobs, jobs, quotas and limits go by.
#ifndef OVPRESS_SERVER_RPC_IDENTITY_H_
#define OVPRESS_SERVER_RPC_IDENTITY_H_

#include <string>

#include "absl/status/statusor.h"
#include "grpcpp/server_context.h"

namespace ovpress {

struct Caller {
  // "" is the anonymous one.
  std::string owner;
};

// Asked once at the start of each call, before its request is looked at; an
// error ends the call. Thread-safe.
absl::StatusOr<Caller> IdentifyCaller(const grpc::ServerContextBase& context);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_IDENTITY_H_
