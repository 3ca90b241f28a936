#include "server/rpc/services.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <list>
#include <map>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/base/io.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "google/bytestream/bytestream.grpc.pb.h"
#include "google/longrunning/operations.grpc.pb.h"
#include "ovpress/v1/compression.grpc.pb.h"
#include "server/jobs/errors.h"
#include "server/rpc/convert.h"
#include "server/rpc/grpc_status.h"

namespace ovpress {
namespace {

namespace bs = google::bytestream;
namespace lro = google::longrunning;
using Steady = std::chrono::steady_clock;

constexpr absl::Duration kWaitMax = absl::Minutes(10);

// Uploads, downloads and streams that are open: counts them against the limits
// and ends those that moved no byte for too long.
class Transfers {
 public:
  Transfers(const TransferLimits& limits, Metrics* metrics)
      : limits_(limits), metrics_(metrics), watchdog_([this] { Watch(); }) {}
  ~Transfers() {
    {
      MutexLock lock(&mutex_);
      exiting_ = true;
      wake_.SignalAll();
    }
    watchdog_.join();
  }

  struct Entry {
    grpc::ServerContext* context;
    std::string owner;
    std::atomic<Steady::rep> last{0};
    std::atomic<bool> expired{false};
    void Touch() { last = Steady::now().time_since_epoch().count(); }
  };
  // Ends the count when destroyed.
  class Handle {
   public:
    Handle(Transfers* transfers, std::list<Entry>::iterator entry)
        : transfers_(transfers), entry_(entry) {}
    Handle(Handle&& other) noexcept
        : transfers_(std::exchange(other.transfers_, nullptr)),
          entry_(other.entry_) {}
    ~Handle() {
      if (transfers_ != nullptr) transfers_->Close(entry_);
    }
    void Touch() { entry_->Touch(); }
    // What a stream that broke off means.
    absl::Status Broken() const {
      if (entry_->expired) {
        return absl::DeadlineExceededError(absl::StrCat(
            "no byte moved for ",
            absl::FormatDuration(transfers_->limits_.idle_timeout)));
      }
      return absl::CancelledError("the client went away");
    }

   private:
    Transfers* transfers_;
    std::list<Entry>::iterator entry_;
  };

  absl::StatusOr<Handle> Open(grpc::ServerContext* context,
                              const std::string& owner) {
    MutexLock lock(&mutex_);
    const auto of_owner =
        std::count_if(entries_.begin(), entries_.end(),
                      [&](const Entry& entry) { return entry.owner == owner; });
    const bool full =
        entries_.size() >= static_cast<size_t>(limits_.max_transfers);
    if (full || of_owner >= limits_.max_transfers_per_owner) {
      const LimitDetails details{
          .limit = full ? "max_transfers" : "max_transfers_per_owner",
          .subject = full ? "server" : absl::StrCat("client:", owner),
          .limit_value = static_cast<uint64_t>(
              full ? limits_.max_transfers : limits_.max_transfers_per_owner),
          .requested =
              full ? entries_.size() + 1 : static_cast<uint64_t>(of_owner) + 1,
          .retry_after = absl::Seconds(2)};
      metrics_->OnAdmissionRejected(details.limit);
      return LimitError("too many transfers at a time", details);
    }
    entries_.emplace_front();
    Entry& entry = entries_.front();
    entry.context = context;
    entry.owner = owner;
    entry.Touch();
    metrics_->OnTransfersActive(1);
    return Handle(this, entries_.begin());
  }

 private:
  void Close(std::list<Entry>::iterator entry) {
    MutexLock lock(&mutex_);
    entries_.erase(entry);
    metrics_->OnTransfersActive(-1);
  }
  void Watch() {
    const auto limit = absl::ToChronoNanoseconds(limits_.idle_timeout);
    MutexLock lock(&mutex_);
    while (!exiting_) {
      wake_.WaitUntil(&mutex_, Steady::now() + std::chrono::milliseconds(250));
      const Steady::rep now = Steady::now().time_since_epoch().count();
      for (Entry& entry : entries_) {
        if (Steady::duration(now - entry.last) < limit || entry.expired) {
          continue;
        }
        entry.expired = true;
        entry.context->TryCancel();
      }
    }
  }

