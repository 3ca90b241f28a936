#include "server/jobs/compression_runner.h"

#include <algorithm>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "core/base/memory.h"
#include "core/base/status_macros.h"
#include "core/engine/compression.h"
#include "server/jobs/options_json.h"
#include "server/jobs/part_message.h"

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

  absl::StatusOr<std::string> RunPart(const JobSpec& spec,
                                      absl::string_view common,
                                      absl::string_view order,
                                      const RunContext& context) override {
    return CatchOutOfMemory(
        [&] { return RunPartOrThrow(spec, common, order, context); });
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
    const RunOptions run = OptionsOf(spec, context);
    Tell(context, {.phase = Phase::kPlanning});
    OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<Compression> compression,
                             Plan(context.blobs, spec));
    OVPRESS_ASSIGN_OR_RETURN(
        BlobWriter::Published published,
        context.board == nullptr
            ? WriteAlone(spec, context, run, compression.get())
            : WriteTogether(spec, context, run, compression.get()));
    const Report report = compression->report();
    RunOutput output;
    JobResult& result = output.result;
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
    Tell(context, {.phase = Phase::kDone});
    return output;
  }

  static void Tell(const RunContext& context, const Progress& progress) {
    if (!context.progress) return;
    JobProgress told;
    told.phase = std::string(PhaseName(progress.phase));
    told.bytes_done = progress.bytes_done;
    told.bytes_total = progress.bytes_total;
    told.weights_done = progress.weights_done;
    told.weights_total = progress.weights_total;
    context.progress(told);
  }

  static RunOptions OptionsOf(const JobSpec& spec, const RunContext& context) {
    RunOptions run;
    run.executor = context.executor;
    run.memory_budget_bytes =
        std::max(context.memory_budget_bytes, kMinMemoryBudgetBytes);
    run.stop = context.stop;
    run.measure_error = spec.measure_error;
    run.progress = [&context](const Progress& progress) {
      Tell(context, progress);
    };
    return run;
  }

  static absl::StatusOr<BlobWriter::Published> WriteAlone(
      const JobSpec& spec, const RunContext& context, const RunOptions& run,
      Compression* compression) {
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
    Tell(context, {.phase = Phase::kFinishing});
    return out->Publish();
  }

  // --- with other servers ---

  static absl::StatusOr<BlobWriter::Published> WriteTogether(
      const JobSpec& spec, const RunContext& context, const RunOptions& run,
      Compression* compression) {
    std::string scores;
    if (compression->needs_scores()) {
      OVPRESS_ASSIGN_OR_RETURN(scores, ScoreTogether(context, compression));
    }
    const uint64_t size = compression->output_bin_bytes();
    const std::vector<Part> parts = compression->Cut(
        static_cast<size_t>(spec.bin.size_bytes / context.board->part_bytes()) +
            1,
        context.blobs->min_shared_range_bytes());
    if (parts.size() < 2) return WriteAlone(spec, context, run, compression);
    std::vector<BlobStore::OutputRange> ranges;
    PartRound round{.common = scores, .tasks = {}};
    uint64_t total = 0;
    for (const Part& part : parts) {
      ranges.push_back({.begin = part.output_begin, .end = part.output_end});
      total += part.input_bytes;
    }
    OVPRESS_CHECK(ranges.front().begin == 0 && ranges.back().end == size);
    OVPRESS_ASSIGN_OR_RETURN(
        const std::unique_ptr<SharedOutput> out,
        context.blobs->CreateSharedOutput(spec.owner, ranges, context.space));
    for (size_t i = 0; i < parts.size(); ++i) {
      round.tasks.push_back(
          {.order = ToText(PartOrder{
               .write = PartOrder::Write{.part = parts[i],
                                         .range_handle = out->RangeHandle(i)}}),
           .cost_bytes = parts[i].input_bytes});
    }
    OVPRESS_ASSIGN_OR_RETURN(
        const std::vector<std::string> texts,
        RunRound(context, round, Phase::kCompressing, total));
    Tell(context, {.phase = Phase::kFinishing});
    std::vector<PartResult> results;
    std::vector<std::string> receipts;
    for (const std::string& text : texts) {
      OVPRESS_ASSIGN_OR_RETURN(WrittenPart written, WrittenPartFromText(text));
      results.push_back(std::move(written.result));
      receipts.push_back(std::move(written.receipt));
    }
    OVPRESS_RETURN_IF_ERROR(
        compression->SetPartResults(spec.bin.size_bytes, std::move(results)));
    return out->Publish(receipts, context.stop);
  }

  // The scores as text, for those who write parts; `compression` has them, too.
  static absl::StatusOr<std::string> ScoreTogether(const RunContext& context,
                                                   Compression* compression) {
    // Each costs what its weights read; runs of neighbours of about the size of
    // a part.
    PartRound round;
    uint64_t total = 0;
    size_t begin = 0;
    uint64_t cost = 0;
    for (size_t i = 0; i < compression->score_count(); ++i) {
      cost += compression->ScoringBytes(i, i + 1);
      if (cost < context.board->part_bytes() &&
          i + 1 < compression->score_count()) {
        continue;
      }
      round.tasks.push_back(
          {.order = ToText(PartOrder{
               .score = PartOrder::Score{.begin = begin, .end = i + 1}}),
           .cost_bytes = cost});
      total += cost;
      begin = i + 1;
      cost = 0;
    }
    OVPRESS_ASSIGN_OR_RETURN(const std::vector<std::string> results,
                             RunRound(context, round, Phase::kScoring, total));
    std::string scores;
    for (const std::string& result : results) scores += result;
    OVPRESS_ASSIGN_OR_RETURN(const std::vector<double> numbers,
                             ScoresFromText(scores));
    OVPRESS_RETURN_IF_ERROR(compression->SetScores(numbers));
    return scores;
  }

  static absl::StatusOr<std::vector<std::string>> RunRound(
      const RunContext& context, const PartRound& round, Phase phase,
      uint64_t total) {
    const auto tell = [&context, phase, total](uint64_t done) {
      Tell(context, {.phase = phase, .bytes_done = done, .bytes_total = total});
    };
    tell(0);
    return context.board->Run(round, tell);
  }

  absl::StatusOr<std::string> RunPartOrThrow(const JobSpec& spec,
                                             absl::string_view common,
                                             absl::string_view order_text,
                                             const RunContext& context) {
    OVPRESS_ASSIGN_OR_RETURN(const PartOrder order,
                             PartOrderFromText(order_text));
    const RunOptions run = OptionsOf(spec, context);
    OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<Compression> compression,
                             Plan(context.blobs, spec));
    OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ByteSource> bin,
                             context.blobs->OpenRead(spec.owner, spec.bin));
    if (order.score.has_value()) {
      OVPRESS_ASSIGN_OR_RETURN(const std::vector<double> scores,
                               compression->ScorePart(*bin, order.score->begin,
                                                      order.score->end, run));
      return ScoresToText(scores);
    }
    if (compression->needs_scores()) {
      OVPRESS_ASSIGN_OR_RETURN(const std::vector<double> scores,
                               ScoresFromText(common));
      OVPRESS_RETURN_IF_ERROR(compression->SetScores(scores));
    }
    OVPRESS_ASSIGN_OR_RETURN(
        const std::unique_ptr<RangeWriter> out,
        context.blobs->OpenRange(order.write->range_handle));
    WrittenPart written;
    OVPRESS_ASSIGN_OR_RETURN(
        written.result,
        compression->RunPart(*bin, order.write->part, *out, run));
    OVPRESS_ASSIGN_OR_RETURN(written.receipt, out->Finish());
    return ToText(written);
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
