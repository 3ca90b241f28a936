#include "server/rpc/compress_stream.h"

#include <algorithm>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "server/jobs/errors.h"
#include "server/rpc/convert.h"

namespace ovpress {

CompressStream::CompressStream(Args args)
    : options_(*args.options),
      transfer_(*args.transfer),
      stream_(*args.stream),
      owner_(std::move(args.owner)) {}

absl::Status CompressStream::Run() {
  OVPRESS_RETURN_IF_ERROR(ReceiveOpen());
  OVPRESS_RETURN_IF_ERROR(OpenSlot());
  OVPRESS_RETURN_IF_ERROR(ReceiveXml());
  OVPRESS_RETURN_IF_ERROR(MakePlan());
  OVPRESS_RETURN_IF_ERROR(SendPlan());
  absl::Status sent;
  std::thread sender([&] {
    sent = CompressAndSend();
    if (!sent.ok()) stop_ = true;
  });
  const absl::Status received = ReceiveBin();
  if (!received.ok()) stop_ = true;
  sender.join();
  OVPRESS_RETURN_IF_ERROR(received);
  return sent;
}

absl::Status CompressStream::ReceiveOpen() {
  if (!stream_.Read(&request_) || !request_.has_open()) {
    return absl::InvalidArgumentError("the first message must be open");
  }
  open_ = request_.open();
  if (open_.xml_size() <= 0 ||
      static_cast<uint64_t>(open_.xml_size()) > options_.jobs.max_xml_bytes ||
      open_.bin_size() < 0 ||
      static_cast<uint64_t>(open_.bin_size()) > options_.store.max_blob_bytes) {
    return absl::InvalidArgumentError(
        absl::StrCat("xml_size must be 1 to ", options_.jobs.max_xml_bytes,
                     ", bin_size 0 to ", options_.store.max_blob_bytes));
  }
  if (open_.settings().memory_budget_bytes() < 0) {
    return absl::InvalidArgumentError(
        "settings.memory_budget_bytes must not be negative");
  }
  xml_size_ = static_cast<uint64_t>(open_.xml_size());
  bin_size_ = static_cast<uint64_t>(open_.bin_size());
  OVPRESS_ASSIGN_OR_RETURN(compression_options_,
                           OptionsFromProto(open_.options()));
  return absl::OkStatus();
}

absl::Status CompressStream::OpenSlot() {
  OVPRESS_ASSIGN_OR_RETURN(slot_,
                           options_.manager->OpenStream(
                               {.owner = owner_,
                                .priority = open_.priority(),
                                .memory_budget_bytes = static_cast<uint64_t>(
                                    open_.settings().memory_budget_bytes())}));
  return absl::OkStatus();
}

absl::Status CompressStream::CheckChunkSize(const std::string& chunk) const {
  if (chunk.size() <= options_.transfer.max_chunk_bytes) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(
      absl::StrCat("a chunk of ", chunk.size(), " bytes, at most ",
                   options_.transfer.max_chunk_bytes));
}

absl::Status CompressStream::ReceiveXml() {
  while (xml_.size() < xml_size_) {
    if (!stream_.Read(&request_)) return transfer_.Broken();
    transfer_.Touch();
    if (!request_.has_xml_chunk() ||
        request_.xml_chunk().size() > xml_size_ - xml_.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "expected xml_chunk messages of ", xml_size_, " bytes in all"));
    }
    OVPRESS_RETURN_IF_ERROR(CheckChunkSize(request_.xml_chunk()));
    xml_ += request_.xml_chunk();
  }
  options_.metrics->OnTransferBytes(true, xml_.size());
  if (!open_.xml_sha256().empty() && Sha256Hex(xml_) != open_.xml_sha256()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the .xml has SHA-256 ", Sha256Hex(xml_), ", open says ",
                     open_.xml_sha256().substr(0, 80)));
  }
  return absl::OkStatus();
}

absl::Status CompressStream::MakePlan() {
  OVPRESS_ASSIGN_OR_RETURN(
      compression_, Compression::Create(std::move(xml_), compression_options_));
  OVPRESS_RETURN_IF_ERROR(compression_->model().CheckConstantRanges(bin_size_));
  OVPRESS_ASSIGN_OR_RETURN(in_,
                           options_.blobs->CreateScratch(owner_, bin_size_));
  OVPRESS_ASSIGN_OR_RETURN(
      out_, options_.blobs->CreateScratch(
                owner_, compression_->EstimateSizes().output_bin_bytes_max));
  run_.executor = slot_->executor();
  run_.memory_budget_bytes = slot_->memory_budget_bytes();
  run_.stop = &stop_;
  run_.measure_error = open_.settings().measure_error();
  return absl::OkStatus();
}

absl::Status CompressStream::SendPlan() {
  const Estimate sizes = compression_->EstimateSizes();
  v1::CompressStreamPlan* plan = response_.mutable_plan();
  plan->set_weight_count(static_cast<int64_t>(sizes.weights.size()));
  plan->set_output_bin_bytes_min(
      static_cast<int64_t>(sizes.output_bin_bytes_min));
  plan->set_output_bin_bytes_max(
      static_cast<int64_t>(sizes.output_bin_bytes_max));
  plan->set_peak_memory_bytes(static_cast<int64_t>(sizes.peak_memory_bytes));
  plan->set_reads_weights_twice(sizes.reads_weights_twice);
  return stream_.Write(response_) ? absl::OkStatus() : transfer_.Broken();
}

