#include "core/analysis/compare.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <optional>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/container/flat_hash_set.h"
#include "absl/strings/str_cat.h"
#include "core/analysis/expression.h"
#include "core/base/mutex.h"
#include "core/base/status_macros.h"
#include "core/engine/graph.h"

namespace ovpress {
namespace {

// Sums are made window by window, windows added up block by block, blocks
// added up in their order: both sizes are part of the result's last bits.
constexpr uint64_t kWindowElements = 1 << 15;
constexpr uint64_t kBlockElements = 1 << 20;

struct FoundWeight {
  WeightExpression expression;
  std::string name;
  std::string reader;
  std::string reader_type;
  size_t port = 0;
  bool is_weight = false;
};

WeightSide SideOf(const Model& model, const FoundWeight& found) {
  WeightSide side;
  side.name = found.name;
  side.storage = found.expression.StorageText();
  side.shape = found.expression.shape();
  absl::flat_hash_set<uint64_t> seen;
  for (const size_t index : found.expression.constants()) {
    const Constant& constant = model.constants()[index];
    if (seen.insert(constant.offset_bytes).second) {
      side.bytes += constant.size_bytes;
    }
  }
  return side;
}

// Walks from the readers down the constant part of the graph.
class Finder {
 public:
  explicit Finder(const Model& model)
      : model_(model), graph_(BuildNodeGraph(model)) {}

  std::vector<FoundWeight> Find() {
    for (const size_t at : graph_.order) {
      if (!graph_.from_parameter[at]) continue;
      const bool is_weight = graph_.kind[at] != NodeKind::kOther;
      VisitInputs(at, is_weight);
    }
    return std::move(found_);
  }

 private:
  void VisitInputs(size_t reader, bool is_weight) {
    const std::vector<Producer>& producers = model_.layers()[reader].producers;
    for (size_t port = 0; port < producers.size(); ++port) {
      const size_t layer = producers[port].layer;
      if (layer == kNone || graph_.from_parameter[layer]) continue;
      Visit(layer, reader, port, is_weight);
    }
  }

  void Visit(size_t layer, size_t reader, size_t port, bool is_weight) {
    std::optional<WeightExpression> expression =
        WeightExpression::Build(model_, layer);
    if (!expression.has_value()) {
      // Something between that is not understood: what lies below is compared,
      // and that operation is its reader.
      if (visited_.insert(layer).second) VisitInputs(layer, is_weight);
      return;
    }
    const Constant& constant = model_.constants()[expression->main_constant()];
    if (!IsFloatingPoint(expression->type()) || constant.layer == kNone) return;
    const auto [at, is_new] =
        seen_.try_emplace(expression->main_constant(), found_.size());
    if (!is_new) {
      found_[at->second].is_weight |= is_weight;
      return;
    }
    found_.push_back({std::move(*expression), graph_.names[constant.layer],
                      graph_.names[reader],
                      std::string(NodeTypeName(model_.layers()[reader])), port,
                      is_weight});
  }

