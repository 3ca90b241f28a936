#include "server/rpc/compress_stream.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"
#include "server/jobs/digest.h"
#include "server/jobs/errors.h"
#include "server/rpc/convert.h"

namespace ovpress {
namespace {

// Memory of one spool: enough for the messages that arrive while a step of the
// engine runs; more would only hide a slow reader for longer.
constexpr uint64_t kSpoolBytesMax = 16ull << 20;
// Each spool takes at most this part of the call's memory budget.
constexpr uint64_t kSpoolShare = 8;
// Input that the engine takes in one step when all of it is there already, so
// that output leaves in between.
constexpr uint64_t kStepBytes = 8ull << 20;
constexpr auto kProgressInterval = std::chrono::seconds(1);

void HashSlice(const grpc::Slice& slice, HashThread* hash) {
  auto kept = std::make_shared<const grpc::Slice>(slice);
  const std::span<const uint8_t> bytes(kept->begin(), kept->size());
  hash->Update(std::as_bytes(bytes), std::move(kept));
}

}  // namespace

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
  if (bin_size_ == 0) OVPRESS_RETURN_IF_ERROR(CheckBinDigest());
  absl::Status sent;
  std::thread sender([&] {
    sent = CompressAndSend();
    if (!sent.ok()) stop_ = true;
    MutexLock lock(&mutex_);
    sender_done_ = true;
    changed_.SignalAll();
  });
  const absl::Status received = ReceiveBin();
  if (received.ok()) {
    SendProgressUntilDone();
  } else {
    stop_ = true;
  }
  sender.join();
  OVPRESS_RETURN_IF_ERROR(received);
  if (!sent.ok() && slot_->stop()->load()) {
    return DrainingError(options_.jobs.default_retry_after);
  }
  return sent;
}

absl::Status CompressStream::ReceiveOpen() {
  if (!stream_.Read(&request_) || !request_.rest.has_open()) {
    return absl::InvalidArgumentError("the first message must be open");
  }
  open_ = request_.rest.open();
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
  const uint64_t budget = slot_->memory_budget_bytes();
  spool_memory_bytes_ = std::min(kSpoolBytesMax, budget / kSpoolShare);
  run_.executor = slot_->executor();
  run_.memory_budget_bytes = budget - 2 * spool_memory_bytes_;
  run_.stop = &stop_;
  run_.measure_error = open_.settings().measure_error();
  // A long step without a byte on the wire is no idleness.
  run_.progress = [this](const Progress& progress) {
    transfer_.Touch();
    MutexLock lock(&mutex_);
    progress_ = progress;
  };
  return absl::OkStatus();
}

absl::Status CompressStream::CheckChunkSize(size_t size) const {
  if (size <= options_.transfer.max_chunk_bytes) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat("a chunk of ", size, " bytes, at most ",
                   options_.transfer.max_chunk_bytes));
}

absl::Status CompressStream::ReceiveXml() {
  while (xml_.size() < xml_size_) {
    if (!stream_.Read(&request_)) return transfer_.Broken();
    transfer_.Touch();
    const std::string& chunk = request_.rest.xml_chunk();
    if (!request_.rest.has_xml_chunk() ||
        chunk.size() > xml_size_ - xml_.size()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "expected xml_chunk messages of ", xml_size_, " bytes in all"));
    }
    OVPRESS_RETURN_IF_ERROR(CheckChunkSize(chunk.size()));
    xml_ += chunk;
  }
  options_.metrics->OnTransferBytes(true, xml_.size());
  const BlobRef ref = BlobRefOf(xml_);
  RefToProto(ref, received_model_.mutable_xml());
  if (!open_.xml_sha256().empty() && ref.sha256 != open_.xml_sha256()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the .xml has SHA-256 ", ref.sha256, ", open says ",
                     open_.xml_sha256().substr(0, 80)));
  }
  return absl::OkStatus();
}

std::unique_ptr<Spool> CompressStream::MakeSpool(uint64_t size_bytes) const {
  return std::make_unique<Spool>(
      Spool::Args{.size_bytes = size_bytes,
                  .memory_bytes = spool_memory_bytes_,
                  .make_scratch = [this, size_bytes] {
                    return options_.blobs->CreateScratch(owner_, size_bytes);
                  }});
}