absl::Status CompressStream::ReceiveBin() {
  absl::Status received;
  while (received_ < bin_size_ && !stop_ && received.ok()) {
    received = ReceiveBinChunk();
    if (received.ok() && received_ == bin_size_) received = CheckBinDigest();
    Announce(received);
  }
  return received;
}

absl::Status CompressStream::ReceiveBinChunk() {
  if (slot_->stop()->load()) {
    return DrainingError(options_.jobs.default_retry_after);
  }
  if (!stream_.Read(&request_)) return transfer_.Broken();
  const std::string& chunk = request_.bin_chunk();
  if (!request_.has_bin_chunk() || chunk.size() > bin_size_ - received_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected bin_chunk messages of ", bin_size_, " bytes in all"));
  }
  transfer_.Touch();
  OVPRESS_RETURN_IF_ERROR(CheckChunkSize(chunk));
  OVPRESS_RETURN_IF_ERROR(in_->WriteAt(received_, AsBytes(chunk)));
  if (!open_.bin_sha256().empty()) in_hasher_.Update(AsBytes(chunk));
  received_ += chunk.size();
  options_.metrics->OnTransferBytes(true, chunk.size());
  return absl::OkStatus();
}

absl::Status CompressStream::CheckBinDigest() {
  if (open_.bin_sha256().empty()) return absl::OkStatus();
  const std::string digest = in_hasher_.FinishHex();
  if (digest == open_.bin_sha256()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(
      "the .bin has SHA-256 ", digest, ", open says ",
      open_.bin_sha256().substr(0, 80), "; drop what was received"));
}

void CompressStream::Announce(const absl::Status& received) {
  MutexLock lock(&mutex_);
  if (received.ok()) {
    available_ = received_;
  } else {
    broken_ = true;
  }
  arrived_.SignalAll();
}

absl::StatusOr<uint64_t> CompressStream::WaitForMoreThan(uint64_t bytes) {
  MutexLock lock(&mutex_);
  while (available_ <= bytes && available_ < bin_size_ && !broken_) {
    arrived_.Wait(&mutex_);
  }
  if (broken_) return transfer_.Broken();
  return available_;
}

absl::Status CompressStream::CompressAndSend() {
  if (compression_->needs_scores()) OVPRESS_RETURN_IF_ERROR(Score());
  out_xml_ = compression_->OutputXml();
  OVPRESS_RETURN_IF_ERROR(SendText(out_xml_, /*is_xml=*/true));
  OVPRESS_RETURN_IF_ERROR(SendBin());
  return SendReportAndResult();
}

absl::Status CompressStream::Score() {
  uint64_t available = 0;
  while (available < bin_size_) {
    OVPRESS_ASSIGN_OR_RETURN(available, WaitForMoreThan(available));
  }
  return compression_->ComputeScores(*in_, run_);
}

absl::Status CompressStream::SendText(const std::string& text, bool is_xml) {
  const uint64_t chunk = options_.transfer.chunk_bytes;
  for (size_t at = 0; at < text.size(); at += chunk) {
    const std::string part = text.substr(at, chunk);
    if (is_xml) {
      response_.set_xml_chunk(part);
    } else {
      response_.set_report_chunk(part);
    }
    OVPRESS_RETURN_IF_ERROR(Send(part.size()));
  }
  return absl::OkStatus();
}

absl::Status CompressStream::SendBin() {
  uint64_t available = 0;
  do {
    OVPRESS_ASSIGN_OR_RETURN(available, WaitForMoreThan(available));
    OVPRESS_RETURN_IF_ERROR(
        compression_->RunAvailable(*in_, available, *out_, run_));
    const uint64_t ready = available == bin_size_
                               ? compression_->output_bin_bytes()
                               : compression_->output_prefix_bytes();
    while (sent_ < ready) {
      std::string& data = *response_.mutable_bin_chunk();
      data.resize(std::min(options_.transfer.chunk_bytes, ready - sent_));
      OVPRESS_RETURN_IF_ERROR(out_->ReadAt(sent_, AsWritableBytes(data)));
      out_hasher_.Update(AsBytes(data));
      sent_ += data.size();
      OVPRESS_RETURN_IF_ERROR(Send(data.size()));
    }
  } while (available < bin_size_);
  return absl::OkStatus();
}

absl::Status CompressStream::SendReportAndResult() {
  const Report report = compression_->report();
  OVPRESS_RETURN_IF_ERROR(SendText(report.ToJson(), /*is_xml=*/false));
  v1::CompressStreamResult* result = response_.mutable_result();
  RefToProto(BlobRefOf(out_xml_), result->mutable_model()->mutable_xml());
  RefToProto({.sha256 = out_hasher_.FinishHex(), .size_bytes = sent_},
             result->mutable_model()->mutable_bin());
  result->set_bin_bytes_before(static_cast<int64_t>(report.bin_bytes_before));
  result->set_bin_bytes_after(static_cast<int64_t>(report.bin_bytes_after));
  result->set_bits_per_weight(report.bits_per_weight);
  result->set_engine_version(std::string(EngineVersion()));
  return Send(0);
}

absl::Status CompressStream::Send(uint64_t bytes) {
  if (!stream_.Write(response_)) return transfer_.Broken();
  transfer_.Touch();
  options_.metrics->OnTransferBytes(false, bytes);
  return absl::OkStatus();
}

}  // namespace ovpress
