#include "server/rpc/convert.h"

#include <algorithm>

#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/strip.h"
#include "core/base/status_macros.h"
#include "server/jobs/options_json.h"
#include "server/rpc/grpc_status.h"

namespace ovpress {
namespace {

constexpr size_t kCodebookBytesMax = 1 << 20;
constexpr BackupMode kBackupModes[] = {
    BackupMode::kKeepFloat, BackupMode::kInt8Sym, BackupMode::kInt8Asym,
    BackupMode::kMxfp8E4m3, BackupMode::kFp8E4m3};
constexpr GroupSizeFallback kFallbacks[] = {GroupSizeFallback::kError,
                                            GroupSizeFallback::kIgnore,
                                            GroupSizeFallback::kAdjust};

template <typename Range, typename Name>
absl::Status Unknown(absl::string_view what, absl::string_view value,
                     const Range& range, Name name) {
  std::vector<std::string> names;
  for (const auto& entry : range) names.emplace_back(name(entry));
  return absl::InvalidArgumentError(
      absl::StrCat("unknown ", what, " '", value.substr(0, 64),
                   "'; one of: ", absl::StrJoin(names, ", ")));
}

void SetDuration(absl::Duration from, google::protobuf::Duration* to) {
  to->set_seconds(absl::ToInt64Seconds(from));
  to->set_nanos(static_cast<int32_t>(absl::ToInt64Nanoseconds(
      from - absl::Seconds(absl::ToInt64Seconds(from)))));
}

void SetTime(absl::Time from, google::protobuf::Timestamp* to) {
  const int64_t micros = absl::ToUnixMicros(from);
  to->set_seconds(micros / 1'000'000);
  to->set_nanos(static_cast<int32_t>(micros % 1'000'000) * 1000);
}

absl::StatusOr<absl::Duration> DurationOf(
    const google::protobuf::Duration& proto, absl::string_view field) {
  if (proto.seconds() < 0 || proto.nanos() < 0 ||
      proto.seconds() > 315'576'000'000) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, " must not be negative"));
  }
  return absl::Seconds(proto.seconds()) + absl::Nanoseconds(proto.nanos());
}

// The stored options, for the metadata of an operation.
void OptionsToMetadata(const JobSpec& spec, v1::CompressionOptions* proto) {
  const auto options = OptionsFromJson(spec.options_json);
  proto->set_mode(spec.mode);
  if (!options.ok()) return;
  if (options->ratio) proto->set_ratio(*options->ratio);
  if (options->group_size) proto->set_group_size(*options->group_size);
  if (options->backup_mode) {
    proto->set_backup_mode(std::string(BackupModeName(*options->backup_mode)));
  }
  if (options->all_layers) proto->set_all_layers(*options->all_layers);
  if (options->awq) proto->set_awq(*options->awq);
  proto->set_group_size_fallback(
      std::string(GroupSizeFallbackName(options->group_size_fallback)));
}

void ModelToProto(const BlobRef& xml, const BlobRef& bin,
                  v1::ModelBlobs* model) {
  RefToProto(xml, model->mutable_xml());
  RefToProto(bin, model->mutable_bin());
}

}  // namespace

absl::StatusOr<CompressionOptions> OptionsFromProto(
    const v1::CompressionOptions& proto) {
  CompressionOptions options;
  const std::string mode = proto.mode().empty() ? "int8_asym" : proto.mode();
  const auto parsed = ParseMode(mode);
  if (!parsed.has_value()) {
    return Unknown("mode", mode, kAllModes,
                   [](Mode m) { return ModeTraitsOf(m).name; });
  }
  options.mode = *parsed;
  if (proto.has_ratio()) options.ratio = proto.ratio();
  if (proto.has_group_size()) options.group_size = proto.group_size();
  if (proto.has_backup_mode()) {
    options.backup_mode = ParseBackupMode(proto.backup_mode());
    if (!options.backup_mode.has_value()) {
      return Unknown("backup_mode", proto.backup_mode(), kBackupModes,
                     BackupModeName);
    }
  }
  if (proto.has_all_layers()) options.all_layers = proto.all_layers();
  if (proto.has_sensitivity_metric()) {
    options.sensitivity_metric = proto.sensitivity_metric();
  }
  const v1::IgnoredScope& ignored = proto.ignored_scope();
  if (ignored.names_size() > 100000 || ignored.patterns_size() > 1000 ||
      ignored.types_size() > 1000) {
    return absl::InvalidArgumentError(
        "ignored_scope: at most 100000 names, 1000 patterns, 1000 types");
  }
  options.ignored.names.assign(ignored.names().begin(), ignored.names().end());
  options.ignored.patterns.assign(ignored.patterns().begin(),
                                  ignored.patterns().end());
  for (const std::string& pattern : options.ignored.patterns) {
    if (pattern.size() > 4096) {
      return absl::InvalidArgumentError(
          absl::StrCat("ignored_scope: a pattern of ", pattern.size(),
                       " bytes, at most 4096"));
    }
  }
  options.ignored.types.assign(ignored.types().begin(), ignored.types().end());
  options.ignored.validate = !ignored.allow_unmatched();
  if (!proto.group_size_fallback().empty()) {
    const auto fallback = ParseGroupSizeFallback(proto.group_size_fallback());
    if (!fallback.has_value()) {
      return Unknown("group_size_fallback", proto.group_size_fallback(),
                     kFallbacks, GroupSizeFallbackName);
    }
    options.group_size_fallback = *fallback;
  }
  if (proto.has_min_adjusted_group_size()) {
    options.min_adjusted_group_size = proto.min_adjusted_group_size();
  }
  if (proto.has_awq()) options.awq = proto.awq();
  options.awq_extended = proto.awq_extended();
  options.allow_non_finite = proto.allow_non_finite();
  if (!proto.codebook().empty()) {
    if (proto.codebook().size() > kCodebookBytesMax) {
      return absl::InvalidArgumentError(
          absl::StrCat("codebook of ", proto.codebook().size(),
                       " bytes, at most ", kCodebookBytesMax));
    }
    OVPRESS_ASSIGN_OR_RETURN(
        options.codebook,
        ParseCodebook(proto.codebook(), &options.codebook_text));
  }
  OVPRESS_RETURN_IF_ERROR(ValidateOptions(options));
  return options;
}

BlobRef RefFromProto(const v1::Blob& blob) {
  // A negative size becomes one that no blob has and no limit lets pass.
  return {.sha256 = blob.sha256(),
          .size_bytes = static_cast<uint64_t>(blob.size_bytes())};
}

void RefToProto(const BlobRef& ref, v1::Blob* blob) {
  blob->set_sha256(ref.sha256);
  blob->set_size_bytes(static_cast<int64_t>(ref.size_bytes));
}

absl::StatusOr<JobSpec> SpecFromProto(const v1::CompressModelRequest& request,
                                      const std::string& owner) {
  JobSpec spec;
  spec.owner = owner;
  spec.request_id = request.request_id();
  spec.xml = RefFromProto(request.model().xml());
  spec.bin = RefFromProto(request.model().bin());
  OVPRESS_ASSIGN_OR_RETURN(const CompressionOptions options,
                           OptionsFromProto(request.options()));
  OVPRESS_RETURN_IF_ERROR(SetOptions(options, &spec));
  if (request.settings().memory_budget_bytes() < 0) {
    return absl::InvalidArgumentError(
        "settings.memory_budget_bytes must not be negative");
  }
  spec.memory_budget_bytes =
      static_cast<uint64_t>(request.settings().memory_budget_bytes());
  spec.measure_error = request.settings().measure_error();
  spec.priority = request.priority();
  spec.labels.insert(request.labels().begin(), request.labels().end());
  if (request.has_ttl()) {
    OVPRESS_ASSIGN_OR_RETURN(spec.ttl, DurationOf(request.ttl(), "ttl"));
  }
  if (request.has_max_run_time()) {
    OVPRESS_ASSIGN_OR_RETURN(
        spec.max_run_time, DurationOf(request.max_run_time(), "max_run_time"));
  }
  spec.ignore_result_cache = request.ignore_result_cache();
  return spec;
}

namespace {

// Both addresses of a model; kInvalidArgument if the second cannot be derived.
absl::StatusOr<v1::ModelAddress> FullAddress(const v1::ModelAddress& address,
                                             absl::string_view field) {
  v1::ModelAddress full = address;
  if (!full.bin().empty()) return full;
  absl::string_view stem = full.xml();
  if (!absl::ConsumeSuffix(&stem, ".xml")) {
    return absl::InvalidArgumentError(
        absl::StrCat(field, ".bin is needed: \"", absl::CHexEscape(full.xml()),
                     "\" does not end with .xml"));
  }
  full.set_bin(absl::StrCat(stem, ".bin"));
  return full;
}

}  // namespace

absl::Status ResolveAddresses(const v1::CompressModelRequest& request,
                              BlobStore* blobs, JobSpec* spec) {
  if (request.has_output_address()) {
    OVPRESS_ASSIGN_OR_RETURN(
        const v1::ModelAddress to,
        FullAddress(request.output_address(), "output_address"));
    if (to.xml() == to.bin()) {
      return absl::InvalidArgumentError(
          "output_address: xml and bin are the same");
    }
    for (const std::string& address : {to.bin(), to.xml()}) {
      OVPRESS_RETURN_IF_ERROR(blobs->CheckExport(spec->owner, address));
    }
    spec->output_xml_address = to.xml();
    spec->output_bin_address = to.bin();
    // The copy is made by a run.
    spec->ignore_result_cache = true;
  }
  if (!request.has_model_address()) return absl::OkStatus();
  if (request.has_model()) {
    return absl::InvalidArgumentError(
        "model and model_address: give one of them");
  }
  OVPRESS_ASSIGN_OR_RETURN(
      const v1::ModelAddress from,
      FullAddress(request.model_address(), "model_address"));
  for (const std::string& input : {from.xml(), from.bin()}) {
    if (input == spec->output_xml_address ||
        input == spec->output_bin_address) {
      return absl::InvalidArgumentError(
          absl::StrCat("output_address would write over the input, \"",
                       absl::CHexEscape(input), "\""));
    }
  }
  OVPRESS_ASSIGN_OR_RETURN(spec->xml, blobs->Refer(spec->owner, from.xml()));
  OVPRESS_ASSIGN_OR_RETURN(spec->bin, blobs->Refer(spec->owner, from.bin()));
  return absl::OkStatus();
}

v1::CompressModelMetadata::Phase PhaseToProto(absl::string_view phase) {
  using Metadata = v1::CompressModelMetadata;
  if (phase == "planning") return Metadata::PHASE_PLANNING;
  if (phase == "scoring") return Metadata::PHASE_SCORING;
  if (phase == "compressing") return Metadata::PHASE_COMPRESSING;
  if (phase == "finishing") return Metadata::PHASE_FINISHING;
  if (phase == "done") return Metadata::PHASE_DONE;
  return Metadata::PHASE_UNSPECIFIED;
}

google::longrunning::Operation OperationFromView(const JobView& view) {
  const JobRecord& job = view.record;
  google::longrunning::Operation operation;
  if (!job.id.empty()) operation.set_name(absl::StrCat("operations/", job.id));
  v1::CompressModelMetadata metadata;
  metadata.set_state(static_cast<v1::CompressModelMetadata::State>(job.state));
  metadata.set_phase(PhaseToProto(
      job.state == JobState::kSucceeded ? "done" : view.progress.phase));
  metadata.set_bytes_done(static_cast<int64_t>(view.progress.bytes_done));
  metadata.set_bytes_total(static_cast<int64_t>(view.progress.bytes_total));
  metadata.set_weights_done(static_cast<int64_t>(view.progress.weights_done));
  metadata.set_weights_total(static_cast<int64_t>(view.progress.weights_total));
  metadata.set_queue_position(view.queue_position);
  metadata.set_owner(job.spec.owner);
  if (view.eta.has_value()) SetDuration(*view.eta, metadata.mutable_eta());
  metadata.set_peak_memory_bytes(static_cast<int64_t>(job.memory_bytes));
  SetTime(job.created, metadata.mutable_create_time());
  if (job.started != absl::InfinitePast()) {
    SetTime(job.started, metadata.mutable_start_time());
  }
  if (IsFinal(job.state)) {
    SetTime(job.finished, metadata.mutable_end_time());
    SetTime(job.expires, metadata.mutable_expire_time());
  }
  metadata.set_attempt(job.attempt);
  metadata.set_request_id(job.spec.request_id);
  metadata.mutable_labels()->insert(job.spec.labels.begin(),
                                    job.spec.labels.end());
  metadata.set_priority(job.spec.priority);
  ModelToProto(job.spec.xml, job.spec.bin, metadata.mutable_model());
  OptionsToMetadata(job.spec, metadata.mutable_options());
  operation.mutable_metadata()->PackFrom(metadata);
  operation.set_done(IsFinal(job.state));
  if (job.state == JobState::kSucceeded) {
    const JobResult& result = job.result;
    v1::CompressModelResponse response;
    ModelToProto(result.xml, result.bin, response.mutable_model());
    RefToProto(result.report, response.mutable_report());
    response.set_bin_bytes_before(
        static_cast<int64_t>(result.bin_bytes_before));
    response.set_bin_bytes_after(static_cast<int64_t>(result.bin_bytes_after));
    response.set_weight_elements(static_cast<int64_t>(result.weight_elements));
    response.set_bits_per_weight(result.bits_per_weight);
    response.set_primary_share(result.primary_share);
    response.set_cache_hit(result.cache_hit);
    response.set_engine_version(result.engine_version);
    for (const std::string& warning : result.warnings) {
      response.add_warnings(warning);
    }
    operation.mutable_response()->PackFrom(response);
  } else if (operation.done()) {
    *operation.mutable_error() = ToRpcStatus(job.error);
  }
  return operation;
}

v1::GetCapabilitiesResponse Capabilities(const TransferLimits& transfer,
                                         const StoreLimits& store,
                                         const JobLimits& jobs) {
  v1::GetCapabilitiesResponse response;
  response.set_server_version(std::string(EngineVersion()));
  response.set_engine_version(std::string(EngineVersion()));
  for (const Mode mode : kAllModes) {
    const ModeTraits& traits = ModeTraitsOf(mode);
    v1::ModeInfo* info = response.add_modes();
    info->set_name(std::string(traits.name));
    info->set_bits(traits.bits);
    info->set_default_group_size(traits.default_group_size);
    info->set_group_size_fixed(traits.group_size_fixed);
    info->set_code_type(std::string(ElementTypeName(traits.code_type)));
    info->set_scale_type(std::string(ElementTypeName(traits.scale_type)));
  }
  for (const BackupMode mode : kBackupModes) {
    response.add_backup_modes(std::string(BackupModeName(mode)));
  }
  for (const GroupSizeFallback mode : kFallbacks) {
    response.add_group_size_fallbacks(std::string(GroupSizeFallbackName(mode)));
  }
  response.add_sensitivity_metrics("weight_quantization_error");
  response.set_max_blob_bytes(static_cast<int64_t>(store.max_blob_bytes));
  response.set_max_xml_bytes(static_cast<int64_t>(jobs.max_xml_bytes));
  response.set_chunk_bytes(static_cast<int64_t>(transfer.chunk_bytes));
  response.set_max_chunk_bytes(static_cast<int64_t>(transfer.max_chunk_bytes));
  response.set_max_message_bytes(
      static_cast<int64_t>(transfer.max_message_bytes));
  response.set_max_find_missing_blobs(transfer.max_find_missing_blobs);
  response.set_max_transfers_per_client(transfer.max_transfers_per_owner);
  response.set_max_jobs_per_client(jobs.max_queued_per_owner);
  response.set_max_memory_budget_bytes(
      static_cast<int64_t>(jobs.total_memory_bytes));
  response.set_default_memory_budget_bytes(
      static_cast<int64_t>(jobs.default_job_memory_bytes));
  SetDuration(transfer.idle_timeout, response.mutable_idle_timeout());
  SetDuration(store.upload_ttl, response.mutable_upload_ttl());
  SetDuration(jobs.default_result_ttl, response.mutable_default_result_ttl());
  SetDuration(jobs.max_result_ttl, response.mutable_max_result_ttl());
  response.add_digest_functions("sha256");
  return response;
}

v1::EstimateCompressionResponse EstimateToProto(const Compression& compression,
                                                uint64_t memory_budget_bytes,
                                                bool summary_only,
                                                int max_plan_entries) {
  const Estimate estimate = compression.EstimateSizes();
  v1::EstimateCompressionResponse response;
  response.set_weight_count(static_cast<int64_t>(estimate.weights.size()));
  response.set_input_bin_bytes(static_cast<int64_t>(estimate.input_bin_bytes));
  response.set_output_bin_bytes_min(
      static_cast<int64_t>(estimate.output_bin_bytes_min));
  response.set_output_bin_bytes_max(
      static_cast<int64_t>(estimate.output_bin_bytes_max));
  response.set_peak_memory_bytes(static_cast<int64_t>(
      std::min(estimate.peak_memory_bytes, memory_budget_bytes)));
  response.set_disk_bytes(static_cast<int64_t>(estimate.input_bin_bytes +
                                               estimate.output_bin_bytes_max));
  response.set_reads_weights_twice(estimate.reads_weights_twice);
  if (summary_only) return response;
  // Entries also stop before the message would grow beyond what clients take.
  size_t bytes = 0;
  for (const WeightReport& weight : estimate.weights) {
    bytes += weight.name.size() + weight.node.size() + 128;
    if (response.weights_size() >= max_plan_entries || bytes > (3u << 20)) {
      break;
    }
    v1::WeightPlan* plan = response.add_weights();
    plan->set_name(weight.name);
    plan->set_node(weight.node);
    plan->set_node_type(weight.node_type);
    for (const uint64_t dim : weight.shape) {
      plan->add_shape(static_cast<int64_t>(dim));
    }
    plan->set_from_type(weight.from);
    plan->set_to_type(weight.to);
    plan->set_reason(weight.reason);
    plan->set_group_size(weight.group_size);
    plan->set_bytes_before(static_cast<int64_t>(weight.bytes_before));
    plan->set_bytes_after(static_cast<int64_t>(weight.bytes_after));
  }
  return response;
}

}  // namespace ovpress
