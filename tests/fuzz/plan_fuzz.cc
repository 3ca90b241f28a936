// The planner: model and options from bytes, no weight read. What it accepts
// has a layout without gaps or overlaps and an XML that our own reader takes.
#include "core/engine/compression.h"
#include "core/engine/layout.h"
#include "core/engine/plan.h"
#include "core/engine/rewrite.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ovpress;  // NOLINT(google-build-using-namespace): one
                            // function
  const fuzz::ModelInput input =
      fuzz::SplitModelInput({reinterpret_cast<const char*>(data), size});
  const CompressionOptions options = fuzz::OptionsFromBytes(input.options);
  auto created = Compression::Create(input.xml, options);
  if (!created.ok()) {
    OVPRESS_FUZZ_ASSERT(!created.status().message().empty(), "no message");
    OVPRESS_FUZZ_ASSERT(!absl::IsInternal(created.status()),
                        created.status().ToString());
    return 0;
  }
  Compression& compression = **created;
  (void)compression.PlanText();
  const Estimate estimate = compression.EstimateSizes();
  OVPRESS_FUZZ_ASSERT(
      estimate.output_bin_bytes_min <= estimate.output_bin_bytes_max, "");
  if (compression.needs_scores()) {
    // Any scores will do: plan again by hand and settle the choice.
    auto plan = MakePlan(compression.model(), options);
    OVPRESS_FUZZ_ASSERT(plan.ok(), plan.status().ToString());
    std::vector<double> scores(plan->ratio_defining.size());
    for (size_t i = 0; i < scores.size(); ++i) {
      scores[i] = static_cast<double>((i * 7919) % 97);
    }
    ApplyScores(scores, &*plan);
    if (!FinishPlan(compression.model(), &*plan).ok()) return 0;
    const auto layout = MakeLayout(compression.model(), *plan);
    if (!layout.ok()) return 0;
    const auto again =
        Model::Parse(RewriteXml(compression.model(), *plan, *layout));
    OVPRESS_FUZZ_ASSERT(again.ok(), again.status().ToString());
    return 0;
  }
  const auto again = Model::Parse(compression.OutputXml());
  OVPRESS_FUZZ_ASSERT(again.ok(), again.status().ToString());
  OVPRESS_FUZZ_ASSERT(
      again->CheckConstantRanges(compression.output_bin_bytes()).ok(),
      again->CheckConstantRanges(compression.output_bin_bytes()).ToString());
  return 0;
}
