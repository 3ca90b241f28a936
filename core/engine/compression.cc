#include "core/engine/compression.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "core/base/memory.h"
#include "core/base/status_macros.h"
#include "core/engine/layout.h"
#include "core/engine/plan.h"
#include "core/engine/rewrite.h"
#include "core/engine/scoring.h"
#include "core/engine/version.h"
#include "core/engine/work.h"

namespace ovpress {
namespace {

constexpr std::chrono::milliseconds kProgressInterval{50};

// Counts bytes, honours the stop flag, thins out progress calls.
class ProgressMeter {
 public:
  ProgressMeter(const RunOptions& options, Phase phase, uint64_t bytes_done,
                uint64_t bytes_total, uint64_t weights_total,
                std::function<uint64_t()> weights_done)
      : options_(options),
        phase_(phase),
        bytes_total_(bytes_total),
        weights_total_(weights_total),
        weights_done_(std::move(weights_done)),
        bytes_done_(bytes_done) {
    Report(true);
  }

  absl::Status Advance(uint64_t bytes) {
    bytes_done_.fetch_add(bytes, std::memory_order_relaxed);
    if (options_.stop != nullptr &&
        options_.stop->load(std::memory_order_relaxed)) {
      return absl::CancelledError("the compression was cancelled");
    }
    Report(false);
    return absl::OkStatus();
  }
  uint64_t bytes_done() const { return bytes_done_.load(); }
  void Report(bool always) {
    if (!options_.progress) return;
    std::unique_lock<std::mutex> lock(mutex_, std::defer_lock);
    if (always) {
      lock.lock();
    } else if (!lock.try_lock()) {
      return;
    }
    const auto now = std::chrono::steady_clock::now();
    if (!always && now - last_ < kProgressInterval) return;
    last_ = now;
    options_.progress({phase_, std::min(bytes_done_.load(), bytes_total_),
                       bytes_total_, weights_done_ ? weights_done_() : 0,
                       weights_total_});
  }

 private:
  const RunOptions& options_;
  const Phase phase_;
  const uint64_t bytes_total_;
  const uint64_t weights_total_;
  const std::function<uint64_t()> weights_done_;
  std::atomic<uint64_t> bytes_done_;
  std::mutex mutex_;
  std::chrono::steady_clock::time_point last_{};
};

}  // namespace

absl::string_view PhaseName(Phase phase) {
  switch (phase) {
    case Phase::kPlanning:
      return "planning";
    case Phase::kScoring:
      return "scoring";
    case Phase::kCompressing:
      return "compressing";
    case Phase::kFinishing:
      return "finishing";
    case Phase::kDone:
      return "done";
  }
  return "";
}

absl::string_view EngineVersion() { return OVPRESS_VERSION; }

struct Compression::Impl {
  Impl(Model m, Plan p) : model(std::move(m)), plan(std::move(p)) {}

  absl::Status Settle() {
    OVPRESS_RETURN_IF_ERROR(FinishPlan(model, &plan));
    OVPRESS_ASSIGN_OR_RETURN(layout, MakeLayout(model, plan));
    settled = true;
    return absl::OkStatus();
  }
  uint64_t SourceBytes() const {
    uint64_t bytes = 0;
    for (const Unit& unit : layout.units) bytes += unit.source.size;
    return bytes;
  }
  uint64_t CompressedWeights() const {
    uint64_t count = 0;
    for (const Unit& unit : layout.units) {
      count += unit.kind == UnitKind::kCompress;
    }
    return count;
  }

