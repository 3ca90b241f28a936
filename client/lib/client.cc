#include "client/lib/client.h"

#include <algorithm>
#include <random>
#include <thread>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "client/lib/stream_call.h"
#include "core/base/hash_thread.h"
#include "core/base/loopback.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "google/bytestream/bytestream.grpc.pb.h"
#include "google/longrunning/operations.grpc.pb.h"
#include "grpc/health/v1/health.grpc.pb.h"
#include "grpcpp/grpcpp.h"
#include "ovpress/v1/compression.grpc.pb.h"
#include "proto/keepalive.h"

namespace ovpress {
namespace {

namespace bs = google::bytestream;
namespace lro = google::longrunning;

constexpr uint64_t kChunkBytes = 1 << 20;
constexpr absl::Duration kUnaryDeadline = absl::Seconds(60);
// For the calls of a caller that wants to leave.
constexpr absl::Duration kLastWords = absl::Seconds(10);
constexpr absl::Duration kFirstBackoff = absl::Milliseconds(100);
constexpr absl::Duration kLongestBackoff = absl::Seconds(5);
// A stream without any message for so long is taken for dead.
constexpr absl::Duration kIdle = absl::Minutes(2);

// gRPC names a call that its transport broke INTERNAL or UNKNOWN (a stream
// reset for a window that just shrank, a proxy that gave up): for us the server
// was away.
bool IsBrokenTransport(const grpc::Status& status) {
  return (status.error_code() == grpc::StatusCode::INTERNAL ||
          status.error_code() == grpc::StatusCode::UNKNOWN) &&
         status.error_details().empty() &&
         (absl::StrContains(status.error_message(), "RST_STREAM") ||
          absl::StrContains(status.error_message(), "GOAWAY") ||
          absl::StrContains(status.error_message(), "ocket closed"));
}

absl::Status ToAbsl(const grpc::Status& status) {
  if (IsBrokenTransport(status)) {
    return absl::UnavailableError(status.error_message());
  }
  return absl::Status(static_cast<absl::StatusCode>(status.error_code()),
                      status.error_message());
}

std::string RandomId() {
  std::random_device random;
  return absl::StrCat(absl::Hex(random(), absl::kZeroPad8), "-",
                      absl::Hex(random(), absl::kZeroPad8), "-",
                      absl::Hex(random(), absl::kZeroPad8));
}

absl::Status ReadChunk(ByteSource& bytes, uint64_t at, std::string* chunk) {
  chunk->resize(std::min(kChunkBytes, bytes.size_bytes() - at));
  return bytes.ReadAt(at, AsWritableBytes(*chunk));
}

constexpr char kServiceName[] = "ovpress.v1.WeightCompression";
// Certificates, keys and tokens: a bundle of all public CAs is 220 KB.
constexpr uint64_t kCredentialBytesMax = 4u << 20;

absl::StatusOr<std::string> ReadPem(const std::string& path) {
  if (path.empty()) return "";
  OVPRESS_ASSIGN_OR_RETURN(std::string text,
                           ReadSmallFile(path, kCredentialBytesMax));
  if (!absl::StrContains(text, "-----BEGIN ")) {
    return absl::InvalidArgumentError(absl::StrCat(path, ": no PEM in it"));
  }
  return text;
}

bool UsesTls(const ClientOptions& options) {
  return options.tls || !options.tls_ca_file.empty() ||
         !options.tls_cert_file.empty();
}

absl::StatusOr<std::shared_ptr<grpc::ChannelCredentials>> MakeCredentials(
    const ClientOptions& options) {
  if (!UsesTls(options)) return grpc::InsecureChannelCredentials();
  grpc::SslCredentialsOptions ssl;
  OVPRESS_ASSIGN_OR_RETURN(ssl.pem_root_certs, ReadPem(options.tls_ca_file));
  OVPRESS_ASSIGN_OR_RETURN(ssl.pem_cert_chain, ReadPem(options.tls_cert_file));
  OVPRESS_ASSIGN_OR_RETURN(ssl.pem_private_key, ReadPem(options.tls_key_file));
  return grpc::SslCredentials(ssl);
}

// What goes into the authorization metadata; "" without a token.
absl::StatusOr<std::string> ReadAuthorization(const ClientOptions& options) {
  if (options.token_file.empty()) return "";
  OVPRESS_ASSIGN_OR_RETURN(
      const std::string text,
      ReadSmallFile(options.token_file, kCredentialBytesMax));
  const absl::string_view token = absl::StripAsciiWhitespace(text);
  const bool fine =
      !token.empty() && std::all_of(token.begin(), token.end(),
                                    [](char c) { return c > ' ' && c < 0x7f; });
  if (!fine) {
    return absl::InvalidArgumentError(absl::StrCat(
        options.token_file, ": must hold one token of printable ASCII"));
  }
  return absl::StrCat("Bearer ", token);
}

absl::Status CheckOptions(const ClientOptions& options) {
  if (options.tls_cert_file.empty() != options.tls_key_file.empty()) {
    return absl::InvalidArgumentError(
        "a TLS certificate and its key belong together: give both or neither");
  }
  if (!options.tls_server_name.empty() && !UsesTls(options)) {
    return absl::InvalidArgumentError("a TLS server name needs TLS");
  }
  if (!options.token_file.empty() && !UsesTls(options) &&
      !options.allow_insecure_token && !IsLoopbackAddress(options.server)) {
    return absl::InvalidArgumentError(
        absl::StrCat("the token for ", options.server,
                     " would travel unencrypted: use TLS (--tls, --tls-ca), or "
                     "--allow-insecure-token in a network that you trust"));
  }
  // A file that cannot be used shows now, not in the middle of an upload.
  return ReadAuthorization(options).status();
}

class ClientImpl final : public Client {
 public:
  ClientImpl(ClientOptions options,
             const std::shared_ptr<grpc::ChannelCredentials>& credentials)
      : options_(std::move(options)) {
    grpc::ChannelArguments arguments;
    SetKeepalive(Keepalive(), &arguments);
    // gRPC's own retries give up on streams beyond 256 KiB; ours resume.
    arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
    // MIN_RECONNECT_BACKOFF stays at its 20 s: it is no wait, but what one
    // attempt may take; 100 ms of it cut off every handshake over a slow link.
    arguments.SetInt(GRPC_ARG_INITIAL_RECONNECT_BACKOFF_MS, 100);
    arguments.SetInt(GRPC_ARG_MAX_RECONNECT_BACKOFF_MS, 2'000);
    if (IsLoopbackAddress(options_.server)) {
      // A proxy of the environment must see neither model nor token.
      arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
    }
    if (!options_.tls_server_name.empty()) {
      arguments.SetSslTargetNameOverride(options_.tls_server_name);
    }
    channel_ =
        grpc::CreateCustomChannel(options_.server, credentials, arguments);
    health_ = grpc::health::v1::Health::NewStub(channel_);
    bytes_ = bs::ByteStream::NewStub(channel_);
    operations_ = lro::Operations::NewStub(channel_);
    compression_ = v1::WeightCompression::NewStub(channel_);
  }

  absl::StatusOr<v1::Blob> Upload(ByteSource& bytes,
                                  const TransferProgress& progress) override {
    const uint64_t size = bytes.size_bytes();
    HashThread hash;
    for (uint64_t at = 0; at < size; at += kChunkBytes) {
      if (Stopped()) return absl::CancelledError("interrupted");
      const auto chunk = std::make_shared<std::string>();
      OVPRESS_RETURN_IF_ERROR(ReadChunk(bytes, at, chunk.get()));
      hash.Update(AsBytes(*chunk), chunk);
    }
    v1::Blob blob;
    blob.set_sha256(hash.FinishHex());
    blob.set_size_bytes(static_cast<int64_t>(size));
    v1::FindMissingBlobsRequest find;
    *find.add_blobs() = blob;
    OVPRESS_ASSIGN_OR_RETURN(
        const v1::FindMissingBlobsResponse missing,
        Unary<v1::FindMissingBlobsResponse>(
            [&](grpc::ClientContext* context, auto* response) {
              return compression_->FindMissingBlobs(context, find, response);
            }));
    if (missing.missing_blobs().empty()) {
      progress(size, size);
      return blob;
    }
    const std::string name = absl::StrCat("uploads/", RandomId(), "/blobs/",
                                          blob.sha256(), "/", size);
    uint64_t best = 0;
    OVPRESS_RETURN_IF_ERROR(Retry([&](Attempt& attempt) -> absl::Status {
      uint64_t at = 0;
      if (attempt.number > 0) {
        OVPRESS_ASSIGN_OR_RETURN(at, Committed(name));
        if (at > best) attempt.progressed = true;
        best = std::max(best, at);
      }
      return WriteFrom(name, bytes, at, progress);
    }));
    return blob;
  }

  absl::StatusOr<lro::Operation> Submit(
      const v1::CompressModelRequest& request) override {
    v1::CompressModelRequest sent = request;
    // With an id a repeated call is the same job.
    if (sent.request_id().empty()) sent.set_request_id(RandomId());
    bool tried = false;
    absl::StatusOr<lro::Operation> operation = Unary<lro::Operation>(
        [&](grpc::ClientContext* context, auto* response) {
          tried = true;
          return compression_->CompressModel(context, sent, response);
        });
    if (operation.ok() || !tried || !Stopped()) return operation;
    // The call was cut, and the server may have the job, or take it yet.
    grpc::ClientContext context;
    OVPRESS_RETURN_IF_ERROR(Authorize(&context));
    context.set_deadline(absl::ToChronoTime(absl::Now() + kLastWords));
    lro::Operation known;
    const absl::Status asked =
        ToAbsl(compression_->CompressModel(&context, sent, &known));
    if (asked.ok()) return known;
    return absl::CancelledError(
        absl::StrCat("interrupted; the job of request_id ", sent.request_id(),
                     " may go on: ", asked.message()));
  }

  absl::StatusOr<lro::Operation> Get(const std::string& name) override {
    lro::GetOperationRequest request;
    request.set_name(name);
    return Unary<lro::Operation>(
        [&](grpc::ClientContext* context, auto* response) {
          return operations_->GetOperation(context, request, response);
        });
  }

  absl::StatusOr<lro::ListOperationsResponse> List(
      const lro::ListOperationsRequest& request) override {
    return Unary<lro::ListOperationsResponse>(
        [&](grpc::ClientContext* context, auto* response) {
          return operations_->ListOperations(context, request, response);
        });
  }

  absl::Status Cancel(const std::string& name) override {
    lro::CancelOperationRequest request;
    request.set_name(name);
    grpc::ClientContext context;
    OVPRESS_RETURN_IF_ERROR(Authorize(&context));
    context.set_deadline(absl::ToChronoTime(absl::Now() + kLastWords));
    google::protobuf::Empty empty;
    return ToAbsl(operations_->CancelOperation(&context, request, &empty));
  }

  absl::StatusOr<lro::Operation> Watch(
      const std::string& name, const OperationProgress& progress) override {
    v1::WatchOperationRequest request;
    request.set_name(name);
    lro::Operation last;
    OVPRESS_RETURN_IF_ERROR(Retry([&](Attempt& attempt) -> absl::Status {
      grpc::ClientContext context;
      OVPRESS_RETURN_IF_ERROR(Authorize(&context));
      Guard guard(this, &context);
      const auto reader = compression_->WatchOperation(&context, request);
      while (reader->Read(&last)) {
        attempt.progressed = true;
        guard.Touch();
        v1::CompressModelMetadata metadata;
        if (last.metadata().UnpackTo(&metadata)) progress(metadata);
      }
      const absl::Status status = ToAbsl(reader->Finish());
      if (last.done()) return absl::OkStatus();
      if (status.ok() || guard.idle()) {
        return absl::UnavailableError("the watch ended before the job");
      }
      return status;
    }));
    return last;
  }

  absl::Status Download(const v1::Blob& blob, ByteSink& out,
                        const TransferProgress& progress) override {
    const auto size = static_cast<uint64_t>(blob.size_bytes());
    uint64_t at = 0;
    HashThread hash;
    OVPRESS_RETURN_IF_ERROR(Retry([&](Attempt& attempt) -> absl::Status {
      bs::ReadRequest request;
      request.set_resource_name(
          absl::StrCat("blobs/", blob.sha256(), "/", size));
      request.set_read_offset(static_cast<int64_t>(at));
      grpc::ClientContext context;
      OVPRESS_RETURN_IF_ERROR(Authorize(&context));
      Guard guard(this, &context);
      const auto reader = bytes_->Read(&context, request);
      bs::ReadResponse response;
      while (reader->Read(&response)) {
        guard.Touch();
        attempt.progressed = true;
        const auto data = std::make_shared<const std::string>(
            std::move(*response.mutable_data()));
        if (data->size() > size - at) {
          return absl::DataLossError("the server sent more than the blob has");
        }
        OVPRESS_RETURN_IF_ERROR(out.WriteAt(at, AsBytes(*data)));
        hash.Update(AsBytes(*data), data);
        at += data->size();
        progress(at, size);
      }
      const absl::Status status = ToAbsl(reader->Finish());
      if (at == size) return absl::OkStatus();
      if (status.ok() || guard.idle()) {
        return absl::UnavailableError("the download ended early");
      }
      return status;
    }));
    if (hash.FinishHex() != blob.sha256()) {
      return absl::DataLossError(
          absl::StrCat("the bytes received are not those of ", blob.sha256()));
    }
    return absl::OkStatus();
  }

  absl::StatusOr<StreamOutput> CompressStream(
      const StreamInput& input, ByteSink& out,
      const std::function<void(const StreamProgress&)>& progress) override {
    StreamOutput output;
    OVPRESS_RETURN_IF_ERROR(Retry([&](Attempt&) -> absl::Status {
      grpc::ClientContext context;
      OVPRESS_RETURN_IF_ERROR(Authorize(&context));
      Guard guard(this, &context);
      StreamCall call({.channel = channel_.get(),
                       .context = &context,
                       .input = &input,
                       .out = &out,
                       .moved = [&guard] { guard.Touch(); },
                       .progress = progress});
      OVPRESS_ASSIGN_OR_RETURN(output, call.Run());
      return absl::OkStatus();
    }));
    return output;
  }

  absl::Status Health() override {
    grpc::ClientContext context;
    context.set_deadline(absl::ToChronoTime(absl::Now() + absl::Seconds(5)));
    grpc::health::v1::HealthCheckRequest request;
    request.set_service(kServiceName);
    grpc::health::v1::HealthCheckResponse response;
    OVPRESS_RETURN_IF_ERROR(
        ToAbsl(health_->Check(&context, request, &response)));
    if (response.status() == grpc::health::v1::HealthCheckResponse::SERVING) {
      return absl::OkStatus();
    }
    return absl::UnavailableError("the server does not serve: it drains");
  }

 private:
  struct Attempt {
    int number = 0;
    bool progressed = false;
  };

  absl::Status Authorize(grpc::ClientContext* context) const {
    OVPRESS_ASSIGN_OR_RETURN(const std::string authorization,
                             ReadAuthorization(options_));
    if (!authorization.empty()) {
      context->AddMetadata("authorization", authorization);
    }
    return absl::OkStatus();
  }

  bool Stopped() const {
    return options_.stop != nullptr && options_.stop->load();
  }

  // Cancels a stream when the caller stops or nothing moves.
  class Guard {
   public:
    Guard(const ClientImpl* client, grpc::ClientContext* context)
        : client_(client), context_(context), thread_([this] { Watch(); }) {}
    ~Guard() {
      {
        MutexLock lock(&mutex_);
        done_ = true;
        wake_.Signal();
      }
      thread_.join();
    }
    void Touch() { last_ = absl::ToUnixMillis(absl::Now()); }
    bool idle() const { return idle_; }

   private:
    void Watch() {
      MutexLock lock(&mutex_);
      while (!done_) {
        // An interrupt signals nobody, so the flag is looked at now and then.
        wake_.WaitUntil(&mutex_, std::chrono::steady_clock::now() +
                                     std::chrono::milliseconds(20));
        if (absl::Now() - absl::FromUnixMillis(last_) > kIdle) idle_ = true;
        if (client_->Stopped() || idle_) {
          context_->TryCancel();
          return;
        }
      }
    }
    const ClientImpl* const client_;
    grpc::ClientContext* const context_;
    std::atomic<int64_t> last_ = absl::ToUnixMillis(absl::Now());
    std::atomic<bool> idle_{false};
    Mutex mutex_;
    CondVar wake_;
    bool done_ ABSL_GUARDED_BY(mutex_) = false;
    std::thread thread_;  // last: it uses the rest
  };

  // What a later attempt may mend: the server is away, drains, is full for the
  // moment, or another writer (our own broken one) is still there.
  static bool IsPassing(const absl::Status& status) {
    return absl::IsUnavailable(status) || absl::IsResourceExhausted(status) ||
           absl::IsAborted(status) || absl::IsDeadlineExceeded(status) ||
           absl::IsOutOfRange(status) || absl::IsCancelled(status);
  }

  absl::Status Retry(const std::function<absl::Status(Attempt&)>& body) {
    absl::Time give_up = absl::Now() + options_.retry_for;
    absl::Duration backoff = kFirstBackoff;
    Attempt attempt;
    while (true) {
      attempt.progressed = false;
      const absl::Status status = body(attempt);
      if (Stopped()) return absl::CancelledError("interrupted");
      if (status.ok() || !IsPassing(status)) return status;
      if (attempt.progressed) {
        give_up = absl::Now() + options_.retry_for;
        backoff = kFirstBackoff;
      }
      if (absl::Now() + backoff > give_up) return status;
      for (absl::Time until = absl::Now() + backoff;
           absl::Now() < until && !Stopped();) {
        std::this_thread::sleep_for(std::chrono::milliseconds(10));
      }
      backoff = std::min(2 * backoff, kLongestBackoff);
      ++attempt.number;
    }
  }

  template <typename Response, typename CallFunction>
  absl::StatusOr<Response> Unary(CallFunction call) {
    Response response;
    OVPRESS_RETURN_IF_ERROR(Retry([&](Attempt&) -> absl::Status {
      grpc::ClientContext context;
      OVPRESS_RETURN_IF_ERROR(Authorize(&context));
      context.set_deadline(absl::ToChronoTime(absl::Now() + kUnaryDeadline));
      Guard guard(this, &context);
      return ToAbsl(call(&context, &response));
    }));
    return response;
  }

  absl::StatusOr<uint64_t> Committed(const std::string& name) {
    bs::QueryWriteStatusRequest request;
    request.set_resource_name(name);
    grpc::ClientContext context;
    OVPRESS_RETURN_IF_ERROR(Authorize(&context));
    context.set_deadline(absl::ToChronoTime(absl::Now() + kUnaryDeadline));
    bs::QueryWriteStatusResponse response;
    const absl::Status status =
        ToAbsl(bytes_->QueryWriteStatus(&context, request, &response));
    if (absl::IsNotFound(status)) return 0;
    OVPRESS_RETURN_IF_ERROR(status);
    return static_cast<uint64_t>(response.committed_size());
  }

  absl::Status WriteFrom(const std::string& name, ByteSource& bytes,
                         uint64_t at, const TransferProgress& progress) {
    const uint64_t size = bytes.size_bytes();
    grpc::ClientContext context;
    OVPRESS_RETURN_IF_ERROR(Authorize(&context));
    Guard guard(this, &context);
    bs::WriteResponse response;
    const auto writer = bytes_->Write(&context, &response);
    bs::WriteRequest request;
    request.set_resource_name(name);
    bool open = true;
    do {
      OVPRESS_RETURN_IF_ERROR(ReadChunk(bytes, at, request.mutable_data()));
      request.set_write_offset(static_cast<int64_t>(at));
      at += request.data().size();
      request.set_finish_write(at == size);
      open = writer->Write(request);
      request.clear_resource_name();
      guard.Touch();
      progress(at, size);
    } while (open && at < size);
    // An early OK closes the stream before all was sent.
    writer->WritesDone();
    OVPRESS_RETURN_IF_ERROR(ToAbsl(writer->Finish()));
    if (static_cast<uint64_t>(response.committed_size()) != size) {
      return absl::UnavailableError(absl::StrCat("the server took ",
                                                 response.committed_size(),
                                                 " of ", size, " bytes"));
    }
    return absl::OkStatus();
  }

  const ClientOptions options_;
  std::shared_ptr<grpc::Channel> channel_;
  std::unique_ptr<bs::ByteStream::Stub> bytes_;
  std::unique_ptr<lro::Operations::Stub> operations_;
  std::unique_ptr<v1::WeightCompression::Stub> compression_;
  std::unique_ptr<grpc::health::v1::Health::Stub> health_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<Client>> Client::Create(ClientOptions options) {
  OVPRESS_RETURN_IF_ERROR(CheckOptions(options));
  OVPRESS_ASSIGN_OR_RETURN(const auto credentials, MakeCredentials(options));
  return std::make_unique<ClientImpl>(std::move(options), credentials);
}

absl::StatusOr<v1::CompressModelResponse> ResultOf(
    const lro::Operation& operation) {
  if (!operation.done()) {
    return absl::FailedPreconditionError(
        absl::StrCat(operation.name(), " is not done"));
  }
  if (operation.has_error()) {
    return absl::Status(static_cast<absl::StatusCode>(operation.error().code()),
                        operation.error().message());
  }
  v1::CompressModelResponse response;
  if (!operation.response().UnpackTo(&response)) {
    return absl::InternalError("the response is of an unknown type");
  }
  return response;
}

}  // namespace ovpress