  const TransferLimits limits_;
  Metrics* const metrics_;
  Mutex mutex_;
  CondVar wake_;
  std::list<Entry> entries_ ABSL_GUARDED_BY(mutex_);
  bool exiting_ ABSL_GUARDED_BY(mutex_) = false;
  std::thread watchdog_;  // last: it uses the rest
};

// Counts a call and turns its end into gRPC's.
class Call {
 public:
  Call(const RpcOptions& options, const char* method)
      : metrics_(options.metrics), method_(method), start_(Steady::now()) {}
  grpc::Status End(const absl::Status& status) const {
    metrics_->OnRpc(method_, absl::StatusCodeToString(status.code()),
                    absl::FromChrono(Steady::now() - start_));
    return ToGrpcStatus(status);
  }

 private:
  Metrics* const metrics_;
  const char* const method_;
  const Steady::time_point start_;
};

// Every caller is the anonymous one.
std::string OwnerOf(const grpc::ServerContext*) { return ""; }

absl::StatusOr<std::string> JobIdOf(const std::string& name) {
  absl::string_view id = name;
  if (!absl::ConsumePrefix(&id, "operations/") || id.size() != 32) {
    return absl::NotFoundError(absl::StrCat(
        "there is no operation '", absl::string_view(name).substr(0, 80),
        "'; names are operations/{32 hexadecimal digits}"));
  }
  return std::string(id);
}

// --- google.bytestream ---

class ByteStreamService final : public bs::ByteStream::Service {
 public:
  ByteStreamService(const RpcOptions& options, Transfers* transfers)
      : options_(options), transfers_(transfers) {}

  grpc::Status Write(grpc::ServerContext* context,
                     grpc::ServerReader<bs::WriteRequest>* reader,
                     bs::WriteResponse* response) override {
    return Call(options_, "google.bytestream.ByteStream/Write")
        .End(DoWrite(context, reader, response));
  }
  grpc::Status Read(grpc::ServerContext* context,
                    const bs::ReadRequest* request,
                    grpc::ServerWriter<bs::ReadResponse>* writer) override {
    return Call(options_, "google.bytestream.ByteStream/Read")
        .End(DoRead(context, *request, writer));
  }
  grpc::Status QueryWriteStatus(
      grpc::ServerContext* context, const bs::QueryWriteStatusRequest* request,
      bs::QueryWriteStatusResponse* response) override {
    const auto query = [&]() -> absl::Status {
      OVPRESS_ASSIGN_OR_RETURN(const UploadName name,
                               ParseUploadName(request->resource_name()));
      OVPRESS_ASSIGN_OR_RETURN(
          const UploadStatus status,
          options_.blobs->QueryUpload(OwnerOf(context), name));
      response->set_committed_size(
          static_cast<int64_t>(status.committed_bytes));
      response->set_complete(status.complete);
      return absl::OkStatus();
    };
    return Call(options_, "google.bytestream.ByteStream/QueryWriteStatus")
        .End(query());
  }

