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
  uint64_t SourceBytes(size_t unit_begin, size_t unit_end) const {
    uint64_t bytes = 0;
    for (size_t i = unit_begin; i < unit_end; ++i) {
      bytes += layout.units[i].source.size;
    }
    return bytes;
  }
  uint64_t CompressedWeights(size_t unit_begin, size_t unit_end) const {
    uint64_t count = 0;
    for (size_t i = unit_begin; i < unit_end; ++i) {
      count += layout.units[i].kind == UnitKind::kCompress;
    }
    return count;
  }
  // Units write behind one another.
  Part MakePart(size_t unit_begin, size_t unit_end) const {
    const auto out_begin = [this](size_t unit) {
      return unit == 0 ? 0 : layout.units[unit - 1].out_end;
    };
    return {unit_begin, unit_end, out_begin(unit_begin), out_begin(unit_end),
            SourceBytes(unit_begin, unit_end)};
  }
  WorkContext WorkOn(const RunOptions& options, size_t unit_begin,
                     size_t unit_end) const {
    WorkContext context;
    context.model = &model;
    context.plan = &plan;
    context.layout = &layout;
    context.parallelism = options.executor->parallelism();
    context.memory_budget_bytes = options.memory_budget_bytes;
    context.measure_error = options.measure_error;
    context.unit_begin = unit_begin;
    context.unit_end = unit_end;
    return context;
  }
  std::vector<SquaredSums> ErrorsByUnit() const {
    return work != nullptr ? work->ErrorsByUnit() : part_errors;
  }

  Model model;
  Plan plan;
  Layout layout;
  bool settled = false;
  uint64_t bin_size_bytes = 0;
  std::unique_ptr<WorkList> work;
  uint64_t work_bytes_done = 0;
  std::vector<SquaredSums> part_errors;  // by unit; empty if not measured
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
  OVPRESS_ASSIGN_OR_RETURN(const std::vector<double> scores,
                           ScorePart(bin, 0, score_count(), options));
  return SetScores(scores);
}

size_t Compression::score_count() const {
  return impl_->plan.ratio_defining.size();
}

uint64_t Compression::ScoringBytes(size_t begin, size_t end) const {
  return ovpress::ScoringBytes(impl_->model, impl_->plan, begin, end);
}

absl::StatusOr<std::vector<double>> Compression::ScorePart(
    ByteSource& bin, size_t begin, size_t end,
    const RunOptions& options) const {
  return CatchOutOfMemory(
      [&] { return ScorePartOrThrow(bin, begin, end, options); });
}

absl::StatusOr<std::vector<double>> Compression::ScorePartOrThrow(
    ByteSource& bin, size_t begin, size_t end,
    const RunOptions& options) const {
  OVPRESS_CHECK(options.executor != nullptr);
  OVPRESS_CHECK(needs_scores());
  if (begin > end || end > score_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat("weights ", begin, " to ", end,
                     " to score, of a model that has ", score_count()));
  }
  OVPRESS_RETURN_IF_ERROR(impl_->model.CheckConstantRanges(bin.size_bytes()));
  ProgressMeter meter(options, Phase::kScoring, 0, ScoringBytes(begin, end),
                      end - begin, nullptr);
  ScoringContext context;
  context.model = &impl_->model;
  context.plan = &impl_->plan;
  context.bin = &bin;
  context.executor = options.executor;
  context.pool = &BufferPool::Shared();
  context.window_bytes =
      WindowBytes(options.memory_budget_bytes, options.executor->parallelism());
  context.begin = begin;
  context.end = end;
  context.advance = [&meter](uint64_t bytes) { return meter.Advance(bytes); };
  return ScoreWeights(context);
}

absl::Status Compression::SetScores(const std::vector<double>& scores) {
  OVPRESS_CHECK(needs_scores());
  if (scores.size() != score_count()) {
    return absl::InvalidArgumentError(
        absl::StrCat(scores.size(), " scores for a model that has ",
                     score_count(), " weights to score"));
  }
  return CatchOutOfMemory([&] {
    ApplyScores(scores, &impl_->plan);
    return impl_->Settle();
  });
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
    impl.work = std::make_unique<WorkList>(
        impl.WorkOn(options, 0, impl.layout.units.size()));
  }
  ProgressMeter meter(options, Phase::kCompressing, impl.work_bytes_done,
                      impl.SourceBytes(0, impl.layout.units.size()),
                      impl.CompressedWeights(0, impl.layout.units.size()),
                      [&impl] { return impl.work->weights_done(); });
  const absl::Status status = impl.work->RunAvailable(
      bin, available_bytes, out, *options.executor,
      [&meter](uint64_t bytes) { return meter.Advance(bytes); });
  impl.work_bytes_done = meter.bytes_done();
  meter.Report(true);
  return status;
}

