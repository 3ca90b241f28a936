// One compression from start to end, for every caller: local file, server job,
// stream. Order of calls:
//
//   Create(model xml, options)      plan made; nothing of the .bin read
//   [ComputeScores(source)]         only if needs_scores() (ratio < 1)
//   output_bin_bytes(), OutputXml() known from here on
//   Run(source, sink)               or RunAvailable() again and again while the
//                                   input is still arriving
//   report()
//
// Or shared out among machines that each made the same Compression:
//
//   [ScorePart(source, begin, end) for all of score_count(); SetScores(all)]
//   Cut(count), RunPart(source, part, sink) for each part, anywhere
//   SetPartResults(all), report()
//
// Output bytes depend on the model and the options only: never on the executor,
// the instruction set, the order of arrival or how often it was restarted.
#ifndef OVPRESS_CORE_ENGINE_COMPRESSION_H_
#define OVPRESS_CORE_ENGINE_COMPRESSION_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/base/executor.h"
#include "core/base/io.h"
#include "core/engine/options.h"
#include "core/ir/model.h"

namespace ovpress {

inline constexpr uint64_t kDefaultMemoryBudgetBytes = 256ull << 20;
inline constexpr uint64_t kMinMemoryBudgetBytes = 32ull << 20;

enum class Phase : uint8_t {
  kPlanning,
  kScoring,
  kCompressing,
  kFinishing,
  kDone
};
absl::string_view PhaseName(Phase phase);  // "scoring"

struct Progress {
  Phase phase = Phase::kPlanning;
  uint64_t bytes_done = 0;  // of the input .bin, in this phase
  uint64_t bytes_total = 0;
  uint64_t weights_done = 0;  // compressed weights finished
  uint64_t weights_total = 0;
};

struct RunOptions {
  Executor* executor = nullptr;  // REQUIRED
  uint64_t memory_budget_bytes = kDefaultMemoryBudgetBytes;
  // Set to true from any thread: the run returns kCancelled within one window
  // (milliseconds).
  const std::atomic<bool>* stop = nullptr;
  // Called from compute threads, one at a time, at most every ~50 ms and at
  // each change of phase. Must be quick.
  std::function<void(const Progress&)> progress;
  // Measure relative error and SQNR of each weight for the report (costs a
  // pass over the codes).
  bool measure_error = false;
};

// One line of the report: what became of one constant.
struct WeightReport {
  std::string name;       // of the constant
  std::string node;       // of its first user
  std::string node_type;  // "MatMul"
  std::vector<uint64_t> shape;
  std::string from;  // "f16"
  std::string to;    // mode name, or "f32"... if kept
  std::string
      reason;  // why kept or why this mode: "primary", "backup", "ignored" ...
  int64_t group_size = -1;
  uint64_t bytes_before = 0;
  uint64_t bytes_after = 0;  // codes, scales, zero points, tables
  uint64_t elements = 0;
  bool has_error = false;
  double relative_error = 0;  // ||d - w|| / ||w||
  double sqnr_db = 0;         // 10 log10(||w||^2 / ||d - w||^2)
  bool has_score = false;
  double score = 0;  // sensitivity, ratio < 1 only
};

struct Report {
  std::vector<WeightReport> weights;
  uint64_t bin_bytes_before = 0;
  uint64_t bin_bytes_after = 0;
  uint64_t weight_elements = 0;  // of compressed weights
  double bits_per_weight = 0;    // of compressed weights, scales included
  double primary_share = 0;      // of ratio-defining elements, 0..1
  std::vector<std::string> warnings;
  std::string ToJson() const;   // documented in docs/report.md
  std::string ToTable() const;  // for people
};

// A piece of the work whose output lies in one range of the .bin. The same for
// everybody with the same model, options, scores and engine version.
struct Part {
  uint64_t unit_begin = 0;  // positions in the engine's layout
  uint64_t unit_end = 0;
  uint64_t output_begin = 0;  // of the output .bin
  uint64_t output_end = 0;
  uint64_t input_bytes = 0;  // read and turned into output: the cost
  friend bool operator==(const Part&, const Part&) = default;
};

// What a part measured, for the report.
struct PartResult {
  struct Sums {
    double error = 0;   // ||d - w||^2
    double signal = 0;  // ||w||^2
  };
  Part part;
  std::vector<Sums> errors;  // by unit of the part; empty if not measured
};

// Sizes known from the .xml alone. With ratio < 1 the choice is open until the
// weights were scored, hence a range; min == max otherwise.
struct Estimate {
  uint64_t input_bin_bytes = 0;  // that the constants use
  uint64_t output_bin_bytes_min = 0;
  uint64_t output_bin_bytes_max = 0;
  uint64_t peak_memory_bytes = 0;  // working memory of a run under its budget
  bool reads_weights_twice = false;
  std::vector<WeightReport> weights;
};

class Compression {
 public:
  // kInvalidArgument (options, or NNCF refuses this model with them), kDataLoss
  // (model), kUnimplemented. Here and below kResourceExhausted if memory runs
  // out.
  static absl::StatusOr<std::unique_ptr<Compression>> Create(
      std::string xml, const CompressionOptions& options);
  ~Compression();

