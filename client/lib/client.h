// The client library: uploads that resume, jobs, downloads that are checked.
// Calls block; each has its own retry loop with backoff for servers that go
// away and come back.
#ifndef OVPRESS_CLIENT_LIB_CLIENT_H_
#define OVPRESS_CLIENT_LIB_CLIENT_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/time/time.h"
#include "core/base/io.h"
#include "google/longrunning/operations.pb.h"
#include "ovpress/v1/compression.pb.h"

namespace ovpress {

struct ClientOptions {
  std::string server;  // HOST:PORT
  // TLS if `tls` or any of the files is set. Without a CA the system's are
  // trusted; certificate and key (mutual TLS) go together. All PEM.
  bool tls = false;
  std::string tls_ca_file;
  std::string tls_cert_file;
  std::string tls_key_file;
  // The name that the server's certificate must have, if not that of `server`.
  std::string tls_server_name;
  // Holds the bearer token on one line; read before each call: tokens rotate.
  std::string token_file;
  // Send it even unencrypted beyond this machine.
  bool allow_insecure_token = false;
  // How long a call goes on trying without any progress.
  absl::Duration retry_for = absl::Minutes(2);
  // Set: calls return kCancelled soon. The job on the server goes on.
  const std::atomic<bool>* stop = nullptr;
};

// Thread-safe. Progress callbacks come from one thread at a time and should be
// quick. Errors carry the server's code and message; kUnavailable after
// retry_for without progress.
class Client {
 public:
  using TransferProgress = std::function<void(uint64_t done, uint64_t total)>;
  using OperationProgress =
      std::function<void(const v1::CompressModelMetadata&)>;

  // kInvalidArgument for options that do not fit together, among them a token
  // that would travel unencrypted; kNotFound... for files. Does not connect.
  static absl::StatusOr<std::unique_ptr<Client>> Create(ClientOptions options);
  virtual ~Client() = default;

  // Hashes the bytes, asks whether the server lacks them and sends them; goes
  // on where the server has them after a break, also over its restart.
  virtual absl::StatusOr<v1::Blob> Upload(ByteSource& bytes,
                                          const TransferProgress& progress) = 0;
  // Stopped in the middle, it asks once more, without `stop`, for at most ten
  // seconds: the caller learns the name of the job that it may want to cancel.
  virtual absl::StatusOr<google::longrunning::Operation> Submit(
      const v1::CompressModelRequest& request) = 0;
  virtual absl::StatusOr<google::longrunning::Operation> Get(
      const std::string& name) = 0;
  virtual absl::StatusOr<google::longrunning::ListOperationsResponse> List(
      const google::longrunning::ListOperationsRequest& request) = 0;
  virtual absl::Status Cancel(const std::string& name) = 0;
  // Until the job is done; attaches again after breaks.
  virtual absl::StatusOr<google::longrunning::Operation> Watch(
      const std::string& name, const OperationProgress& progress) = 0;
  // Writes the blob and checks its digest: kDataLoss if it differs.
  virtual absl::Status Download(const v1::Blob& blob, ByteSink& out,
                                const TransferProgress& progress) = 0;
  // One call: the model goes in, the compressed .bin is written to `out` while
  // the rest still goes in. Both directions are checked by digest: kDataLoss.
  // A break means from the start again, for the server keeps nothing; `out` may
  // have been written to when an error is returned.
  struct StreamInput {
    // Options, settings and priority; sizes and digests are filled in.
    v1::CompressStreamOpen open;
    std::string xml;
    ByteSource* bin = nullptr;  // REQUIRED
  };
  struct StreamOutput {
    std::string xml;
    std::string report;
    v1::CompressStreamResult result;
  };
  struct StreamProgress {
    uint64_t sent = 0;  // of the .bin
    uint64_t send_total = 0;
    uint64_t received = 0;
    uint64_t receive_total = 0;  // 0: not known yet
    // What the server works on when nothing moves.
    v1::CompressStreamProgress server;
  };
  virtual absl::StatusOr<StreamOutput> CompressStream(
      const StreamInput& input, ByteSink& out,
      const std::function<void(const StreamProgress&)>& progress) = 0;
  // Asks grpc.health.v1, which needs no token. One try: kUnavailable (also for
  // a server that drains), kDeadlineExceeded.
  virtual absl::Status Health() = 0;
};

// The response of a finished operation, or its error.
absl::StatusOr<v1::CompressModelResponse> ResultOf(
    const google::longrunning::Operation& operation);

}  // namespace ovpress

#endif  // OVPRESS_CLIENT_LIB_CLIENT_H_
