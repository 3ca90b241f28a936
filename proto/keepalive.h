// The pings that tell a dead connection from a quiet one. Both ends' settings
// belong together: a server ends connections that ping more often than it
// allows (GOAWAY with too_many_pings), so they are in one place.
#ifndef OVPRESS_PROTO_KEEPALIVE_H_
#define OVPRESS_PROTO_KEEPALIVE_H_

#include "grpcpp/server_builder.h"
#include "grpcpp/support/channel_arguments.h"

namespace ovpress {

struct Keepalive {
  // The client pings a quiet connection with open calls this often, however
  // long no data came, and takes it for dead without an answer.
  int client_interval_ms = 60'000;
  int client_timeout_ms = 20'000;
  // Least time between two pings that the server accepts: half of the client's.
  int server_min_interval_ms = 30'000;
  // The server's own pings, to get rid of calls whose client is gone.
  int server_interval_ms = 120'000;
  int server_timeout_ms = 20'000;
};

inline void SetKeepalive(const Keepalive& keepalive,
                         grpc::ChannelArguments* arguments) {
  arguments->SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, keepalive.client_interval_ms);
  arguments->SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, keepalive.client_timeout_ms);
  arguments->SetInt(GRPC_ARG_HTTP2_MAX_PINGS_WITHOUT_DATA, 0);
}

inline void SetKeepalive(const Keepalive& keepalive,
                         grpc::ServerBuilder* builder) {
  builder->AddChannelArgument(
      GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS,
      keepalive.server_min_interval_ms);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS,
                              keepalive.server_interval_ms);
  builder->AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS,
                              keepalive.server_timeout_ms);
}

}  // namespace ovpress

#endif  // OVPRESS_PROTO_KEEPALIVE_H_