absl::Status CompressStream::MakePlan() {
  OVPRESS_ASSIGN_OR_RETURN(
      compression_, Compression::Create(std::move(xml_), compression_options_));
  OVPRESS_RETURN_IF_ERROR(compression_->model().CheckConstantRanges(bin_size_));
  in_ = MakeSpool(bin_size_);
  if (compression_->needs_scores() && bin_size_ > spool_memory_bytes_) {
    OVPRESS_RETURN_IF_ERROR(in_->ReserveFile());
  }
  return absl::OkStatus();
}

absl::Status CompressStream::SendPlan() {
  const Estimate sizes = compression_->EstimateSizes();
  Response response;
  v1::CompressStreamPlan* plan = response.rest.mutable_plan();
  plan->set_weight_count(static_cast<int64_t>(sizes.weights.size()));
  plan->set_output_bin_bytes_min(
      static_cast<int64_t>(sizes.output_bin_bytes_min));
  plan->set_output_bin_bytes_max(
      static_cast<int64_t>(sizes.output_bin_bytes_max));
  plan->set_peak_memory_bytes(static_cast<int64_t>(sizes.peak_memory_bytes));
  plan->set_reads_weights_twice(sizes.reads_weights_twice);
  return Send(response, 0);
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

void CompressStream::WaitForRoom() {
  MutexLock lock(&mutex_);
  // If the engine cannot go on without more, the file takes it.
  while (in_->memory_full() && !stop_ && !sender_done_ &&
         !(waits_beyond_.has_value() && available_ <= *waits_beyond_)) {
    changed_.Wait(&mutex_);
  }
}

absl::Status CompressStream::ReceiveBinChunk() {
  if (slot_->stop()->load()) {
    return DrainingError(options_.jobs.default_retry_after);
  }
  WaitForRoom();
  if (!stream_.Read(&request_)) return transfer_.Broken();
  const uint64_t size = request_.data.size();
  if (!request_.has_data || size > bin_size_ - received_) {
    return absl::InvalidArgumentError(absl::StrCat(
        "expected bin_chunk messages of ", bin_size_, " bytes in all"));
  }
  transfer_.Touch();
  OVPRESS_RETURN_IF_ERROR(CheckChunkSize(size));
  for (const grpc::Slice& slice : request_.data.slices()) {
    OVPRESS_RETURN_IF_ERROR(in_->WriteAt(
        received_,
        std::as_bytes(std::span<const uint8_t>(slice.begin(), slice.size()))));
    HashSlice(slice, &in_hash_);
    received_ += slice.size();
  }
  options_.metrics->OnTransferBytes(true, size);
  return absl::OkStatus();
}

absl::Status CompressStream::CheckBinDigest() {
  const std::string digest = in_hash_.FinishHex();
  RefToProto({.sha256 = digest, .size_bytes = received_},
             received_model_.mutable_bin());
  if (open_.bin_sha256().empty() || digest == open_.bin_sha256()) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "the .bin has SHA-256 ", digest, ", open says ",
      open_.bin_sha256().substr(0, 80), "; drop what was received"));
}

void CompressStream::SendProgressUntilDone() {
  while (true) {
    Response response;
    {
      MutexLock lock(&mutex_);
      const auto until = std::chrono::steady_clock::now() + kProgressInterval;
      while (!sender_done_ && std::chrono::steady_clock::now() < until) {
        changed_.WaitUntil(&mutex_, until);
      }
      if (sender_done_) return;
      if (slot_->stop()->load()) stop_ = true;
      if (!progress_.has_value()) continue;
      v1::CompressStreamProgress* told = response.rest.mutable_progress();
      told->set_phase(PhaseToProto(PhaseName(progress_->phase)));
      told->set_bytes_done(static_cast<int64_t>(progress_->bytes_done));
      told->set_bytes_total(static_cast<int64_t>(progress_->bytes_total));
      told->set_weights_done(static_cast<int64_t>(progress_->weights_done));
      told->set_weights_total(static_cast<int64_t>(progress_->weights_total));
      progress_.reset();
    }
    // Not counted as movement: the client may not be reading.
    MutexLock lock(&write_mutex_);
    if (!stream_.Write(response)) return;
  }
}

