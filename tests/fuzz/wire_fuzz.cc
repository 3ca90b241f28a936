// Requests as they come from the wire: the first byte says which message, the
// rest is parsed as protobuf and goes through the functions of
// server/rpc/convert as a handler would call them.
#include "google/bytestream/bytestream.pb.h"
#include "ovpress/v1/compression.pb.h"
#include "server/jobs/errors.h"
#include "server/jobs/options_json.h"
#include "server/rpc/convert.h"
#include "server/rpc/grpc_status.h"
#include "tests/fuzz/input.h"

namespace {

using namespace ovpress;  // NOLINT(google-build-using-namespace): one file

// What a refused request becomes on its way out.
void CheckRefused(const absl::Status& status) {
  OVPRESS_FUZZ_ASSERT(absl::IsInvalidArgument(status), status.ToString());
  OVPRESS_FUZZ_ASSERT(ToRpcStatus(status).ByteSizeLong() < 8192,
                      "the status does not fit the trailers");
}

void CheckOptions(const v1::CompressionOptions& proto) {
  const auto options = OptionsFromProto(proto);
  if (!options.ok()) return CheckRefused(options.status());
  // A job must come back from the store as it was asked for.
  const auto stored = OptionsFromJson(OptionsToJson(*options));
  OVPRESS_FUZZ_ASSERT(stored.ok(), stored.status().ToString());
  OVPRESS_FUZZ_ASSERT(CanonicalOptions(*stored) == CanonicalOptions(*options),
                      CanonicalOptions(*options));
}

void CheckJob(const v1::CompressModelRequest& request) {
  auto spec = SpecFromProto(request, "owner");
  if (!spec.ok()) return CheckRefused(spec.status());
  (void)ValidateBlobRef(spec->xml);
  OVPRESS_FUZZ_ASSERT(spec->ttl >= absl::ZeroDuration(), "");
  OVPRESS_FUZZ_ASSERT(spec->max_run_time >= absl::ZeroDuration(), "");
  JobView view;
  view.record.id = "0123456789abcdef0123456789abcdef";
  view.record.spec = *std::move(spec);
  view.record.created = absl::UnixEpoch();
  view.record.state = static_cast<JobState>(1 + request.priority() % 5 +
                                            (request.priority() % 5 < 0) * 5);
  view.record.finished = absl::UnixEpoch();
  view.record.expires = absl::UnixEpoch() + view.record.spec.ttl;
  if (view.record.state != JobState::kSucceeded && IsFinal(view.record.state)) {
    view.record.error = absl::DataLossError(view.record.spec.request_id);
  }
  const auto operation = OperationFromView(view);
  std::string bytes;
  OVPRESS_FUZZ_ASSERT(operation.SerializeToString(&bytes), "");
  google::longrunning::Operation again;
  OVPRESS_FUZZ_ASSERT(again.ParseFromString(bytes), "not UTF-8");
}

void CheckEstimate(const v1::EstimateCompressionRequest& request) {
  const auto options = OptionsFromProto(request.options());
  if (!options.ok()) return CheckRefused(options.status());
  const auto compression = Compression::Create(request.xml(), *options);
  if (!compression.ok()) {
    (void)ToGrpcStatus(compression.status());
    return;
  }
  const auto response = EstimateToProto(
      **compression,
      static_cast<uint64_t>(request.settings().memory_budget_bytes()),
      request.summary_only(), 100);
  std::string bytes;
  OVPRESS_FUZZ_ASSERT(response.SerializeToString(&bytes), "");
}

void CheckName(const std::string& name) {
  const auto blob = ParseBlobName(name);
  if (!blob.ok()) CheckRefused(blob.status());
  const auto upload = ParseUploadName(name);
  if (!upload.ok()) CheckRefused(upload.status());
}

template <typename Message>
bool Parse(absl::string_view bytes, Message* message) {
  return message->ParseFromArray(bytes.data(), static_cast<int>(bytes.size()));
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  fuzz::Bytes input(data, size);
  const uint8_t kind = input.Take<uint8_t>();
  const absl::string_view bytes = input.Rest();
  switch (kind % 8) {
    case 0: {
      v1::CompressModelRequest request;
      if (Parse(bytes, &request)) CheckJob(request);
      break;
    }
    case 1: {
      v1::CompressionOptions options;
      if (Parse(bytes, &options)) CheckOptions(options);
      break;
    }
    case 2: {
      v1::EstimateCompressionRequest request;
      if (Parse(bytes, &request)) CheckEstimate(request);
      break;
    }
    case 3: {
      v1::CompressStreamRequest request;
      if (Parse(bytes, &request)) CheckOptions(request.open().options());
      break;
    }
    case 4: {
      v1::FindMissingBlobsRequest request;
      if (!Parse(bytes, &request)) break;
      for (const v1::Blob& blob : request.blobs()) {
        const BlobRef ref = RefFromProto(blob);
        const absl::Status status = ValidateBlobRef(ref);
        if (!status.ok()) CheckRefused(status);
        v1::Blob back;
        RefToProto(ref, &back);
        OVPRESS_FUZZ_ASSERT(back.size_bytes() == blob.size_bytes(), "");
      }
      break;
    }
    case 5: {
      google::bytestream::WriteRequest request;
      if (Parse(bytes, &request)) CheckName(request.resource_name());
      break;
    }
    case 6: {
      google::bytestream::ReadRequest request;
      if (Parse(bytes, &request)) CheckName(request.resource_name());
      break;
    }
    default: {
      // Messages come from hostile files, too.
      const std::string text(bytes);
      const auto status = ToRpcStatus(
          WithReason(absl::DataLossError(text), text.substr(0, 40)));
      std::string out;
      OVPRESS_FUZZ_ASSERT(status.SerializeToString(&out), "");
      google::rpc::Status again;
      OVPRESS_FUZZ_ASSERT(again.ParseFromString(out), "not UTF-8");
      OVPRESS_FUZZ_ASSERT(out.size() < 8192, "too long for the trailers");
      break;
    }
  }
  return 0;
}
