#include "core/engine/scoring.h"

#include <algorithm>
#include <limits>
#include <mutex>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/quant/kernels.h"

namespace ovpress {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// Long rows are summed in parts of this many elements: part of the definition
// of the result, so it never follows the memory budget.
constexpr uint64_t kRowPartElements = 1 << 20;

// A piece of work: rows of a weight whose scale runs along contiguous memory,
// or one whole weight of another layout.
struct ScoreItem {
  size_t slot = 0;  // in plan->ratio_defining
  bool rows = false;
  uint64_t first = 0;
  uint64_t last = 0;
};

class Scorer {
 public:
  explicit Scorer(const ScoringContext& context) : c_(context) {}

  absl::StatusOr<std::vector<double>> Run() {
    MakeItems();
    errors_.assign(c_.plan->ratio_defining.size(), 0.0f);
    OVPRESS_RETURN_IF_ERROR(c_.executor->ParallelFor(
        items_.size(), [this](size_t i) { return RunItem(items_[i]); }));
    std::vector<double> scores;
    for (size_t slot = c_.begin; slot < c_.end; ++slot) {
      scores.push_back(SensitivityScore(errors_[slot], ConstantOf(slot).type));
    }
    return scores;
  }

 private:
  const PlannedWeight& WeightOf(size_t slot) const {
    return c_.plan->weights[c_.plan->ratio_defining[slot]];
  }
  const Constant& ConstantOf(size_t slot) const {
    return c_.model->constants()[WeightOf(slot).constant];
  }
  FoldedShape ShapeOf(size_t slot) const {
    return Fold(ConstantOf(slot).shape, WeightOf(slot).reduction_axes, -1);
  }
  static bool IsRows(const FoldedShape& shape) {
    return shape.inner == 1 && shape.trailing == 1;
  }

  void MakeItems() {
    for (size_t slot = c_.begin; slot < c_.end; ++slot) {
      const FoldedShape shape = ShapeOf(slot);
      const Constant& constant = ConstantOf(slot);
      if (constant.element_count == 0) continue;
      const uint64_t row_bytes =
          shape.reduce * static_cast<uint64_t>(BitsPerElement(constant.type)) /
          8;
      if (!IsRows(shape)) {
        items_.push_back({slot, false, 0, shape.outer});
        continue;
      }
      const uint64_t step = std::max<uint64_t>(
          1, c_.window_bytes / std::max<uint64_t>(1, row_bytes));
      for (uint64_t row = 0; row < shape.outer; row += step) {
        items_.push_back({slot, true, row, std::min(shape.outer, row + step)});
      }
    }
  }

  absl::Status RunItem(const ScoreItem& item) {
    const Constant& constant = ConstantOf(item.slot);
    const WeightReader reader(c_.bin, &constant, {});
    const Numerics numerics = constant.element_count >= kOpenVinoPathMinElements
                                  ? Numerics::kOpenVino
                                  : Numerics::kNumPy;
    absl::StatusOr<float> error = 0.0f;
    const FoldedShape shape = ShapeOf(item.slot);
    if (!item.rows) {
      error = ScoreColumns(item.slot, reader, shape, numerics);
    } else if (shape.reduce * reader.element_size() > 8 * c_.window_bytes) {
      error = ScoreLongRow(item.slot, reader, shape, item.first);
    } else {
      error = ScoreRowBlock(item.slot, reader, shape, numerics, item);
    }
    if (!error.ok()) return error.status();
    std::lock_guard<std::mutex> lock(mutex_);
    errors_[item.slot] = std::max(errors_[item.slot], *error);
    return absl::OkStatus();
  }

  absl::Status CheckFinite(size_t slot, bool finite) const {
    if (finite || c_.plan->options.allow_non_finite) return absl::OkStatus();
    return NotFiniteError(WeightOf(slot).name);
  }

  absl::StatusOr<float> ScoreRowBlock(size_t slot, const WeightReader& reader,
                                      const FoldedShape& shape,
                                      Numerics numerics,
                                      const ScoreItem& item) {
    const uint64_t rows = item.last - item.first;
    const uint64_t count = rows * shape.reduce;
    ScopedBuffer data(c_.pool, count * reader.element_size());
    OVPRESS_RETURN_IF_ERROR(
        reader.Read(item.first * shape.reduce, count, data.data()));
    const ElementType type = ConstantOf(slot).type;
    std::vector<float> lo(rows), hi(rows);
    OVPRESS_RETURN_IF_ERROR(
        CheckFinite(slot, RangeOfRows(type, data.data(), rows, shape.reduce,
                                      lo.data(), hi.data())));
    const float error = ScoreRows(type, numerics, data.data(), rows,
                                  shape.reduce, lo.data(), hi.data());
    OVPRESS_RETURN_IF_ERROR(c_.advance(count * reader.element_size()));
    return error;
  }

