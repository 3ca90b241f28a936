#include "server/rpc/weight_compression_service.h"

#include <chrono>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/time/time.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "server/jobs/errors.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"

namespace ovpress {
namespace {

namespace lro = google::longrunning;

// The state of a job as its watcher sees it next: only the latest is kept for
// one that reads slowly. Thread-safe.
class LatestView {
 public:
  void Set(const absl::StatusOr<JobView>& view) {
    MutexLock lock(&mutex_);
    view_ = view;
    changed_.SignalAll();
  }
  // Waits a moment for one; nullopt if none came.
  std::optional<absl::StatusOr<JobView>> Take() {
    MutexLock lock(&mutex_);
    if (!view_.has_value()) {
      changed_.WaitUntil(&mutex_, std::chrono::steady_clock::now() +
                                      std::chrono::milliseconds(500));
    }
    return std::exchange(view_, std::nullopt);
  }

 private:
  Mutex mutex_;
  CondVar changed_;
  std::optional<absl::StatusOr<JobView>> view_ ABSL_GUARDED_BY(mutex_);
};

}  // namespace

WeightCompressionService::WeightCompressionService(const RpcOptions& options,
                                                   Transfers* transfers,
                                                   Watchers* watchers)
    : options_(options), transfers_(transfers), watchers_(watchers) {
  using Self = WeightCompressionService;
  const int index = v1::CompressStreamRequest::descriptor()
                        ->file()
                        ->FindServiceByName("WeightCompression")
                        ->FindMethodByName("CompressStream")
                        ->index();
  MarkMethodStreamed(index, new grpc::internal::BidiStreamingHandler<
                                Self, ovpress::CompressStream::Request,
                                ovpress::CompressStream::Response>(
                                [](Self* service, grpc::ServerContext* context,
                                   ovpress::CompressStream::Stream* stream) {
                                  return service->Stream(context, stream);
                                },
                                this));
}

grpc::Status WeightCompressionService::GetCapabilities(
    grpc::ServerContext* context, const v1::GetCapabilitiesRequest*,
    v1::GetCapabilitiesResponse* response) {
  return RunCall(
      options_, {"ovpress.v1.WeightCompression/GetCapabilities", std::nullopt},
      *context, [&](const Caller&) {
        *response =
            Capabilities(options_.transfer, options_.store, options_.jobs);
        return absl::OkStatus();
      });
}

grpc::Status WeightCompressionService::FindMissingBlobs(
    grpc::ServerContext* context, const v1::FindMissingBlobsRequest* request,
    v1::FindMissingBlobsResponse* response) {
  return RunCall(
      options_,
      {"ovpress.v1.WeightCompression/FindMissingBlobs", Scope::kSubmit},
      *context, [&](const Caller& caller) -> absl::Status {
        if (request->blobs_size() > options_.transfer.max_find_missing_blobs) {
          return absl::InvalidArgumentError(
              absl::StrCat(request->blobs_size(), " blobs, at most ",
                           options_.transfer.max_find_missing_blobs));
        }
        std::vector<BlobRef> refs;
        for (const v1::Blob& blob : request->blobs()) {
          refs.push_back(RefFromProto(blob));
        }
        OVPRESS_ASSIGN_OR_RETURN(
            const std::vector<BlobRef> missing,
            options_.blobs->FindMissing(caller.identity, refs));
        for (const BlobRef& ref : missing) {
          RefToProto(ref, response->add_missing_blobs());
        }
        return absl::OkStatus();
      });
}

grpc::Status WeightCompressionService::EstimateCompression(
    grpc::ServerContext* context, const v1::EstimateCompressionRequest* request,
    v1::EstimateCompressionResponse* response) {
  return RunCall(
      options_,
      {"ovpress.v1.WeightCompression/EstimateCompression", Scope::kSubmit},
      *context, [&](const Caller& caller) {
        return Estimate(caller, *request, response);
      });
}

absl::Status WeightCompressionService::Estimate(
    const Caller& caller, const v1::EstimateCompressionRequest& request,
    v1::EstimateCompressionResponse* response) {
  std::string xml = request.xml();
  if (xml.size() > options_.transfer.max_inline_xml_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(
        "xml of ", xml.size(), " bytes in the message, at most ",
        options_.transfer.max_inline_xml_bytes, "; upload it as a blob"));
  }
  if (request.has_xml_blob()) {
    const BlobRef ref = RefFromProto(request.xml_blob());
    OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(ref));
    OVPRESS_ASSIGN_OR_RETURN(xml, ReadBlob(options_.blobs, caller.identity, ref,
                                           options_.jobs.max_xml_bytes));
  }
  OVPRESS_ASSIGN_OR_RETURN(const CompressionOptions options,
                           OptionsFromProto(request.options()));
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<Compression> compression,
                           Compression::Create(std::move(xml), options));
  const int64_t budget = request.settings().memory_budget_bytes();
  *response = EstimateToProto(
      *compression,
      budget > 0 ? static_cast<uint64_t>(budget)
                 : options_.jobs.default_job_memory_bytes,
      request.summary_only(), options_.transfer.max_plan_entries);
  return absl::OkStatus();
}

