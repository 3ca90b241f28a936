#include "server/jobs/compression_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/memory.h"
#include "core/base/status_macros.h"
#include "core/engine/compression.h"
#include "server/jobs/options_json.h"

namespace ovpress {
namespace {

// A report has one entry per weight; with the new .xml it comes to no more
// than this beyond the size of the old one.
uint64_t TextBytesBound(uint64_t xml_bytes, size_t weights) {
  return 2 * xml_bytes + (weights + 16) * 4096;
}

class CompressionRunner final : public JobRunner {
 public:
  explicit CompressionRunner(const JobLimits& limits) : limits_(limits) {}

  std::string engine_version() const override {
    return std::string(EngineVersion());
  }

  absl::StatusOr<JobEstimate> Estimate(BlobStore* blobs,
                                       const JobSpec& spec) override {
    return CatchOutOfMemory([&] { return EstimateOrThrow(blobs, spec); });
  }

  absl::StatusOr<RunOutput> Run(const JobSpec& spec,
                                const RunContext& context) override {
    return CatchOutOfMemory([&] { return RunOrThrow(spec, context); });
  }

 private:
  absl::StatusOr<JobEstimate> EstimateOrThrow(BlobStore* blobs,
                                              const JobSpec& spec) {
    OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<Compression> compression,
                             Plan(blobs, spec));
    const ovpress::Estimate sizes = compression->EstimateSizes();
    const uint64_t budget = Budget(spec);
    JobEstimate estimate;
    // The plan holds the .xml and its tree beside the windows of the budget.
    estimate.memory_bytes =
        std::min(sizes.peak_memory_bytes, budget) + 4 * spec.xml.size_bytes;
    estimate.output_bytes =
        sizes.output_bin_bytes_max +
        TextBytesBound(spec.xml.size_bytes, sizes.weights.size());
    return estimate;
  }

  absl::StatusOr<RunOutput> RunOrThrow(const JobSpec& spec,
                                       const RunContext& context) {
    RunOptions run;
    run.executor = context.executor;
    run.memory_budget_bytes =
        std::max(context.memory_budget_bytes, kMinMemoryBudgetBytes);
    run.stop = context.stop;
    run.measure_error = spec.measure_error;
    const auto tell = [&context](const Progress& progress) {
      if (!context.progress) return;
      JobProgress told;
      told.phase = std::string(PhaseName(progress.phase));
      told.bytes_done = progress.bytes_done;
      told.bytes_total = progress.bytes_total;
      told.weights_done = progress.weights_done;
      told.weights_total = progress.weights_total;
      context.progress(told);
    };
    run.progress = tell;
    tell({.phase = Phase::kPlanning});
    OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<Compression> compression,
                             Plan(context.blobs, spec));
    OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ByteSource> bin,
                             context.blobs->OpenRead(spec.owner, spec.bin));
    if (compression->needs_scores()) {
      OVPRESS_RETURN_IF_ERROR(compression->ComputeScores(*bin, run));
    }
    OVPRESS_ASSIGN_OR_RETURN(
        const std::unique_ptr<BlobWriter> out,
        context.blobs->CreateOutput(spec.owner, compression->output_bin_bytes(),
                                    context.space));
    OVPRESS_RETURN_IF_ERROR(compression->Run(*bin, *out, run));
    tell({.phase = Phase::kFinishing});
    const Report report = compression->report();
    RunOutput output;
    JobResult& result = output.result;
    OVPRESS_ASSIGN_OR_RETURN(BlobWriter::Published published, out->Publish());
    const auto keep = [&output](BlobWriter::Published made) {
      output.pins.push_back(std::move(made.pin));
      return made.ref;
    };
    result.bin = keep(std::move(published));
    OVPRESS_ASSIGN_OR_RETURN(
        published, PublishBytes(context.blobs, spec.owner,
                                compression->OutputXml(), context.space));
    result.xml = keep(std::move(published));
    OVPRESS_ASSIGN_OR_RETURN(
        published, PublishBytes(context.blobs, spec.owner, report.ToJson(),
                                context.space));
    result.report = keep(std::move(published));
    if (!spec.output_xml_address.empty()) {
      // The .xml last: whoever sees it finds the .bin.
      OVPRESS_RETURN_IF_ERROR(context.blobs->Export(spec.owner, result.bin,
                                                    spec.output_bin_address));
      OVPRESS_RETURN_IF_ERROR(context.blobs->Export(spec.owner, result.xml,
                                                    spec.output_xml_address));
    }
    result.bin_bytes_before = report.bin_bytes_before;
    result.bin_bytes_after = report.bin_bytes_after;
    result.weight_elements = report.weight_elements;
    result.bits_per_weight = report.bits_per_weight;
    result.primary_share = report.primary_share;
    result.engine_version = engine_version();
    result.warnings = report.warnings;
    if (context.stop != nullptr && context.stop->load()) {
      return absl::CancelledError("the job was stopped");
    }
    tell({.phase = Phase::kDone});
    return output;
  }

  uint64_t Budget(const JobSpec& spec) const {
    return spec.memory_budget_bytes != 0 ? spec.memory_budget_bytes
                                         : limits_.default_job_memory_bytes;
  }

  absl::StatusOr<std::unique_ptr<Compression>> Plan(BlobStore* blobs,
                                                    const JobSpec& spec) {
    OVPRESS_ASSIGN_OR_RETURN(const CompressionOptions options,
                             OptionsFromJson(spec.options_json));
    OVPRESS_ASSIGN_OR_RETURN(
        std::string xml,
        ReadBlob(blobs, spec.owner, spec.xml, limits_.max_xml_bytes));
    OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<Compression> compression,
                             Compression::Create(std::move(xml), options));
    OVPRESS_RETURN_IF_ERROR(
        compression->model().CheckConstantRanges(spec.bin.size_bytes));
    return compression;
  }

  const JobLimits limits_;
};

}  // namespace

std::unique_ptr<JobRunner> MakeCompressionRunner(const JobLimits& limits) {
  return std::make_unique<CompressionRunner>(limits);
}

}  // namespace ovpress
