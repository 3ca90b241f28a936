// Both ends' pings, sixty times faster than in use.
#include "proto/keepalive.h"

#include <chrono>
#include <memory>
#include <thread>

#include "gmock/gmock.h"
#include "google/bytestream/bytestream.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "gtest/gtest.h"

namespace ovpress {
namespace {

namespace bs = google::bytestream;

constexpr int kFaster = 60;

// A download without any byte.
class Quiet final : public bs::ByteStream::Service {
 public:
  grpc::Status Read(grpc::ServerContext* context, const bs::ReadRequest*,
                    grpc::ServerWriter<bs::ReadResponse>*) override {
    while (!context->IsCancelled()) {
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
    return grpc::Status::CANCELLED;
  }
};

Keepalive Scaled() {
  Keepalive keepalive;
  keepalive.client_interval_ms /= kFaster;
  keepalive.server_min_interval_ms /= kFaster;
  keepalive.server_interval_ms /= kFaster;
  return keepalive;
}

// How a quiet call of so long ends.
grpc::Status QuietCall(const Keepalive& client, const Keepalive& server,
                       std::chrono::seconds length) {
  Quiet service;
  grpc::ServerBuilder builder;
  SetKeepalive(server, &builder);
  int port = 0;
  builder.AddListeningPort("127.0.0.1:0", grpc::InsecureServerCredentials(),
                           &port);
  builder.RegisterService(&service);
  const std::unique_ptr<grpc::Server> running = builder.BuildAndStart();
  grpc::ChannelArguments arguments;
  SetKeepalive(client, &arguments);
  const auto stub = bs::ByteStream::NewStub(
      grpc::CreateCustomChannel("127.0.0.1:" + std::to_string(port),
                                grpc::InsecureChannelCredentials(), arguments));
  grpc::ClientContext context;
  context.set_deadline(std::chrono::system_clock::now() + length);
  const auto reader = stub->Read(&context, bs::ReadRequest());
  bs::ReadResponse response;
  while (reader->Read(&response)) {
  }
  return reader->Finish();
}

TEST(KeepaliveTest, ThePairKeepsAQuietConnection) {
  const grpc::Status status =
      QuietCall(Scaled(), Scaled(), std::chrono::seconds(5));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::DEADLINE_EXCEEDED)
      << status.error_message();
}

// That the test above can fail: the server does count pings.
TEST(KeepaliveTest, AnEagerClientIsSentAway) {
  // The client's core sends no more than one ping a second, so the server is
  // made strict instead. It takes two strikes.
  Keepalive strict = Scaled();
  strict.server_min_interval_ms = 6 * Scaled().client_interval_ms;
  const grpc::Status status =
      QuietCall(Scaled(), strict, std::chrono::seconds(10));
  EXPECT_EQ(status.error_code(), grpc::StatusCode::UNAVAILABLE);
  EXPECT_THAT(status.error_message(), testing::HasSubstr("ping"));
}

}  // namespace
}  // namespace ovpress