  const Model& model() const;
  // The plan as readable text, one line per weight, stable between releases but
  // for additions: what --dry-run prints and the snapshot tests compare.
  std::string PlanText() const;
  Estimate EstimateSizes() const;

  bool needs_scores() const;
  absl::Status ComputeScores(ByteSource& bin, const RunOptions& options);

  // The same in pieces. ScorePart() gives the scores of the weights [begin,
  // end) among score_count(); they are the same doubles whatever the pieces,
  // and must reach SetScores(), which takes all of them, unrounded.
  // kInvalidArgument if the range or the number of scores does not fit this
  // model. ScorePart() may run several times at once.
  size_t score_count() const;
  // Input that scoring them reads: the cost.
  uint64_t ScoringBytes(size_t begin, size_t end) const;
  absl::StatusOr<std::vector<double>> ScorePart(
      ByteSource& bin, size_t begin, size_t end,
      const RunOptions& options) const;
  absl::Status SetScores(const std::vector<double>& scores);

  // REQUIRES: !needs_scores() or ComputeScores() or SetScores() done.
  uint64_t output_bin_bytes() const;
  std::string OutputXml() const;

  absl::Status Run(ByteSource& bin, ByteSink& out, const RunOptions& options);

  // Does all work whose input lies below `available_bytes` and was not done
  // yet. Call from one thread at a time; `available_bytes` never decreases; the
  // last call has the full size. output_prefix_bytes(): output below it is
  // final and was written to the sink.
  absl::Status RunAvailable(ByteSource& bin, uint64_t available_bytes,
                            ByteSink& out, const RunOptions& options);
  uint64_t output_prefix_bytes() const;
  // Input below it is read no more. Not while a run is under way.
  uint64_t input_needed_from() const;

  // At most `count` parts (> 0) of about equal cost that follow one another and
  // cover the output; a weight is never cut. Parts with less output than
  // `min_output_bytes` are joined with their neighbours. REQUIRES: as
  // output_bin_bytes().
  std::vector<Part> Cut(size_t count, uint64_t min_output_bytes = 0) const;
  // Writes exactly the bytes [output_begin, output_end) that Run() would write
  // there. May run several times at once, beside Run() too. AWQ's factors that
  // the part needs are computed by it, from whole weights that may lie outside
  // of it. kInvalidArgument if the part is not of this compression. REQUIRES:
  // as output_bin_bytes().
  absl::StatusOr<PartResult> RunPart(ByteSource& bin, const Part& part,
                                     ByteSink& out,
                                     const RunOptions& options) const;
  // What report() says then is what it says after Run(), but that the errors'
  // last digits may differ. kInvalidArgument unless the parts, in any order,
  // cover the whole output once and fit this compression.
  absl::Status SetPartResults(uint64_t input_bin_bytes,
                              std::vector<PartResult> results);

  // REQUIRES: Run() done, or SetPartResults().
  Report report() const;

 private:
  Compression();
  static absl::StatusOr<std::unique_ptr<Compression>> CreateOrThrow(
      std::string xml, const CompressionOptions& options);
  absl::StatusOr<std::vector<double>> ScorePartOrThrow(
      ByteSource& bin, size_t begin, size_t end,
      const RunOptions& options) const;
  absl::StatusOr<PartResult> RunPartOrThrow(ByteSource& bin, const Part& part,
                                            ByteSink& out,
                                            const RunOptions& options) const;
  absl::Status CheckPart(const Part& part) const;
  absl::Status RunAvailableOrThrow(ByteSource& bin, uint64_t available_bytes,
                                   ByteSink& out, const RunOptions& options);
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

// The local job: reads in_xml and its .bin (same name, extension .bin, unless
// `in_bin` is given), writes out_xml and its .bin whole or not at all.
struct FileJob {
  std::string in_xml;
  std::string in_bin;   // empty: beside in_xml
  std::string out_xml;  // must end in .xml
};
// "NAME.xml" -> "NAME.bin".
std::string BinPathOf(const std::string& xml_path);
// kInvalidArgument unless the name ends in .xml.
absl::Status CheckOutputName(const std::string& out_xml);
// The same, and that no output is an input, by whatever name.
absl::Status CheckFileNames(const FileJob& job);
absl::StatusOr<Report> CompressFiles(const FileJob& job,
                                     const CompressionOptions& options,
                                     const RunOptions& run);

// The version string of the engine; part of the result cache's key.
absl::string_view EngineVersion();

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_COMPRESSION_H_
