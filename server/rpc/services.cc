#include "server/rpc/services.h"

#include <utility>

#include "server/rpc/byte_stream_service.h"
#include "server/rpc/operations_service.h"
#include "server/rpc/transfers.h"
#include "server/rpc/watchers.h"
#include "server/rpc/weight_compression_service.h"

namespace ovpress {
namespace {

class RpcServicesImpl final : public RpcServices {
 public:
  explicit RpcServicesImpl(RpcOptions options)
      : options_(std::move(options)),
        transfers_(options_.transfer, options_.access, options_.metrics),
        watchers_(options_.transfer, options_.access, options_.metrics),
        byte_stream_(options_, &transfers_),
        operations_(options_, &watchers_),
        compression_(options_, &transfers_, &watchers_) {}
  void Register(grpc::ServerBuilder* builder) override {
    builder->SetMaxReceiveMessageSize(
        static_cast<int>(options_.transfer.max_message_bytes));
    builder->RegisterService(&byte_stream_);
    builder->RegisterService(&operations_);
    builder->RegisterService(&compression_);
  }

 private:
  const RpcOptions options_;
  Transfers transfers_;
  Watchers watchers_;
  ByteStreamService byte_stream_;
  OperationsService operations_;
  WeightCompressionService compression_;
};

}  // namespace

std::unique_ptr<RpcServices> RpcServices::Create(RpcOptions options) {
  return std::make_unique<RpcServicesImpl>(std::move(options));
}

}  // namespace ovpress