  Model model;
  Plan plan;
  Layout layout;
  bool settled = false;
  uint64_t bin_size_bytes = 0;
  std::unique_ptr<WorkList> work;
  uint64_t work_bytes_done = 0;
};

Compression::Compression() = default;
Compression::~Compression() = default;

absl::StatusOr<std::unique_ptr<Compression>> Compression::Create(
    std::string xml, const CompressionOptions& options) {
  return CatchOutOfMemory(
      [&] { return CreateOrThrow(std::move(xml), options); });
}

absl::StatusOr<std::unique_ptr<Compression>> Compression::CreateOrThrow(
    std::string xml, const CompressionOptions& options) {
  OVPRESS_RETURN_IF_ERROR(ValidateOptions(options));
  OVPRESS_ASSIGN_OR_RETURN(Model model, Model::Parse(std::move(xml)));
  OVPRESS_ASSIGN_OR_RETURN(Plan plan, MakePlan(model, options));
  std::unique_ptr<Compression> compression(new Compression());
  compression->impl_ =
      std::make_unique<Impl>(std::move(model), std::move(plan));
  Impl& impl = *compression->impl_;
  if (!impl.plan.needs_scores) OVPRESS_RETURN_IF_ERROR(impl.Settle());
  return compression;
}

const Model& Compression::model() const { return impl_->model; }

std::string Compression::PlanText() const {
  return PlanToText(impl_->model, impl_->plan);
}

bool Compression::needs_scores() const {
  return impl_->plan.needs_scores && !impl_->settled;
}

absl::Status Compression::ComputeScores(ByteSource& bin,
                                        const RunOptions& options) {
  return CatchOutOfMemory([&] { return ComputeScoresOrThrow(bin, options); });
}

absl::Status Compression::ComputeScoresOrThrow(ByteSource& bin,
                                               const RunOptions& options) {
  OVPRESS_CHECK(options.executor != nullptr);
  OVPRESS_CHECK(needs_scores());
  OVPRESS_RETURN_IF_ERROR(impl_->model.CheckConstantRanges(bin.size_bytes()));
  ProgressMeter meter(options, Phase::kScoring, 0,
                      ScoringBytes(impl_->model, impl_->plan),
                      impl_->plan.ratio_defining.size(), nullptr);
  ScoringContext context;
  context.model = &impl_->model;
  context.plan = &impl_->plan;
  context.bin = &bin;
  context.executor = options.executor;
  context.pool = &BufferPool::Shared();
  context.window_bytes =
      WindowBytes(options.memory_budget_bytes, options.executor->parallelism());
  context.advance = [&meter](uint64_t bytes) { return meter.Advance(bytes); };
  OVPRESS_ASSIGN_OR_RETURN(const std::vector<double> scores,
                           ScoreWeights(context));
  ApplyScores(scores, &impl_->plan);
  return impl_->Settle();
}

uint64_t Compression::output_bin_bytes() const {
  OVPRESS_CHECK(impl_->settled);
  return impl_->layout.output_bytes;
}

std::string Compression::OutputXml() const {
  OVPRESS_CHECK(impl_->settled);
  return RewriteXml(impl_->model, impl_->plan, impl_->layout);
}

absl::Status Compression::Run(ByteSource& bin, ByteSink& out,
                              const RunOptions& options) {
  return RunAvailable(bin, bin.size_bytes(), out, options);
}

absl::Status Compression::RunAvailable(ByteSource& bin,
                                       uint64_t available_bytes, ByteSink& out,
                                       const RunOptions& options) {
  return CatchOutOfMemory(
      [&] { return RunAvailableOrThrow(bin, available_bytes, out, options); });
}

absl::Status Compression::RunAvailableOrThrow(ByteSource& bin,
                                              uint64_t available_bytes,
                                              ByteSink& out,
                                              const RunOptions& options) {
  OVPRESS_CHECK(options.executor != nullptr);
  OVPRESS_CHECK(impl_->settled);
  Impl& impl = *impl_;
  if (impl.work == nullptr) {
    OVPRESS_RETURN_IF_ERROR(impl.model.CheckConstantRanges(bin.size_bytes()));
    impl.bin_size_bytes = bin.size_bytes();
    WorkContext context;
    context.model = &impl.model;
    context.plan = &impl.plan;
    context.layout = &impl.layout;
    context.parallelism = options.executor->parallelism();
    context.memory_budget_bytes = options.memory_budget_bytes;
    context.measure_error = options.measure_error;
    impl.work = std::make_unique<WorkList>(context);
  }
  ProgressMeter meter(options, Phase::kCompressing, impl.work_bytes_done,
                      impl.SourceBytes(), impl.CompressedWeights(),
                      [&impl] { return impl.work->weights_done(); });
  const absl::Status status = impl.work->RunAvailable(
      bin, available_bytes, out, *options.executor,
      [&meter](uint64_t bytes) { return meter.Advance(bytes); });
  impl.work_bytes_done = meter.bytes_done();
  meter.Report(true);
  return status;
}

uint64_t Compression::output_prefix_bytes() const {
  return impl_->work == nullptr ? 0 : impl_->work->output_prefix_bytes();
}

uint64_t Compression::input_needed_from() const {
  return impl_->work == nullptr ? 0 : impl_->work->input_needed_from();
}

namespace {

WeightReport Describe(const Model& model, const Plan& plan,
                      const PlannedWeight& weight) {
  const Constant& constant = model.constants()[weight.constant];
  WeightReport line;
  line.name = weight.name;
  line.node = plan.graph.names[weight.layer];
  line.node_type = std::string(model.layers()[weight.layer].type);
  line.shape = constant.shape;
  line.from = std::string(ElementTypeName(constant.type));
  line.to = line.from;
  line.reason = weight.reason;
  line.elements = constant.element_count;
  line.bytes_before = constant.size_bytes;
  line.bytes_after = constant.size_bytes;
  line.has_score = weight.has_score;
  line.score = weight.score;
  if (weight.config.has_value()) {
    line.to = std::string(ModeTraitsOf(weight.config->mode).name);
    line.group_size = weight.config->group_size;
    line.bytes_after =
        CompressedBytes(model, plan.options, weight, *weight.config);
  }
  return line;
}

}  // namespace

Estimate Compression::EstimateSizes() const {
  const Impl& impl = *impl_;
  Estimate estimate;
  estimate.input_bin_bytes = impl.model.BinBytesUsed();
  estimate.reads_weights_twice = impl.plan.needs_scores;
  for (const PlannedWeight& weight : impl.plan.weights) {
    estimate.weights.push_back(Describe(impl.model, impl.plan, weight));
  }
  // Working memory: windows and codes of each thread, and the document (about
  // eight bytes in memory for one of XML).
  estimate.peak_memory_bytes = kDefaultMemoryBudgetBytes;
  if (impl.settled) {
    estimate.output_bin_bytes_min = impl.layout.output_bytes;
    estimate.output_bin_bytes_max = impl.layout.output_bytes;
    return estimate;
  }
  // The choice is open: bound each weight by its smaller and larger form.
  Plan primary = impl.plan;
  const absl::StatusOr<Layout> all_primary = MakeLayout(impl.model, primary);
  if (!all_primary.ok()) return estimate;
  uint64_t least = all_primary->output_bytes;
  uint64_t most = all_primary->output_bytes;
  for (const size_t index : impl.plan.ratio_defining) {
    const PlannedWeight& weight = impl.plan.weights[index];
    const uint64_t one =
        CompressedBytes(impl.model, impl.plan.options, weight, *weight.primary);
    const uint64_t other =
        weight.backup.has_value()
            ? CompressedBytes(impl.model, impl.plan.options, weight,
                              *weight.backup)
            : impl.model.constants()[weight.constant].size_bytes;
    if (other > one) {
      most += other - one;
    } else {
      least -= one - other;
    }
  }
  estimate.output_bin_bytes_min = least;
  estimate.output_bin_bytes_max = most;
  return estimate;
}

Report Compression::report() const {
  const Impl& impl = *impl_;
  OVPRESS_CHECK(impl.settled);
  Report report;
  const std::vector<SquaredSums> errors = impl.work != nullptr
                                              ? impl.work->ErrorsByUnit()
                                              : std::vector<SquaredSums>();
  report.bin_bytes_before = impl.bin_size_bytes != 0
                                ? impl.bin_size_bytes
                                : impl.model.BinBytesUsed();
  report.bin_bytes_after = impl.layout.output_bytes;
  uint64_t bytes = 0;
  uint64_t primary = 0;
  uint64_t ratio_defining = 0;
  for (const PlannedWeight& weight : impl.plan.weights) {
    WeightReport line = Describe(impl.model, impl.plan, weight);
    if (weight.config.has_value()) {
      report.weight_elements += line.elements;
      bytes += line.bytes_after;
      const size_t unit = impl.layout.unit_of_constant[weight.constant];
      if (unit < errors.size()) {
        const SquaredSums& sums = errors[unit];
        line.has_error = true;
        line.relative_error =
            sums.signal > 0 ? std::sqrt(sums.error / sums.signal) : 0;
        line.sqnr_db = sums.error > 0
                           ? 10 * std::log10(sums.signal / sums.error)
                           : std::numeric_limits<double>::infinity();
      }
    }
    if (weight.ratio_defining) {
      ratio_defining += line.elements;
      if (weight.config.has_value() && weight.config == weight.primary) {
        primary += line.elements;
      }
    }
    report.weights.push_back(std::move(line));
  }
  if (report.weight_elements > 0) {
    report.bits_per_weight = static_cast<double>(bytes) * 8 /
                             static_cast<double>(report.weight_elements);
  }
  if (ratio_defining > 0) {
    report.primary_share =
        static_cast<double>(primary) / static_cast<double>(ratio_defining);
  }
  report.warnings = impl.plan.warnings;
  if (report.weight_elements == 0) {
    report.warnings.push_back(
        "no weight was compressed: the model has none that qualifies, or all "
        "are compressed already");
  }
  return report;
}

}  // namespace ovpress