 private:
  absl::Status DoWrite(grpc::ServerContext* context,
                       grpc::ServerReader<bs::WriteRequest>* reader,
                       bs::WriteResponse* response) {
    const std::string owner = OwnerOf(context);
    OVPRESS_ASSIGN_OR_RETURN(Transfers::Handle transfer,
                             transfers_->Open(context, owner));
    bs::WriteRequest request;
    if (!reader->Read(&request)) {
      return absl::InvalidArgumentError("a Write without any message");
    }
    const std::string first_name = request.resource_name();
    OVPRESS_ASSIGN_OR_RETURN(const UploadName name,
                             ParseUploadName(first_name));
    OVPRESS_ASSIGN_OR_RETURN(BlobStore::OpenedUpload upload,
                             options_.blobs->OpenUpload(owner, name));
    if (upload.already_exists) {
      response->set_committed_size(static_cast<int64_t>(name.ref.size_bytes));
      return absl::OkStatus();
    }
    do {
      transfer.Touch();
      if (!request.resource_name().empty() &&
          request.resource_name() != first_name) {
        return absl::InvalidArgumentError(
            "resource_name changed in the middle of a Write");
      }
      if (request.write_offset() < 0) {
        return absl::OutOfRangeError("write_offset must not be negative");
      }
      if (request.data().size() > options_.transfer.max_chunk_bytes) {
        return absl::InvalidArgumentError(
            absl::StrCat("data of ", request.data().size(),
                         " bytes in one message, at most ",
                         options_.transfer.max_chunk_bytes));
      }
      OVPRESS_RETURN_IF_ERROR(
          upload.writer->Append(static_cast<uint64_t>(request.write_offset()),
                                AsBytes(request.data())));
      options_.metrics->OnTransferBytes(true, request.data().size());
      if (request.finish_write()) {
        OVPRESS_RETURN_IF_ERROR(upload.writer->Finish());
        if (reader->Read(&request)) {
          return absl::InvalidArgumentError("a message after finish_write");
        }
        response->set_committed_size(static_cast<int64_t>(name.ref.size_bytes));
        return absl::OkStatus();
      }
    } while (reader->Read(&request));
    if (context->IsCancelled()) return transfer.Broken();
    // Half-closed without finish_write: what came is kept.
    const uint64_t committed = upload.writer->next_offset();
    upload.writer.reset();
    response->set_committed_size(static_cast<int64_t>(committed));
    return absl::OkStatus();
  }

  absl::Status DoRead(grpc::ServerContext* context,
                      const bs::ReadRequest& request,
                      grpc::ServerWriter<bs::ReadResponse>* writer) {
    const std::string owner = OwnerOf(context);
    OVPRESS_ASSIGN_OR_RETURN(const BlobRef ref,
                             ParseBlobName(request.resource_name()));
    OVPRESS_ASSIGN_OR_RETURN(Transfers::Handle transfer,
                             transfers_->Open(context, owner));
    OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ByteSource> source,
                             options_.blobs->OpenRead(owner, ref));
    if (request.read_offset() < 0 ||
        static_cast<uint64_t>(request.read_offset()) > ref.size_bytes) {
      return absl::OutOfRangeError(
          absl::StrCat("read_offset ", request.read_offset(),
                       " must be from 0 to ", ref.size_bytes));
    }
    if (request.read_limit() < 0) {
      return absl::InvalidArgumentError("read_limit must not be negative");
    }
    uint64_t at = static_cast<uint64_t>(request.read_offset());
    uint64_t left = ref.size_bytes - at;
    if (request.read_limit() > 0) {
      left = std::min(left, static_cast<uint64_t>(request.read_limit()));
    }
    bs::ReadResponse response;
    while (left > 0) {
      std::string& data = *response.mutable_data();
      data.resize(std::min(left, options_.transfer.chunk_bytes));
      OVPRESS_RETURN_IF_ERROR(source->ReadAt(at, AsWritableBytes(data)));
      const uint64_t size = data.size();
      if (!writer->Write(response)) return transfer.Broken();
      transfer.Touch();
      options_.metrics->OnTransferBytes(false, size);
      at += size;
      left -= size;
    }
    return absl::OkStatus();
  }

  const RpcOptions& options_;
  Transfers* const transfers_;
};

// --- google.longrunning ---

// "state=RUNNING AND labels.team=search": terms joined by AND.
absl::StatusOr<JobFilter> ParseFilter(const std::string& text) {
  JobFilter filter;
  if (text.empty()) return filter;
  for (absl::string_view term : absl::StrSplit(text, " AND ")) {
    const std::vector<std::string> parts =
        absl::StrSplit(term, absl::MaxSplits('=', 1));
    absl::string_view key = parts[0];
    const auto state =
        parts.size() == 2 ? ParseJobState(parts[1]) : std::nullopt;
    if (key == "state" && state.has_value()) {
      filter.states.push_back(*state);
    } else if (parts.size() == 2 && absl::ConsumePrefix(&key, "labels.")) {
      filter.labels[std::string(key)] = parts[1];
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "filter term '", term.substr(0, 80),
          "' must be state=QUEUED|RUNNING|SUCCEEDED|FAILED|CANCELLED or "
          "labels.KEY=VALUE; terms are joined by ' AND '"));
    }
  }
  return filter;
}

