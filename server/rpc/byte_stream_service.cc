#include "server/rpc/byte_stream_service.h"

#include <algorithm>
#include <memory>
#include <string>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "server/jobs/blob_store.h"
#include "server/rpc/call.h"

namespace ovpress {
namespace {

namespace bs = google::bytestream;

// One message of a Write, whatever the upload's state.
absl::Status CheckWriteRequest(const bs::WriteRequest& request,
                               const std::string& first_name,
                               uint64_t max_chunk_bytes) {
  if (!request.resource_name().empty() &&
      request.resource_name() != first_name) {
    return absl::InvalidArgumentError(
        "resource_name changed in the middle of a Write");
  }
  if (request.write_offset() < 0) {
    return absl::OutOfRangeError("write_offset must not be negative");
  }
  if (request.data().size() > max_chunk_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("data of ", request.data().size(),
                     " bytes in one message, at most ", max_chunk_bytes));
  }
  return absl::OkStatus();
}

struct Range {
  uint64_t begin = 0;
  uint64_t size_bytes = 0;
};

absl::StatusOr<Range> RangeOf(const bs::ReadRequest& request,
                              uint64_t blob_bytes) {
  if (request.read_offset() < 0 ||
      static_cast<uint64_t>(request.read_offset()) > blob_bytes) {
    return absl::OutOfRangeError(
        absl::StrCat("read_offset ", request.read_offset(),
                     " must be from 0 to ", blob_bytes));
  }
  if (request.read_limit() < 0) {
    return absl::InvalidArgumentError("read_limit must not be negative");
  }
  Range range{.begin = static_cast<uint64_t>(request.read_offset())};
  range.size_bytes = blob_bytes - range.begin;
  if (request.read_limit() > 0) {
    range.size_bytes =
        std::min(range.size_bytes, static_cast<uint64_t>(request.read_limit()));
  }
  return range;
}

}  // namespace

ByteStreamService::ByteStreamService(const RpcOptions& options,
                                     Transfers* transfers)
    : options_(options), transfers_(transfers) {
  const int index = bs::ReadRequest::descriptor()
                        ->file()
                        ->FindServiceByName("ByteStream")
                        ->FindMethodByName("Read")
                        ->index();
  MarkMethodStreamed(
      index,
      new grpc::internal::BidiStreamingHandler<
          ByteStreamService, bs::ReadRequest,
          BulkMessage<bs::ReadResponse, bs::ReadResponse::kDataFieldNumber>>(
          [](ByteStreamService* service, grpc::ServerContext* context,
             ReadStream* stream) { return service->BulkRead(context, stream); },
          this));
}

grpc::Status ByteStreamService::Write(
    grpc::ServerContext* context, grpc::ServerReader<bs::WriteRequest>* reader,
    bs::WriteResponse* response) {
  return RunCall(options_,
                 {"google.bytestream.ByteStream/Write", Scope::kSubmit},
                 *context, [&](const Caller& caller) {
                   return DoWrite(caller, context, reader, response);
                 });
}

grpc::Status ByteStreamService::BulkRead(grpc::ServerContext* context,
                                         ReadStream* stream) {
  return RunCall(
      options_, {"google.bytestream.ByteStream/Read", Scope::kRead}, *context,
      [&](const Caller& caller) { return DoRead(caller, context, stream); });
}

grpc::Status ByteStreamService::QueryWriteStatus(
    grpc::ServerContext* context, const bs::QueryWriteStatusRequest* request,
    bs::QueryWriteStatusResponse* response) {
  return RunCall(
      options_,
      {"google.bytestream.ByteStream/QueryWriteStatus", Scope::kSubmit},
      *context, [&](const Caller& caller) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(const UploadName name,
                                 ParseUploadName(request->resource_name()));
        OVPRESS_ASSIGN_OR_RETURN(
            const UploadStatus status,
            options_.blobs->QueryUpload(caller.identity, name));
        response->set_committed_size(
            static_cast<int64_t>(status.committed_bytes));
        response->set_complete(status.complete);
        return absl::OkStatus();
      });
}

absl::Status ByteStreamService::DoWrite(
    const Caller& caller, grpc::ServerContext* context,
    grpc::ServerReader<bs::WriteRequest>* reader, bs::WriteResponse* response) {
  OVPRESS_ASSIGN_OR_RETURN(Transfers::Handle transfer,
                           transfers_->Open(context, caller.identity));
  bs::WriteRequest request;
  if (!reader->Read(&request)) {
    return absl::InvalidArgumentError("a Write without any message");
  }
  const std::string first_name = request.resource_name();
  OVPRESS_ASSIGN_OR_RETURN(const UploadName name, ParseUploadName(first_name));
  OVPRESS_ASSIGN_OR_RETURN(BlobStore::OpenedUpload upload,
                           options_.blobs->OpenUpload(caller.identity, name));
  if (upload.already_exists) {
    response->set_committed_size(static_cast<int64_t>(name.ref.size_bytes));
    return absl::OkStatus();
  }
  do {
    transfer.Touch();
    OVPRESS_RETURN_IF_ERROR(CheckWriteRequest(
        request, first_name, options_.transfer.max_chunk_bytes));
    const auto data =
        std::make_shared<const std::string>(std::move(*request.mutable_data()));
    OVPRESS_RETURN_IF_ERROR(upload.writer->AppendShared(
        static_cast<uint64_t>(request.write_offset()), AsBytes(*data), data));
    options_.metrics->OnTransferBytes(true, data->size());
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

absl::Status ByteStreamService::DoRead(const Caller& caller,
                                       grpc::ServerContext* context,
                                       ReadStream* stream) {
  bs::ReadRequest request;
  if (!stream->Read(&request)) {
    return absl::InvalidArgumentError("a Read without a request");
  }
  OVPRESS_ASSIGN_OR_RETURN(const BlobRef ref,
                           ParseBlobName(request.resource_name()));
  OVPRESS_ASSIGN_OR_RETURN(Transfers::Handle transfer,
                           transfers_->Open(context, caller.identity));
  OVPRESS_ASSIGN_OR_RETURN(
      const std::unique_ptr<ByteSource> source,
      caller.is_admin() ? options_.blobs->OpenReadAny(ref)
                        : options_.blobs->OpenRead(caller.identity, ref));
  OVPRESS_ASSIGN_OR_RETURN(Range left, RangeOf(request, ref.size_bytes));
  while (left.size_bytes > 0) {
    const uint64_t size =
        std::min(left.size_bytes, options_.transfer.chunk_bytes);
    // gRPC sends from this very memory and frees it.
    auto* const data = new std::byte[size];
    BulkMessage<bs::ReadResponse, bs::ReadResponse::kDataFieldNumber> response;
    response.has_data = true;
    response.data.Append(grpc::Slice(
        data, size, [](void* done) { delete[] static_cast<std::byte*>(done); },
        data));
    OVPRESS_RETURN_IF_ERROR(
        source->ReadAt(left.begin, std::span<std::byte>(data, size)));
    if (!stream->Write(response)) return transfer.Broken();
    transfer.Touch();
    options_.metrics->OnTransferBytes(false, size);
    left.begin += size;
    left.size_bytes -= size;
  }
  return absl::OkStatus();
}

}  // namespace ovpress