  // A row that is too long for one window: two passes over its parts.
  absl::StatusOr<float> ScoreLongRow(size_t slot, const WeightReader& reader,
                                     const FoldedShape& shape, uint64_t row) {
    const ElementType type = ConstantOf(slot).type;
    ScopedBuffer data(c_.pool, kRowPartElements * reader.element_size());
    float lo = kInfinity;
    float hi = -kInfinity;
    double sum = 0;
    for (const bool second : {false, true}) {
      for (uint64_t at = 0; at < shape.reduce; at += kRowPartElements) {
        const uint64_t count = std::min(kRowPartElements, shape.reduce - at);
        OVPRESS_RETURN_IF_ERROR(
            reader.Read(row * shape.reduce + at, count, data.data()));
        if (second) {
          sum += RowErrorSum(type, data.data(), count, lo, hi);
          OVPRESS_RETURN_IF_ERROR(c_.advance(count * reader.element_size()));
          continue;
        }
        float part_lo = kInfinity;
        float part_hi = -kInfinity;
        OVPRESS_RETURN_IF_ERROR(CheckFinite(
            slot,
            RangeOfRows(type, data.data(), 1, count, &part_lo, &part_hi)));
        lo = std::min(lo, part_lo);
        hi = std::max(hi, part_hi);
        OVPRESS_RETURN_IF_ERROR(c_.advance(0));
      }
    }
    return static_cast<float>(sum / static_cast<double>(shape.reduce));
  }

  // Scales run down the rows. One weight is one item: f64 sums are added in the
  // order of the rows, whatever the window.
  absl::StatusOr<float> ScoreColumns(size_t slot, const WeightReader& reader,
                                     const FoldedShape& shape,
                                     Numerics numerics) {
    const ElementType type = ConstantOf(slot).type;
    const uint64_t columns = shape.inner;
    const uint64_t row_bytes = columns * reader.element_size();
    const uint64_t rows_per_window = std::clamp<uint64_t>(
        c_.window_bytes / std::max<uint64_t>(1, row_bytes), 1, shape.reduce);
    ScopedBuffer data(c_.pool, rows_per_window * row_bytes);
    float error = 0;
    for (uint64_t outer = 0; outer < shape.outer; ++outer) {
      std::vector<float> lo(columns, kInfinity), hi(columns, -kInfinity);
      std::vector<double> sum(columns, 0.0);
      for (const bool second : {false, true}) {
        for (uint64_t row = 0; row < shape.reduce; row += rows_per_window) {
          const uint64_t rows = std::min(rows_per_window, shape.reduce - row);
          const uint64_t first = (outer * shape.reduce + row) * columns;
          // What fits one window is read once.
          if (!second || rows_per_window < shape.reduce) {
            OVPRESS_RETURN_IF_ERROR(
                reader.Read(first, rows * columns, data.data()));
          }
          if (second) {
            AddColumnErrors(type, numerics, data.data(), rows, columns,
                            lo.data(), hi.data(), sum.data());
            OVPRESS_RETURN_IF_ERROR(c_.advance(rows * row_bytes));
          } else {
            OVPRESS_RETURN_IF_ERROR(CheckFinite(
                slot, RangeOfColumns(type, data.data(), rows, columns,
                                     lo.data(), hi.data())));
            OVPRESS_RETURN_IF_ERROR(c_.advance(0));
          }
        }
      }
      error = std::max(error,
                       ScoreFromColumnSums(sum.data(), columns, shape.reduce));
    }
    return error;
  }

  const ScoringContext& c_;
  std::vector<ScoreItem> items_;
  std::mutex mutex_;
  std::vector<float> errors_;
};

}  // namespace

absl::Status NotFiniteError(absl::string_view weight_name) {
  return absl::InvalidArgumentError(absl::StrCat(
      "weight '", weight_name,
      "' has NaN or infinite values; its compressed form would be wrong. "
      "Ignore this layer, repair the model, or allow non-finite weights"));
}

absl::StatusOr<std::vector<double>> ScoreWeights(
    const ScoringContext& context) {
  return Scorer(context).Run();
}

uint64_t ScoringBytes(const Model& model, const Plan& plan, size_t begin,
                      size_t end) {
  uint64_t bytes = 0;
  for (size_t slot = begin; slot < end; ++slot) {
    const size_t index = plan.ratio_defining[slot];
    bytes += model.constants()[plan.weights[index].constant].size_bytes;
  }
  return bytes;
}

}  // namespace ovpress