class OperationsService final : public lro::Operations::Service {
 public:
  explicit OperationsService(const RpcOptions& options) : options_(options) {}

  grpc::Status ListOperations(grpc::ServerContext* context,
                              const lro::ListOperationsRequest* request,
                              lro::ListOperationsResponse* response) override {
    const auto list = [&]() -> absl::Status {
      OVPRESS_ASSIGN_OR_RETURN(const JobFilter filter,
                               ParseFilter(request->filter()));
      OVPRESS_ASSIGN_OR_RETURN(
          const JobManager::Page page,
          options_.manager->List(OwnerOf(context), filter, request->page_size(),
                                 request->page_token()));
      for (const JobView& view : page.jobs) {
        *response->add_operations() = OperationFromView(view);
      }
      response->set_next_page_token(page.next_page_token);
      return absl::OkStatus();
    };
    return Call(options_, "google.longrunning.Operations/ListOperations")
        .End(list());
  }
  grpc::Status GetOperation(grpc::ServerContext* context,
                            const lro::GetOperationRequest* request,
                            lro::Operation* response) override {
    const auto get = [&]() -> absl::Status {
      OVPRESS_ASSIGN_OR_RETURN(const std::string id, JobIdOf(request->name()));
      OVPRESS_ASSIGN_OR_RETURN(const JobView view,
                               options_.manager->Get(OwnerOf(context), id));
      *response = OperationFromView(view);
      return absl::OkStatus();
    };
    return Call(options_, "google.longrunning.Operations/GetOperation")
        .End(get());
  }
  grpc::Status DeleteOperation(grpc::ServerContext* context,
                               const lro::DeleteOperationRequest* request,
                               google::protobuf::Empty*) override {
    const auto remove = [&]() -> absl::Status {
      OVPRESS_ASSIGN_OR_RETURN(const std::string id, JobIdOf(request->name()));
      return options_.manager->Delete(OwnerOf(context), id);
    };
    return Call(options_, "google.longrunning.Operations/DeleteOperation")
        .End(remove());
  }
  grpc::Status CancelOperation(grpc::ServerContext* context,
                               const lro::CancelOperationRequest* request,
                               google::protobuf::Empty*) override {
    const auto cancel = [&]() -> absl::Status {
      OVPRESS_ASSIGN_OR_RETURN(const std::string id, JobIdOf(request->name()));
      return options_.manager->Cancel(OwnerOf(context), id);
    };
    return Call(options_, "google.longrunning.Operations/CancelOperation")
        .End(cancel());
  }
  grpc::Status WaitOperation(grpc::ServerContext* context,
                             const lro::WaitOperationRequest* request,
                             lro::Operation* response) override {
    const auto wait = [&]() -> absl::Status {
      OVPRESS_ASSIGN_OR_RETURN(const std::string id, JobIdOf(request->name()));
      absl::Duration left = kWaitMax;
      if (request->has_timeout()) {
        left =
            std::min(left, absl::Seconds(request->timeout().seconds()) +
                               absl::Nanoseconds(request->timeout().nanos()));
      }
      // In slices, to see that the client is still there.
      while (true) {
        const absl::Duration slice = std::min(left, absl::Milliseconds(500));
        OVPRESS_ASSIGN_OR_RETURN(
            const JobView view,
            options_.manager->Wait(OwnerOf(context), id, slice));
        left -= slice;
        if (IsFinal(view.record.state) || left <= absl::ZeroDuration()) {
          *response = OperationFromView(view);
          return absl::OkStatus();
        }
        if (context->IsCancelled()) {
          return absl::CancelledError("the client went away");
        }
      }
    };
    return Call(options_, "google.longrunning.Operations/WaitOperation")
        .End(wait());
  }

 private:
  const RpcOptions& options_;
};

// --- ovpress.v1 ---