  const Model& model_;
  const NodeGraph graph_;
  absl::flat_hash_set<size_t> visited_;
  absl::flat_hash_map<size_t, size_t> seen_;  // by main constant
  std::vector<FoundWeight> found_;
};

// Positions of the values that occur once; kNone for the others.
template <typename Key>
absl::flat_hash_map<std::string, size_t> Unique(
    const std::vector<FoundWeight>& found, const std::vector<bool>& taken,
    Key key) {
  absl::flat_hash_map<std::string, size_t> out;
  for (size_t i = 0; i < found.size(); ++i) {
    if (taken[i]) continue;
    const auto [at, is_new] = out.try_emplace(key(found[i]), i);
    if (!is_new) at->second = kNone;
  }
  return out;
}

// For each of a's weights its partner in b, or kNone.
std::vector<size_t> MatchWeights(const std::vector<FoundWeight>& a,
                                 const std::vector<FoundWeight>& b) {
  std::vector<size_t> partner(a.size(), kNone);
  std::vector<bool> taken_a(a.size(), false);
  std::vector<bool> taken_b(b.size(), false);
  const auto match_by = [&](auto key) {
    const auto in_a = Unique(a, taken_a, key);
    const auto in_b = Unique(b, taken_b, key);
    for (const auto& [text, i] : in_a) {
      const auto found = in_b.find(text);
      if (i == kNone || found == in_b.end() || found->second == kNone) continue;
      partner[i] = found->second;
      taken_a[i] = true;
      taken_b[found->second] = true;
    }
  };
  match_by([](const FoundWeight& weight) { return weight.name; });
  match_by([](const FoundWeight& weight) {
    return absl::StrCat(weight.port, " ", weight.reader);
  });
  return partner;
}

// Eight sums side by side, added up in a fixed tree.
struct Lanes {
  double v[8] = {};
  double Sum() const {
    return ((v[0] + v[1]) + (v[2] + v[3])) + ((v[4] + v[5]) + (v[6] + v[7]));
  }
};

bool AllFinite(const float* values, size_t count) {
  constexpr uint32_t kExponent = 0x7f800000u;
  bool bad = false;
  for (size_t i = 0; i < count; ++i) {
    bad |= (std::bit_cast<uint32_t>(values[i]) & kExponent) == kExponent;
  }
  return !bad;
}

// Replaces pairs in which either value is not finite by zeros and counts them.
void DropNonFinite(float* a, float* b, size_t count, WeightDistance* distance) {
  for (size_t i = 0; i < count; ++i) {
    const bool bad_a = !std::isfinite(a[i]);
    const bool bad_b = !std::isfinite(b[i]);
    distance->non_finite_a += bad_a;
    distance->non_finite_b += bad_b;
    if (bad_a || bad_b) a[i] = b[i] = 0;
  }
}

WeightDistance DistanceOf(float* a, float* b, size_t count) {
  WeightDistance out;
  if (!AllFinite(a, count) || !AllFinite(b, count)) {
    DropNonFinite(a, b, count, &out);
  }
  Lanes signal;
  Lanes error;
  Lanes signal_b;
  Lanes product;
  float largest[8] = {};
  const auto add = [&](size_t i, size_t lane) {
    const double w = static_cast<double>(a[i]);
    const double d = static_cast<double>(b[i]);
    const float difference = b[i] - a[i];
    const double e = static_cast<double>(difference);
    const float magnitude = std::fabs(difference);
    signal.v[lane] += w * w;
    signal_b.v[lane] += d * d;
    product.v[lane] += w * d;
    error.v[lane] += e * e;
    largest[lane] = magnitude > largest[lane] ? magnitude : largest[lane];
  };
  size_t i = 0;
  for (; i + 8 <= count; i += 8) {
    for (size_t lane = 0; lane < 8; ++lane) add(i + lane, lane);
  }
  for (size_t lane = 0; i < count; ++i, ++lane) add(i, lane);
  out.signal = signal.Sum();
  out.error = error.Sum();
  out.signal_b = signal_b.Sum();
  out.product = product.Sum();
  out.max_abs_error = *std::max_element(largest, largest + 8);
  return out;
}

// One block of one pair.
struct Task {
  size_t weight = 0;  // in ModelComparison::weights
  const WeightExpression* a = nullptr;
  const WeightExpression* b = nullptr;
  uint64_t first = 0;
  uint64_t count = 0;
};

std::string AwqNote(const Model& model, const char* which) {
  const absl::string_view awq = model.document()
                                    .child("net")
                                    .child("rt_info")
                                    .child("nncf")
                                    .child("weight_compression")
                                    .child("awq")
                                    .attribute("value")
                                    .value();
  if (awq != "True") return "";
  return absl::StrCat(
      "the ", which,
      " model was compressed with AWQ, which rescales weights before it rounds "
      "them: such weights differ by their factors too, although the model's "
      "function does not; compare outputs instead");
}

}  // namespace

void WeightDistance::Merge(const WeightDistance& other) {
  signal += other.signal;
  error += other.error;
  signal_b += other.signal_b;
  product += other.product;
  max_abs_error = std::max(max_abs_error, other.max_abs_error);
  non_finite_a += other.non_finite_a;
  non_finite_b += other.non_finite_b;
}

double WeightDistance::relative_error() const {
  if (error == 0) return 0;
  return signal > 0 ? std::sqrt(error / signal)
                    : std::numeric_limits<double>::infinity();
}

double WeightDistance::sqnr_db() const {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (non_finite_a != non_finite_b) return -kInfinity;
  if (error == 0) return kInfinity;
  return signal > 0 ? 10 * std::log10(signal / error) : -kInfinity;
}

double WeightDistance::cosine() const {
  if (signal == 0 && signal_b == 0) return 1;
  if (signal == 0 || signal_b == 0) return 0;
  // Rounding may lift equal vectors above 1.
  return std::clamp(product / std::sqrt(signal * signal_b), -1.0, 1.0);
}

absl::StatusOr<ModelComparison> CompareModels(const Model& a, ByteSource& bin_a,
                                              const Model& b, ByteSource& bin_b,
                                              const CompareOptions& options) {
  OVPRESS_RETURN_IF_ERROR(a.CheckConstantRanges(bin_a.size_bytes()));
  OVPRESS_RETURN_IF_ERROR(b.CheckConstantRanges(bin_b.size_bytes()));
  const std::vector<FoundWeight> in_a = Finder(a).Find();
  const std::vector<FoundWeight> in_b = Finder(b).Find();
  const std::vector<size_t> partner = MatchWeights(in_a, in_b);

  ModelComparison out;
  out.bin_bytes_a = bin_a.size_bytes();
  out.bin_bytes_b = bin_b.size_bytes();
  std::vector<bool> used_b(in_b.size(), false);
  std::vector<Task> tasks;
  uint64_t elements_total = 0;
  for (size_t i = 0; i < in_a.size(); ++i) {
    const FoundWeight& first = in_a[i];
    if (partner[i] == kNone) {
      out.only_in_a.push_back(
          {SideOf(a, first), first.reader, first.is_weight});
      continue;
    }
    const FoundWeight& second = in_b[partner[i]];
    used_b[partner[i]] = true;
    ComparedWeight weight;
    weight.a = SideOf(a, first);
    weight.b = SideOf(b, second);
    weight.reader = first.reader;
    weight.reader_type = first.reader_type;
    weight.is_weight = first.is_weight || second.is_weight;
    weight.elements = first.expression.element_count();
    if (weight.a.shape != weight.b.shape) {
      out.shape_mismatches.push_back(std::move(weight));
      continue;
    }
    for (uint64_t at = 0; at < weight.elements; at += kBlockElements) {
      tasks.push_back({out.weights.size(), &first.expression,
                       &second.expression, at,
                       std::min(kBlockElements, weight.elements - at)});
    }
    elements_total += weight.elements;
    out.weights.push_back(std::move(weight));
  }
  for (size_t i = 0; i < in_b.size(); ++i) {
    if (used_b[i]) continue;
    out.only_in_b.push_back(
        {SideOf(b, in_b[i]), in_b[i].reader, in_b[i].is_weight});
  }

  std::vector<WeightDistance> blocks(tasks.size());
  Mutex mutex;
  uint64_t elements_done = 0;
  OVPRESS_RETURN_IF_ERROR(options.executor->ParallelFor(
      tasks.size(), [&](size_t index) -> absl::Status {
        const Task& task = tasks[index];
        const uint64_t window = std::min(kWindowElements, task.count);
        std::vector<float> left(window);
        std::vector<float> right(window);
        for (uint64_t done = 0; done < task.count; done += window) {
          if (options.stop != nullptr && options.stop->load()) {
            return absl::CancelledError("the comparison was cancelled");
          }
          const uint64_t count = std::min(window, task.count - done);
          OVPRESS_RETURN_IF_ERROR(
              task.a->Evaluate(bin_a, task.first + done, count, left.data()));
          OVPRESS_RETURN_IF_ERROR(
              task.b->Evaluate(bin_b, task.first + done, count, right.data()));
          blocks[index].Merge(DistanceOf(left.data(), right.data(), count));
        }
        if (options.progress) {
          MutexLock lock(&mutex);
          elements_done += task.count;
          options.progress(elements_done, elements_total);
        }
        return absl::OkStatus();
      }));
  for (size_t i = 0; i < tasks.size(); ++i) {
    out.weights[tasks[i].weight].distance.Merge(blocks[i]);
  }
  for (const ComparedWeight& weight : out.weights) {
    if (!weight.is_weight) continue;
    out.total.Merge(weight.distance);
    out.elements += weight.elements;
    out.weight_bytes_a += weight.a.bytes;
    out.weight_bytes_b += weight.b.bytes;
  }
  for (const auto& [model, which] :
       {std::pair<const Model*, const char*>{&a, "first"}, {&b, "second"}}) {
    const std::string note = AwqNote(*model, which);
    if (!note.empty()) out.notes.push_back(note);
    size_t in_bodies = 0;
    for (const Constant& constant : model->constants()) {
      in_bodies += constant.layer == kNone && IsFloatingPoint(constant.type);
    }
    if (in_bodies > 0) {
      out.notes.push_back(
          absl::StrCat(in_bodies, " constants inside bodies (If, Loop) of the ",
                       which, " model were not compared"));
    }
  }
  return out;
}

}  // namespace ovpress
