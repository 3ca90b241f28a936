// How far the weights of one model are from those of another: the original and
// its compressed form, or two compressed forms.
//
// For a weight w of the first model and d of the second, over all elements:
//   relative error  ||d - w|| / ||w||
//   SQNR            10 log10(||w||^2 / ||d - w||^2) in dB, the ratio of signal
//                   to quantization noise (Oppenheim and Schafer, Discrete-Time
//                   Signal Processing, section 4.8.3, with sums for variances)
//   cosine          <w, d> / (||w|| ||d||)
//   max abs error   the largest |d - w|
// Differences are taken in f32, squares and sums in f64, in an order that is
// fixed: results do not depend on threads. Values are OpenVINO's in f32
// (expression.h); docs/report.md has the same two first formulas for what
// `compress` measures.
#ifndef OVPRESS_CORE_ANALYSIS_COMPARE_H_
#define OVPRESS_CORE_ANALYSIS_COMPARE_H_

#include <atomic>
#include <cstdint>
#include <functional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/base/executor.h"
#include "core/base/io.h"
#include "core/ir/model.h"

namespace ovpress {

// One weight of one model.
struct WeightSide {
  std::string name;     // of the constant
  std::string storage;  // "f16", "u4 g64"
  std::vector<uint64_t> shape;
  uint64_t bytes = 0;  // codes, scales, zero points, tables
};

// Values that are not finite in both are left out of all sums.
struct WeightDistance {
  double signal = 0;    // ||w||^2
  double error = 0;     // ||d - w||^2
  double signal_b = 0;  // ||d||^2
  double product = 0;   // <w, d>
  float max_abs_error = 0;
  uint64_t non_finite_a = 0;
  uint64_t non_finite_b = 0;
  bool equal() const { return error == 0 && non_finite_a == non_finite_b; }
  double relative_error() const;
  double sqnr_db() const;  // +inf if equal, -inf if w is 0 or d is not finite
  double cosine() const;   // 1 if both are 0

  void Merge(const WeightDistance& other);
};

struct ComparedWeight {
  WeightSide a;
  WeightSide b;
  std::string reader;       // the operation that reads it, in the first model
  std::string reader_type;  // "MatMul"
  bool is_weight = false;  // of a MatMul, Gather, convolution ...; else a bias,
                           // a norm's factor or the like
  uint64_t elements = 0;
  WeightDistance distance;
};

struct UnmatchedWeight {
  WeightSide weight;
  std::string reader;
  bool is_weight = false;
};

struct ModelComparison {
  std::vector<ComparedWeight> weights;  // in the first model's graph order
  // Of one name or one reader, but of different shapes.
  std::vector<ComparedWeight> shape_mismatches;
  std::vector<UnmatchedWeight> only_in_a;
  std::vector<UnmatchedWeight> only_in_b;
  WeightDistance total;  // over the entries with is_weight
  uint64_t bin_bytes_a = 0;
  uint64_t bin_bytes_b = 0;
  uint64_t elements = 0;  // of the entries with is_weight
  uint64_t weight_bytes_a = 0;
  uint64_t weight_bytes_b = 0;
  std::vector<std::string> notes;  // for people
};

struct CompareOptions {
  Executor* executor = nullptr;  // REQUIRED
  // Set to true from any thread: kCancelled within milliseconds.
  const std::atomic<bool>* stop = nullptr;
  // Elements done and to do; called from compute threads, one at a time.
  std::function<void(uint64_t, uint64_t)> progress;
};

// Matches the floating-point values that operations which depend on the model's
// inputs read from constants: first by the name of the constant, where it is
// unique in both, then by the reading operation and its input. Constants inside
// bodies (If, Loop) are not compared. Memory: some MiB for each thread.
// kDataLoss if a .bin is too short.
absl::StatusOr<ModelComparison> CompareModels(const Model& a, ByteSource& bin_a,
                                              const Model& b, ByteSource& bin_b,
                                              const CompareOptions& options);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ANALYSIS_COMPARE_H_