using StreamStream = grpc::ServerReaderWriter<v1::CompressStreamResponse,
                                              v1::CompressStreamRequest>;

class WeightCompressionService final : public v1::WeightCompression::Service {
 public:
  WeightCompressionService(const RpcOptions& options, Transfers* transfers)
      : options_(options), transfers_(transfers) {}

  grpc::Status GetCapabilities(grpc::ServerContext*,
                               const v1::GetCapabilitiesRequest*,
                               v1::GetCapabilitiesResponse* response) override {
    *response = Capabilities(options_.transfer, options_.store, options_.jobs);
    return Call(options_, "ovpress.v1.WeightCompression/GetCapabilities")
        .End(absl::OkStatus());
  }

  grpc::Status FindMissingBlobs(
      grpc::ServerContext* context, const v1::FindMissingBlobsRequest* request,
      v1::FindMissingBlobsResponse* response) override {
    const auto find = [&]() -> absl::Status {
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
          options_.blobs->FindMissing(OwnerOf(context), refs));
      for (const BlobRef& ref : missing) {
        RefToProto(ref, response->add_missing_blobs());
      }
      return absl::OkStatus();
    };
    return Call(options_, "ovpress.v1.WeightCompression/FindMissingBlobs")
        .End(find());
  }

  grpc::Status EstimateCompression(
      grpc::ServerContext* context,
      const v1::EstimateCompressionRequest* request,
      v1::EstimateCompressionResponse* response) override {
    const auto estimate = [&]() -> absl::Status {
      std::string xml = request->xml();
      if (xml.size() > options_.transfer.max_inline_xml_bytes) {
        return absl::InvalidArgumentError(absl::StrCat(
            "xml of ", xml.size(), " bytes in the message, at most ",
            options_.transfer.max_inline_xml_bytes, "; upload it as a blob"));
      }
      if (request->has_xml_blob()) {
        const BlobRef ref = RefFromProto(request->xml_blob());
        OVPRESS_RETURN_IF_ERROR(ValidateBlobRef(ref));
        OVPRESS_ASSIGN_OR_RETURN(xml,
                                 ReadBlob(options_.blobs, OwnerOf(context), ref,
                                          options_.jobs.max_xml_bytes));
      }
      OVPRESS_ASSIGN_OR_RETURN(const CompressionOptions options,
                               OptionsFromProto(request->options()));
      OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<Compression> compression,
                               Compression::Create(std::move(xml), options));
      const int64_t budget = request->settings().memory_budget_bytes();
      *response = EstimateToProto(
          *compression,
          budget > 0 ? static_cast<uint64_t>(budget)
                     : options_.jobs.default_job_memory_bytes,
          request->summary_only(), options_.transfer.max_plan_entries);
      return absl::OkStatus();
    };
    return Call(options_, "ovpress.v1.WeightCompression/EstimateCompression")
        .End(estimate());
  }

  grpc::Status CompressModel(grpc::ServerContext* context,
                             const v1::CompressModelRequest* request,
                             lro::Operation* response) override {
    const auto submit = [&]() -> absl::Status {
      OVPRESS_ASSIGN_OR_RETURN(const JobSpec spec,
                               SpecFromProto(*request, OwnerOf(context)));
      OVPRESS_ASSIGN_OR_RETURN(
          const JobView view,
          options_.manager->Submit(spec, request->validate_only()));
      *response = OperationFromView(view);
      return absl::OkStatus();
    };
    return Call(options_, "ovpress.v1.WeightCompression/CompressModel")
        .End(submit());
  }

  grpc::Status WatchOperation(
      grpc::ServerContext* context, const v1::WatchOperationRequest* request,
      grpc::ServerWriter<lro::Operation>* writer) override {
    return Call(options_, "ovpress.v1.WeightCompression/WatchOperation")
        .End(DoWatch(context, request->name(), writer));
  }

  grpc::Status CompressStream(grpc::ServerContext* context,
                              StreamStream* stream) override {
    return Call(options_, "ovpress.v1.WeightCompression/CompressStream")
        .End(DoStream(context, stream));
  }

 private:
  absl::Status DoWatch(grpc::ServerContext* context, const std::string& name,
                       grpc::ServerWriter<lro::Operation>* writer) {
    OVPRESS_ASSIGN_OR_RETURN(const std::string id, JobIdOf(name));
    if (options_.manager->Stats().watchers >=
        options_.transfer.max_watchers_per_owner) {
      return LimitError("too many watchers",
                        {.limit = "max_watchers_per_owner",
                         .subject = "server",
                         .limit_value = static_cast<uint64_t>(
                             options_.transfer.max_watchers_per_owner),
                         .retry_after = absl::Seconds(5)});
    }
    // Only the latest state is kept for a watcher that reads slowly.
    struct Latest {
      Mutex mutex;
      CondVar changed;
      std::optional<absl::StatusOr<JobView>> view;
    };
    const auto latest = std::make_shared<Latest>();
    OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ovpress::Watch> watch,
                             options_.manager->Subscribe(
                                 OwnerOf(context), id,
                                 [latest](const absl::StatusOr<JobView>& view) {
                                   MutexLock lock(&latest->mutex);
                                   latest->view = view;
                                   latest->changed.SignalAll();
                                 }));
    while (!context->IsCancelled()) {
      std::optional<absl::StatusOr<JobView>> view;
      {
        MutexLock lock(&latest->mutex);
        if (!latest->view.has_value()) {
          latest->changed.WaitUntil(
              &latest->mutex, Steady::now() + std::chrono::milliseconds(500));
        }
        view.swap(latest->view);
      }
      if (!view.has_value()) continue;
      OVPRESS_RETURN_IF_ERROR(view->status());
      const lro::Operation operation = OperationFromView(**view);
      if (!writer->Write(operation)) break;
      if (operation.done()) return absl::OkStatus();
    }
    return absl::CancelledError("the client went away");
  }

  absl::Status DoStream(grpc::ServerContext* context, StreamStream* stream);

  const RpcOptions& options_;
  Transfers* const transfers_;
};