grpc::Status WeightCompressionService::CompressModel(
    grpc::ServerContext* context, const v1::CompressModelRequest* request,
    lro::Operation* response) {
  return RunCall(
      options_, {"ovpress.v1.WeightCompression/CompressModel", Scope::kSubmit},
      *context, [&](const Caller& caller) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(JobSpec spec,
                                 SpecFromProto(*request, caller.identity));
        OVPRESS_RETURN_IF_ERROR(
            ResolveAddresses(*request, options_.blobs, &spec));
        OVPRESS_ASSIGN_OR_RETURN(
            const JobView view,
            options_.manager->Submit(spec, request->validate_only()));
        *response = OperationFromView(view);
        return absl::OkStatus();
      });
}

grpc::Status WeightCompressionService::WatchOperation(
    grpc::ServerContext* context, const v1::WatchOperationRequest* request,
    grpc::ServerWriter<lro::Operation>* writer) {
  return RunCall(options_,
                 {"ovpress.v1.WeightCompression/WatchOperation", Scope::kRead},
                 *context, [&](const Caller& caller) {
                   return Watch(caller, *context, request->name(), writer);
                 });
}

absl::Status WeightCompressionService::Watch(
    const Caller& caller, const grpc::ServerContext& context,
    const std::string& name, grpc::ServerWriter<lro::Operation>* writer) {
  OVPRESS_ASSIGN_OR_RETURN(const std::string id, JobIdOf(name));
  OVPRESS_ASSIGN_OR_RETURN(const Watchers::Handle place,
                           watchers_->Open(caller.identity));
  const auto latest = std::make_shared<LatestView>();
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ovpress::Watch> watch,
                           options_.manager->Subscribe(
                               JobsSeenBy(caller), id,
                               [latest](const absl::StatusOr<JobView>& view) {
                                 latest->Set(view);
                               }));
  while (!context.IsCancelled()) {
    const std::optional<absl::StatusOr<JobView>> view = latest->Take();
    if (!view.has_value()) continue;
    OVPRESS_RETURN_IF_ERROR(view->status());
    const lro::Operation operation = OperationFromView(**view);
    if (!writer->Write(operation)) break;
    if (operation.done()) return absl::OkStatus();
  }
  return absl::CancelledError("the client went away");
}

grpc::Status WeightCompressionService::Stream(
    grpc::ServerContext* context, ovpress::CompressStream::Stream* stream) {
  return RunCall(
      options_, {"ovpress.v1.WeightCompression/CompressStream", Scope::kSubmit},
      *context, [&](const Caller& caller) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(Transfers::Handle transfer,
                                 transfers_->Open(context, caller.identity));
        return ovpress::CompressStream({.options = &options_,
                                        .transfer = &transfer,
                                        .stream = stream,
                                        .owner = caller.identity})
            .Run();
      });
}

}  // namespace ovpress