std::vector<Part> Compression::Cut(size_t count,
                                   uint64_t min_output_bytes) const {
  OVPRESS_CHECK(impl_->settled);
  OVPRESS_CHECK(count > 0);
  const size_t units = impl_->layout.units.size();
  const uint64_t total = impl_->SourceBytes(0, units);
  const auto even_cut = [&](size_t cut) {
    return static_cast<uint64_t>(static_cast<double>(total) *
                                 static_cast<double>(cut) /
                                 static_cast<double>(count));
  };
  std::vector<Part> parts;
  size_t begin = 0;
  size_t cut = 1;     // the next even cut; made at the nearest end of a unit
  uint64_t done = 0;  // input bytes of the units before
  for (size_t unit = 0; unit < units; ++unit) {
    const uint64_t after = done + impl_->layout.units[unit].source.size;
    const uint64_t next = even_cut(cut);
    if (unit > begin && cut < count && after > next &&
        (done >= next || next - done < after - next)) {
      parts.push_back(impl_->MakePart(begin, unit));
      begin = unit;
      do {
        ++cut;
      } while (cut < count && even_cut(cut) <= done);
    }
    done = after;
  }
  if (begin < units) parts.push_back(impl_->MakePart(begin, units));
  const auto too_small = [&](const Part& part) {
    return part.output_end - part.output_begin < min_output_bytes;
  };
  std::vector<Part> joined;
  const auto join = [&](const Part& part) {
    joined.back() = impl_->MakePart(joined.back().unit_begin, part.unit_end);
  };
  for (const Part& part : parts) {
    if (!joined.empty() && too_small(joined.back())) {
      join(part);
    } else {
      joined.push_back(part);
    }
  }
  if (joined.size() > 1 && too_small(joined.back())) {
    const Part last = joined.back();
    joined.pop_back();
    join(last);
  }
  return joined;
}

absl::Status Compression::CheckPart(const Part& part) const {
  OVPRESS_CHECK(impl_->settled);
  if (part.unit_begin < part.unit_end &&
      part.unit_end <= impl_->layout.units.size() &&
      part == impl_->MakePart(part.unit_begin, part.unit_end)) {
    return absl::OkStatus();
  }
  return absl::InvalidArgumentError(absl::StrCat(
      "units ", part.unit_begin, " to ", part.unit_end, " at bytes ",
      part.output_begin, " to ", part.output_end,
      " are no part of this compression of ", impl_->layout.units.size(),
      " units; it was cut from another model, other options, or by another "
      "version than ",
      EngineVersion()));
}

absl::StatusOr<PartResult> Compression::RunPart(
    ByteSource& bin, const Part& part, ByteSink& out,
    const RunOptions& options) const {
  return CatchOutOfMemory(
      [&] { return RunPartOrThrow(bin, part, out, options); });
}

absl::StatusOr<PartResult> Compression::RunPartOrThrow(
    ByteSource& bin, const Part& part, ByteSink& out,
    const RunOptions& options) const {
  OVPRESS_CHECK(options.executor != nullptr);
  OVPRESS_RETURN_IF_ERROR(CheckPart(part));
  const Impl& impl = *impl_;
  OVPRESS_RETURN_IF_ERROR(impl.model.CheckConstantRanges(bin.size_bytes()));
  WorkList work(impl.WorkOn(options, part.unit_begin, part.unit_end));
  ProgressMeter meter(options, Phase::kCompressing, 0, part.input_bytes,
                      impl.CompressedWeights(part.unit_begin, part.unit_end),
                      [&work] { return work.weights_done(); });
  OVPRESS_RETURN_IF_ERROR(work.RunAvailable(
      bin, bin.size_bytes(), out, *options.executor,
      [&meter](uint64_t bytes) { return meter.Advance(bytes); }));
  meter.Report(true);
  PartResult result{part, {}};
  if (!options.measure_error) return result;
  const std::vector<SquaredSums> errors = work.ErrorsByUnit();
  for (size_t unit = part.unit_begin; unit < part.unit_end; ++unit) {
    result.errors.push_back({errors[unit].error, errors[unit].signal});
  }
  return result;
}

absl::Status Compression::SetPartResults(uint64_t input_bin_bytes,
                                         std::vector<PartResult> results) {
  OVPRESS_CHECK(impl_->settled);
  std::sort(results.begin(), results.end(),
            [](const PartResult& a, const PartResult& b) {
              return a.part.unit_begin < b.part.unit_begin;
            });
  std::vector<SquaredSums> errors;
  uint64_t next = 0;
  bool measured = true;
  for (const PartResult& result : results) {
    const Part& part = result.part;
    OVPRESS_RETURN_IF_ERROR(CheckPart(part));
    if (part.unit_begin != next) {
      return absl::InvalidArgumentError(
          absl::StrCat("units ", next, " to ", part.unit_begin,
                       " are in no part or in two"));
    }
    next = part.unit_end;
    if (result.errors.empty()) measured = false;
    if (!result.errors.empty() &&
        result.errors.size() != part.unit_end - part.unit_begin) {
      return absl::InvalidArgumentError(
          absl::StrCat(result.errors.size(), " errors for the units ",
                       part.unit_begin, " to ", part.unit_end));
    }
    for (const PartResult::Sums& sums : result.errors) {
      errors.push_back({sums.error, sums.signal});
    }
  }
  if (next != impl_->layout.units.size()) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the parts end at unit ", next, " of ", impl_->layout.units.size()));
  }
  impl_->bin_size_bytes = input_bin_bytes;
  impl_->part_errors =
      measured ? std::move(errors) : std::vector<SquaredSums>();
  return absl::OkStatus();
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
  const std::vector<SquaredSums> errors = impl.ErrorsByUnit();
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