// Where the bytes of a stream stand; the handler's thread receives, a second
// one compresses and sends, so a client that does not read stops only itself.
struct StreamState {
  Mutex mutex;
  CondVar arrived;
  uint64_t available ABSL_GUARDED_BY(mutex) = 0;
  bool broken ABSL_GUARDED_BY(mutex) = false;
  std::atomic<bool> stop{false};
  absl::Status sender_status;  // after the sender's thread ended
};

absl::Status WeightCompressionService::DoStream(grpc::ServerContext* context,
                                                StreamStream* stream) {
  const std::string owner = OwnerOf(context);
  OVPRESS_ASSIGN_OR_RETURN(Transfers::Handle transfer,
                           transfers_->Open(context, owner));
  v1::CompressStreamRequest request;
  if (!stream->Read(&request) || !request.has_open()) {
    return absl::InvalidArgumentError("the first message must be open");
  }
  const v1::CompressStreamOpen open = request.open();
  if (open.xml_size() <= 0 ||
      static_cast<uint64_t>(open.xml_size()) > options_.jobs.max_xml_bytes ||
      open.bin_size() < 0 ||
      static_cast<uint64_t>(open.bin_size()) > options_.store.max_blob_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("xml_size must be 1 to ", options_.jobs.max_xml_bytes,
                     ", bin_size 0 to ", options_.store.max_blob_bytes));
  }
  if (open.settings().memory_budget_bytes() < 0) {
    return absl::InvalidArgumentError(
        "settings.memory_budget_bytes must not be negative");
  }
  const auto xml_size = static_cast<uint64_t>(open.xml_size());
  const auto bin_size = static_cast<uint64_t>(open.bin_size());
  OVPRESS_ASSIGN_OR_RETURN(const CompressionOptions options,
                           OptionsFromProto(open.options()));
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<StreamSlot> slot,
                           options_.manager->OpenStream(
                               {.owner = owner,
                                .priority = open.priority(),
                                .memory_budget_bytes = static_cast<uint64_t>(
                                    open.settings().memory_budget_bytes())}));
  const auto chunk_ok = [this](const std::string& chunk) -> absl::Status {
    if (chunk.size() <= options_.transfer.max_chunk_bytes) {
      return absl::OkStatus();
    }
    return absl::InvalidArgumentError(
        absl::StrCat("a chunk of ", chunk.size(), " bytes, at most ",
                     options_.transfer.max_chunk_bytes));
  };
  std::string xml;
  while (xml.size() < xml_size) {
    if (!stream->Read(&request)) return transfer.Broken();
    transfer.Touch();
    if (!request.has_xml_chunk() ||
        request.xml_chunk().size() > xml_size - xml.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "expected xml_chunk messages of ", xml_size, " bytes in all"));
    }
    OVPRESS_RETURN_IF_ERROR(chunk_ok(request.xml_chunk()));
    xml += request.xml_chunk();
  }
  options_.metrics->OnTransferBytes(true, xml.size());
  if (!open.xml_sha256().empty() && Sha256Hex(xml) != open.xml_sha256()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the .xml has SHA-256 ", Sha256Hex(xml), ", open says ",
                     open.xml_sha256().substr(0, 80)));
  }
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<Compression> compression,
                           Compression::Create(std::move(xml), options));
  OVPRESS_RETURN_IF_ERROR(compression->model().CheckConstantRanges(bin_size));
  const Estimate sizes = compression->EstimateSizes();
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ScratchBlob> in,
                           options_.blobs->CreateScratch(owner, bin_size));
  OVPRESS_ASSIGN_OR_RETURN(
      const std::unique_ptr<ScratchBlob> out,
      options_.blobs->CreateScratch(owner, sizes.output_bin_bytes_max));
  v1::CompressStreamResponse first;
  v1::CompressStreamPlan* plan = first.mutable_plan();
  plan->set_weight_count(static_cast<int64_t>(sizes.weights.size()));
  plan->set_output_bin_bytes_min(
      static_cast<int64_t>(sizes.output_bin_bytes_min));
  plan->set_output_bin_bytes_max(
      static_cast<int64_t>(sizes.output_bin_bytes_max));
  plan->set_peak_memory_bytes(static_cast<int64_t>(sizes.peak_memory_bytes));
  plan->set_reads_weights_twice(sizes.reads_weights_twice);
  if (!stream->Write(first)) return transfer.Broken();

  StreamState state;
  RunOptions run;
  run.executor = slot->executor();
  run.memory_budget_bytes = slot->memory_budget_bytes();
  run.stop = &state.stop;
  run.measure_error = open.settings().measure_error();
  const auto send_all = [&]() -> absl::Status {
    const uint64_t chunk = options_.transfer.chunk_bytes;
    v1::CompressStreamResponse response;
    const auto send = [&](uint64_t bytes) {
      if (!stream->Write(response)) return transfer.Broken();
      transfer.Touch();
      options_.metrics->OnTransferBytes(false, bytes);
      return absl::OkStatus();
    };
    const auto send_text = [&](const std::string& text, bool is_xml) {
      for (size_t at = 0; at < text.size(); at += chunk) {
        const std::string part = text.substr(at, chunk);
        if (is_xml) {
          response.set_xml_chunk(part);
        } else {
          response.set_report_chunk(part);
        }
        OVPRESS_RETURN_IF_ERROR(send(part.size()));
      }
      return absl::OkStatus();
    };
    const auto wait_for = [&](uint64_t more_than) -> absl::StatusOr<uint64_t> {
      MutexLock lock(&state.mutex);
      while (state.available <= more_than && state.available < bin_size &&
             !state.broken) {
        state.arrived.Wait(&state.mutex);
      }
      if (state.broken) return transfer.Broken();
      return state.available;
    };
    if (compression->needs_scores()) {
      uint64_t available = 0;
      while (available < bin_size) {
        OVPRESS_ASSIGN_OR_RETURN(available, wait_for(available));
      }
      OVPRESS_RETURN_IF_ERROR(compression->ComputeScores(*in, run));
    }
    const std::string out_xml = compression->OutputXml();
    OVPRESS_RETURN_IF_ERROR(send_text(out_xml, true));
    Sha256Hasher hasher;
    uint64_t sent = 0;
    uint64_t available = 0;
    do {
      OVPRESS_ASSIGN_OR_RETURN(available, wait_for(available));
      OVPRESS_RETURN_IF_ERROR(
          compression->RunAvailable(*in, available, *out, run));
      const uint64_t ready = available == bin_size
                                 ? compression->output_bin_bytes()
                                 : compression->output_prefix_bytes();
      while (sent < ready) {
        std::string& data = *response.mutable_bin_chunk();
        data.resize(std::min(chunk, ready - sent));
        OVPRESS_RETURN_IF_ERROR(out->ReadAt(sent, AsWritableBytes(data)));
        hasher.Update(AsBytes(data));
        sent += data.size();
        OVPRESS_RETURN_IF_ERROR(send(data.size()));
      }
    } while (available < bin_size);
    const Report report = compression->report();
    OVPRESS_RETURN_IF_ERROR(send_text(report.ToJson(), false));
    v1::CompressStreamResult* result = response.mutable_result();
    RefToProto(BlobRefOf(out_xml), result->mutable_model()->mutable_xml());
    RefToProto({.sha256 = hasher.FinishHex(), .size_bytes = sent},
               result->mutable_model()->mutable_bin());
    result->set_bin_bytes_before(static_cast<int64_t>(report.bin_bytes_before));
    result->set_bin_bytes_after(static_cast<int64_t>(report.bin_bytes_after));
    result->set_bits_per_weight(report.bits_per_weight);
    result->set_engine_version(std::string(EngineVersion()));
    return send(0);
  };
  std::thread sender([&] {
    state.sender_status = send_all();
    if (!state.sender_status.ok()) state.stop = true;
  });
  absl::Status received;
  Sha256Hasher hasher;
  uint64_t at = 0;
  while (at < bin_size && !state.stop && received.ok()) {
    if (slot->stop()->load()) {
      received = DrainingError(options_.jobs.default_retry_after);
    } else if (!stream->Read(&request)) {
      received = transfer.Broken();
    } else if (!request.has_bin_chunk() ||
               request.bin_chunk().size() > bin_size - at) {
      received = absl::InvalidArgumentError(absl::StrCat(
          "expected bin_chunk messages of ", bin_size, " bytes in all"));
    } else {
      transfer.Touch();
      received = chunk_ok(request.bin_chunk());
      if (received.ok()) {
        received = in->WriteAt(at, AsBytes(request.bin_chunk()));
      }
      if (!open.bin_sha256().empty())
        hasher.Update(AsBytes(request.bin_chunk()));
      at += request.bin_chunk().size();
      options_.metrics->OnTransferBytes(true, request.bin_chunk().size());
    }
    if (received.ok() && at == bin_size && !open.bin_sha256().empty()) {
      const std::string digest = hasher.FinishHex();
      if (digest != open.bin_sha256()) {
        received = absl::InvalidArgumentError(absl::StrCat(
            "the .bin has SHA-256 ", digest, ", open says ",
            open.bin_sha256().substr(0, 80), "; drop what was received"));
      }
    }
    MutexLock lock(&state.mutex);
    state.available = received.ok() ? at : state.available;
    state.broken = !received.ok();
    state.arrived.SignalAll();
  }
  if (!received.ok()) state.stop = true;
  sender.join();
  OVPRESS_RETURN_IF_ERROR(received);
  return state.sender_status;
}

class RpcServicesImpl final : public RpcServices {
 public:
  explicit RpcServicesImpl(RpcOptions options)
      : options_(std::move(options)),
        transfers_(options_.transfer, options_.metrics),
        byte_stream_(options_, &transfers_),
        operations_(options_),
        compression_(options_, &transfers_) {}
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
  ByteStreamService byte_stream_;
  OperationsService operations_;
  WeightCompressionService compression_;
};

}  // namespace

std::unique_ptr<RpcServices> RpcServices::Create(RpcOptions options) {
  return std::make_unique<RpcServicesImpl>(std::move(options));
}

}  // namespace ovpress
