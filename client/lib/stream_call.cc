#include "client/lib/stream_call.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

constexpr char kMethod[] = "/ovpress.v1.WeightCompression/CompressStream";
constexpr uint64_t kChunkBytes = 1 << 20;

std::span<const std::byte> BytesOf(const grpc::Slice& slice) {
  return std::as_bytes(std::span<const uint8_t>(slice.begin(), slice.size()));
}

void HashSlice(const grpc::Slice& slice, HashThread* hash) {
  auto kept = std::make_shared<const grpc::Slice>(slice);
  const std::span<const std::byte> bytes = BytesOf(*kept);
  hash->Update(bytes, std::move(kept));
}

}  // namespace

StreamCall::StreamCall(Args args)
    : args_(std::move(args)),
      stream_(OpenBulkStream<Request, Response>(args_.channel, kMethod,
                                                args_.context)) {
  MutexLock lock(&mutex_);
  progress_.send_total = args_.input->bin->size_bytes();
}

absl::StatusOr<Client::StreamOutput> StreamCall::Run() {
  absl::Status send_error;
  std::thread sender([&] {
    send_error = SendAll();
    if (!send_error.ok()) args_.context->TryCancel();
  });
  absl::Status receive_error;
  Response response;
  while (receive_error.ok() && stream_->Read(&response)) {
    args_.moved();
    receive_error = Receive(response);
  }
  if (!receive_error.ok()) args_.context->TryCancel();
  sender.join();
  const grpc::Status end = stream_->Finish();
  OVPRESS_RETURN_IF_ERROR(send_error);
  OVPRESS_RETURN_IF_ERROR(receive_error);
  if (!end.ok()) {
    return absl::Status(static_cast<absl::StatusCode>(end.error_code()),
                        end.error_message());
  }
  OVPRESS_RETURN_IF_ERROR(Check());
  return std::move(output_);
}

absl::Status StreamCall::SendAll() {
  if (SendOpen() && SendXml()) OVPRESS_RETURN_IF_ERROR(SendBin());
  stream_->WritesDone();
  return absl::OkStatus();
}

bool StreamCall::SendOpen() {
  Request request;
  v1::CompressStreamOpen* const open = request.rest.mutable_open();
  *open = args_.input->open;
  open->set_xml_size(static_cast<int64_t>(args_.input->xml.size()));
  open->set_xml_sha256(Sha256Hex(args_.input->xml));
  // The .bin's digest would need a pass over it first; the result tells the one
  // of what arrived.
  open->set_bin_size(static_cast<int64_t>(args_.input->bin->size_bytes()));
  return stream_->Write(request);
}

bool StreamCall::SendXml() {
  const std::string& xml = args_.input->xml;
  Request request;
  for (size_t at = 0; at < xml.size(); at += kChunkBytes) {
    request.rest.set_xml_chunk(xml.substr(at, kChunkBytes));
    if (!stream_->Write(request)) return false;
  }
  return true;
}

absl::Status StreamCall::SendBin() {
  ByteSource& bin = *args_.input->bin;
  const uint64_t size = bin.size_bytes();
  for (uint64_t at = 0; at < size;) {
    const uint64_t part = std::min(kChunkBytes, size - at);
    auto* const data = new std::byte[part];
    grpc::Slice slice(
        data, part, [](void* done) { delete[] static_cast<std::byte*>(done); },
        data);
    OVPRESS_RETURN_IF_ERROR(bin.ReadAt(at, std::span<std::byte>(data, part)));
    HashSlice(slice, &sent_hash_);
    Request request;
    request.has_data = true;
    request.data.Append(std::move(slice));
    if (!stream_->Write(request)) return absl::OkStatus();
    at += part;
    args_.moved();
    Tell([at](Client::StreamProgress& progress) { progress.sent = at; });
  }
  sent_digest_ = sent_hash_.FinishHex();
  sent_all_ = true;
  return absl::OkStatus();
}

absl::Status StreamCall::Receive(const Response& response) {
  if (response.has_data) return ReceiveBin(response.data);
  const v1::CompressStreamResponse& rest = response.rest;
  switch (rest.message_case()) {
    case v1::CompressStreamResponse::kPlan:
      if (rest.plan().output_bin_bytes_min() ==
          rest.plan().output_bin_bytes_max()) {
        Tell([&rest](Client::StreamProgress& progress) {
          progress.receive_total =
              static_cast<uint64_t>(rest.plan().output_bin_bytes_max());
        });
      }
      break;
    case v1::CompressStreamResponse::kProgress:
      Tell([&rest](Client::StreamProgress& progress) {
        progress.server = rest.progress();
      });
      break;
    case v1::CompressStreamResponse::kXmlChunk:
      output_.xml += rest.xml_chunk();
      break;
    case v1::CompressStreamResponse::kReportChunk:
      output_.report += rest.report_chunk();
      break;
    case v1::CompressStreamResponse::kResult:
      output_.result = rest.result();
      has_result_ = true;
      break;
    default:
      break;  // of a newer server
  }
  return absl::OkStatus();
}

absl::Status StreamCall::ReceiveBin(const BulkBytes& data) {
  for (const grpc::Slice& slice : data.slices()) {
    OVPRESS_RETURN_IF_ERROR(args_.out->WriteAt(received_, BytesOf(slice)));
    HashSlice(slice, &received_hash_);
    received_ += slice.size();
  }
  Tell([this](Client::StreamProgress& progress) {
    progress.received = received_;
  });
  return absl::OkStatus();
}

absl::Status StreamCall::Check() {
  if (!has_result_ || !sent_all_) {
    return absl::DataLossError("the stream ended without a result");
  }
  const v1::CompressStreamResult& result = output_.result;
  if (received_hash_.FinishHex() != result.model().bin().sha256() ||
      Sha256Hex(output_.xml) != result.model().xml().sha256()) {
    return absl::DataLossError(
        "the bytes received are not those that the server sent");
  }
  // Empty: a server that does not tell.
  if (result.has_received() &&
      result.received().bin().sha256() != sent_digest_) {
    return absl::DataLossError(
        "the bytes that the server received are not those that were sent");
  }
  return absl::OkStatus();
}

void StreamCall::Tell(
    const std::function<void(Client::StreamProgress&)>& change) {
  MutexLock lock(&mutex_);
  change(progress_);
  args_.progress(progress_);
}

}  // namespace ovpress
