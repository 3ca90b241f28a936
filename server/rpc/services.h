// The three services of the wire over one JobManager and one BlobStore. Built
// on gRPC's synchronous API: handlers do file I/O and may block, each on a
// thread of its own, so a stalled transfer delays neither health checks nor
// other calls (docs/adr/0004).
#ifndef OVPRESS_SERVER_RPC_SERVICES_H_
#define OVPRESS_SERVER_RPC_SERVICES_H_

#include <memory>

#include "grpcpp/server_builder.h"
#include "server/auth/access_control.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/job_manager.h"
#include "server/jobs/limits.h"
#include "server/rpc/metrics.h"

namespace ovpress {

struct RpcOptions {
  TransferLimits transfer;
  StoreLimits store;
  JobLimits jobs;
  // All REQUIRED; outlive the services.
  JobManager* manager = nullptr;
  BlobStore* blobs = nullptr;
  Metrics* metrics = nullptr;
  // Null: everybody is the anonymous caller. Outlives the services.
  AccessControl* access = nullptr;
};

class RpcServices {
 public:
  static std::unique_ptr<RpcServices> Create(RpcOptions options);
  virtual ~RpcServices() = default;
  virtual void Register(grpc::ServerBuilder* builder) = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_SERVICES_H_
