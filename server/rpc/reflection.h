// gRPC's reflection service registers itself wherever it is linked; this takes
// it out again.
#ifndef OVPRESS_SERVER_RPC_REFLECTION_H_
#define OVPRESS_SERVER_RPC_REFLECTION_H_

#include <memory>

#include "grpcpp/impl/server_builder_option.h"

namespace ovpress {

// For ServerBuilder::SetOption().
std::unique_ptr<grpc::ServerBuilderOption> WithoutReflection();

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_REFLECTION_H_