void CompressStream::Announce(const absl::Status& received) {
  MutexLock lock(&mutex_);
  if (received.ok()) {
    available_ = received_;
  } else {
    broken_ = true;
  }
  changed_.SignalAll();
}

absl::StatusOr<uint64_t> CompressStream::WaitForMoreThan(uint64_t bytes) {
  MutexLock lock(&mutex_);
  waits_beyond_ = bytes;
  changed_.SignalAll();
  while (available_ <= bytes && available_ < bin_size_ && !broken_) {
    changed_.Wait(&mutex_);
  }
  waits_beyond_.reset();
  if (broken_) return transfer_.Broken();
  return available_;
}

absl::Status CompressStream::CompressAndSend() {
  if (compression_->needs_scores()) OVPRESS_RETURN_IF_ERROR(Score());
  out_ = MakeSpool(compression_->output_bin_bytes());
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
  Response response;
  for (size_t at = 0; at < text.size(); at += chunk) {
    const std::string part = text.substr(at, chunk);
    if (is_xml) {
      response.rest.set_xml_chunk(part);
    } else {
      response.rest.set_report_chunk(part);
    }
    OVPRESS_RETURN_IF_ERROR(Send(response, part.size()));
  }
  return absl::OkStatus();
}

absl::Status CompressStream::SendBin() {
  uint64_t available = 0;
  uint64_t taken = 0;
  do {
    if (taken == available) {
      OVPRESS_ASSIGN_OR_RETURN(available, WaitForMoreThan(taken));
    }
    taken = std::min(available, taken + kStepBytes);
    OVPRESS_RETURN_IF_ERROR(
        compression_->RunAvailable(*in_, taken, *out_, run_));
    in_->DropBelow(compression_->input_needed_from());
    {
      MutexLock lock(&mutex_);
      changed_.SignalAll();  // there is room
    }
    OVPRESS_RETURN_IF_ERROR(
        SendReady(taken == bin_size_ ? compression_->output_bin_bytes()
                                     : compression_->output_prefix_bytes()));
  } while (taken < bin_size_);
  return absl::OkStatus();
}

absl::Status CompressStream::SendReady(uint64_t ready) {
  const uint64_t all = compression_->output_bin_bytes();
  // Whole blocks but for the last: small messages cost more.
  while (sent_ < ready &&
         (ready == all || ready - sent_ >= Spool::kBlockBytes)) {
    OVPRESS_ASSIGN_OR_RETURN(
        grpc::Slice slice,
        out_->SliceAt(sent_,
                      std::min(options_.transfer.chunk_bytes, ready - sent_)));
    HashSlice(slice, &out_hash_);
    const uint64_t size = slice.size();
    Response response;
    response.has_data = true;
    response.data.Append(std::move(slice));
    OVPRESS_RETURN_IF_ERROR(Send(response, size));
    sent_ += size;
    out_->DropBelow(sent_);
  }
  return absl::OkStatus();
}

absl::Status CompressStream::SendReportAndResult() {
  const Report report = compression_->report();
  OVPRESS_RETURN_IF_ERROR(SendText(report.ToJson(), /*is_xml=*/false));
  Response response;
  v1::CompressStreamResult* result = response.rest.mutable_result();
  RefToProto(BlobRefOf(out_xml_), result->mutable_model()->mutable_xml());
  RefToProto({.sha256 = out_hash_.FinishHex(), .size_bytes = sent_},
             result->mutable_model()->mutable_bin());
  *result->mutable_received() = received_model_;
  result->set_bin_bytes_before(static_cast<int64_t>(report.bin_bytes_before));
  result->set_bin_bytes_after(static_cast<int64_t>(report.bin_bytes_after));
  result->set_bits_per_weight(report.bits_per_weight);
  result->set_engine_version(std::string(EngineVersion()));
  for (const std::string& warning : report.warnings) {
    result->add_warnings(warning);
  }
  return Send(response, 0);
}

absl::Status CompressStream::Send(const Response& response, uint64_t bytes) {
  {
    MutexLock lock(&write_mutex_);
    if (!stream_.Write(response)) return transfer_.Broken();
  }
  transfer_.Touch();
  options_.metrics->OnTransferBytes(false, bytes);
  return absl::OkStatus();
}

}  // namespace ovpress
