#include "core/engine/work.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <mutex>
#include <optional>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "core/engine/awq.h"
#include "core/engine/packing.h"
#include "core/engine/scoring.h"

namespace ovpress {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
// A region (one group, or the columns that share rows) is read whole if it has
// at most this many windows; larger ones are read twice.
constexpr uint64_t kRegionWindowsMax = 8;

enum class ItemKind : uint8_t {
  kCopy,       // bytes [first, last) of the unit
  kScaleCopy,  // elements [first, last) of a float weight that AWQ scales
  kRows,       // groups [first, last) that are contiguous in memory
  kRegions,    // regions [first, last): `reduce` rows of columns
  kWhole,      // regions too large for a window: two passes over each
  kRange,      // nvfp4: the range of the whole weight
  kAwq,        // the factors of Plan::awq[first]
};

struct Item {
  ItemKind kind = ItemKind::kCopy;
  bool exclusive = false;  // runs alone; its own loops are parallel
  uint32_t unit = 0;
  uint64_t first = 0;
  uint64_t last = 0;
  uint64_t need_begin = 0;  // reads no input below; items before it may
  uint64_t need_end = 0;    // input bytes that must be there
  uint64_t out_end = 0;   // output is final up to here once this and all
                          // earlier items are done
};

// Sequential packing of codes whose groups do not end on byte boundaries.
class CodeAppender {
 public:
  CodeAppender(ElementType type, ByteSink* out, uint64_t offset)
      : type_(type), out_(out), offset_(offset) {}

  absl::Status Append(const std::byte* packed, size_t count) {
    UnpackCodes(type_, packed, count, &pending_);
    return pending_.size() >= kFlush ? Flush(pending_.size() / 8 * 8)
                                     : absl::OkStatus();
  }
  absl::Status AppendUnpacked(const uint8_t* codes, size_t count) {
    pending_.insert(pending_.end(), codes, codes + count);
    return pending_.size() >= kFlush ? Flush(pending_.size() / 8 * 8)
                                     : absl::OkStatus();
  }
  absl::Status Finish() { return Flush(pending_.size()); }

 private:
  static constexpr size_t kFlush = 1 << 18;

  absl::Status Flush(size_t count) {
    if (count == 0) return absl::OkStatus();
    std::vector<std::byte> packed(*PackedSizeBytes(type_, count));
    PackCodes(type_, pending_.data(), count, packed.data());
    OVPRESS_RETURN_IF_ERROR(out_->WriteAt(offset_, packed));
    offset_ += packed.size();
    pending_.erase(pending_.begin(),
                   pending_.begin() + static_cast<ptrdiff_t>(count));
    return absl::OkStatus();
  }

  const ElementType type_;
  ByteSink* const out_;
  uint64_t offset_;
  std::vector<uint8_t> pending_;
};

uint64_t RoundUp(uint64_t value, uint64_t multiple) {
  return (value + multiple - 1) / multiple * multiple;
}

}  // namespace

uint64_t WindowBytes(uint64_t memory_budget_bytes, int parallelism) {
  // Each thread holds a window, its codes and a second buffer; half the budget
  // is left for the document and the libraries.
  const uint64_t share = memory_budget_bytes /
                         (8 * static_cast<uint64_t>(std::max(1, parallelism)));
  return std::clamp<uint64_t>(share / 4096 * 4096, 64 << 10, 1 << 20);
}

struct WorkList::Impl {
  explicit Impl(const WorkContext& context) : c(context) {}

  // What never changes during a run of one unit.
  struct UnitState {
    Encoding encoding;
    FoldedShape shape;
    ElementType code_type = ElementType::kDynamic;
    ElementType zero_point_type = ElementType::kDynamic;
    bool zero_points = false;
    uint64_t groups = 0;
    float second_order_scale = 0;
    size_t scale_size = 2;  // bytes of one stored scale
    std::vector<ScaleStep> steps;
    bool has_weight = false;
  };

  const Model& model() const { return *c.model; }
  const Plan& plan() const { return *c.plan; }
  const Unit& UnitAt(size_t unit) const { return c.layout->units[unit]; }
  const Constant& ConstantOf(size_t unit) const {
    return model().constants()[UnitAt(unit).constant];
  }

  void PrepareUnits();
  // Indices in Plan::weights.
  static std::vector<size_t> TargetsOf(const AwqScale& match);
  void PrepareAwq();
  bool Has(size_t unit) const {
    return unit >= c.unit_begin && unit < c.unit_end;
  }
  std::vector<bool> AwqNeeded() const;
  void MakeItems();
  void AddCopyItems(uint32_t unit);
  void AddCompressItems(uint32_t unit);
  void AddItem(Item item);

  absl::Status WriteLiterals();
  absl::Status RunItem(size_t index);
  absl::Status RunCopy(const Item& item);
  absl::Status RunScaleCopy(const Item& item);
  absl::Status RunRows(const Item& item, size_t index);
  absl::Status RunRegions(const Item& item, size_t index);
  absl::Status RunRange(const Item& item);
  absl::Status RunWhole(const Item& item, size_t index);
  absl::Status RunAwq(const Item& item);
  absl::Status WholeRegion(uint32_t unit, uint64_t region, size_t index,
                           CodeAppender* appender, std::vector<float>* step,
                           std::vector<uint8_t>* zero_point);
  absl::Status WriteGroups(const Unit& unit, const UnitState& state,
                           uint64_t first, uint64_t count, const float* step,
                           const uint8_t* zero_point);
  absl::Status CheckFinite(uint32_t unit, bool finite) const;
  void Finish(size_t index);

  WeightReader ReaderOf(size_t unit) const {
    return WeightReader(bin, &ConstantOf(unit), states[unit].steps);
  }
  // Scales widened back from their stored form, for the error measure.
  void MeasureRows(const UnitState& state, const void* source, uint64_t rows,
                   uint64_t length, const float* step,
                   const uint8_t* zero_point, const std::byte* codes,
                   size_t index);
  void AddError(size_t index, const SquaredSums& sums) {
    std::lock_guard<std::mutex> lock(mutex);
    errors[index].error += sums.error;
    errors[index].signal += sums.signal;
  }

  const WorkContext c;
  uint64_t window = 1 << 20;
  std::vector<UnitState> states;
  std::vector<std::vector<float>> awq_factors;   // sc, by Plan::awq
  std::vector<std::vector<float>> awq_inverses;  // 1 / sc
  std::vector<size_t> awq_unit;                  // unit of the target
  // Steps before this match, of the target and those scaled together with it.
  std::vector<std::vector<std::vector<ScaleStep>>> awq_before;

  std::vector<Item> items;
  std::vector<uint32_t> items_left;  // by unit
  size_t next_item = 0;
  bool literals_written = false;
  uint64_t need_so_far = 0;
  BufferPool& pool = BufferPool::Shared();

  // For the length of one RunAvailable.
  ByteSource* bin = nullptr;
  ByteSink* out = nullptr;
  Executor* executor = nullptr;
  const std::function<absl::Status(uint64_t)>* advance = nullptr;

  mutable std::mutex mutex;
  std::vector<bool> done;
  size_t done_prefix = 0;
  std::atomic<uint64_t> output_prefix{0};
  std::atomic<uint64_t> weights_done{0};
  std::vector<SquaredSums> errors;  // by item; empty if not measured
};

void WorkList::Impl::PrepareUnits() {
  states.resize(c.layout->units.size());
  for (size_t i = 0; i < states.size(); ++i) {
    const Unit& unit = UnitAt(i);
    UnitState& state = states[i];
    if (unit.kind != UnitKind::kCompress) continue;
    const PlannedWeight& weight = plan().weights[unit.weight];
    const WeightConfig& config = *weight.config;
    const ModeTraits& traits = ModeTraitsOf(config.mode);
    const Constant& constant = ConstantOf(i);
    state.has_weight = true;
    state.encoding.mode = config.mode;
    state.encoding.source_type = constant.type;
    state.encoding.codebook = CodebookOf(plan().options, config.mode);
    state.encoding.numerics =
        traits.has_openvino_path &&
                constant.element_count >= kOpenVinoPathMinElements
            ? Numerics::kOpenVino
            : Numerics::kNumPy;
    state.shape =
        Fold(constant.shape, weight.reduction_axes, config.group_size);
    state.code_type = CodeTypeOf(plan().options, config.mode);
    state.zero_points = traits.zero_point_per_group;
    state.zero_point_type = traits.code_type;
    state.groups = state.shape.groups();
    state.scale_size =
        static_cast<size_t>(BitsPerElement(traits.scale_type)) / 8;
  }
}

std::vector<size_t> WorkList::Impl::TargetsOf(const AwqScale& match) {
  std::vector<size_t> targets = {match.weight};
  targets.insert(targets.end(), match.together.begin(), match.together.end());
  return targets;
}

// Which multiplications a constant undergoes, in the order of the matches.
void WorkList::Impl::PrepareAwq() {
  const std::vector<AwqScale>& matches = plan().awq;
  awq_factors.resize(matches.size());
  awq_inverses.resize(matches.size());
  awq_before.resize(matches.size());
  for (size_t k = 0; k < matches.size(); ++k) {
    const AwqScale& match = matches[k];
    const auto unit_of = [&](size_t constant) {
      return c.layout->unit_of_constant[constant];
    };
    awq_unit.push_back(unit_of(plan().weights[match.weight].constant));
    // One factor for each index of `axis`, and for each batch unless shared.
    const auto step_of = [&](const std::vector<float>* factors,
                             const Constant& scaled, size_t axis) {
      ScaleStep step{factors, std::vector<uint64_t>(scaled.shape.size(), 0)};
      step.strides[axis] = 1;
      if (scaled.shape.size() == 3 && !match.shared_over_batch) {
        step.strides[0] = scaled.shape[axis];
      }
      return step;
    };
    for (const size_t index : TargetsOf(match)) {
      const PlannedWeight& weight = plan().weights[index];
      std::vector<ScaleStep>& steps = states[unit_of(weight.constant)].steps;
      awq_before[k].push_back(steps);
      steps.push_back(step_of(&awq_factors[k],
                              model().constants()[weight.constant],
                              static_cast<size_t>(weight.reduction_axes[0])));
    }
    if (match.merged_constant != kNone) {
      ScaleStep step =
          step_of(&awq_inverses[k], model().constants()[match.merged_constant],
                  static_cast<size_t>(match.merged_axis));
      step.in_f64 = true;
      states[unit_of(match.merged_constant)].steps.push_back(std::move(step));
    }
  }
}

void WorkList::Impl::AddItem(Item item) {
  need_so_far = std::max(need_so_far, item.need_end);
  item.need_end = need_so_far;
  ++items_left[item.unit];
  items.push_back(item);
}

void WorkList::Impl::AddCopyItems(uint32_t unit_index) {
  const Unit& unit = UnitAt(unit_index);
  const bool scaled = unit.kind == UnitKind::kScale;
  // Copies need no computing: larger pieces cost less.
  const uint64_t element =
      scaled
          ? static_cast<uint64_t>(BitsPerElement(ConstantOf(unit_index).type)) /
                8
          : 1;
  const uint64_t count =
      scaled ? ConstantOf(unit_index).element_count : unit.source.size;
  const uint64_t step = std::max<uint64_t>(1, window / element);
  uint64_t at = 0;
  do {
    Item item;
    item.kind = scaled ? ItemKind::kScaleCopy : ItemKind::kCopy;
    item.unit = unit_index;
    item.first = at;
    item.last = std::min(count, at + step);
    item.need_begin = unit.source.offset + item.first * element;
    item.need_end = unit.source.offset + item.last * element;
    item.out_end = unit.codes.offset + item.last * element;
    AddItem(item);
    at += step;
  } while (at < count);
}

void WorkList::Impl::AddCompressItems(uint32_t unit_index) {
  const Unit& unit = UnitAt(unit_index);
  const UnitState& state = states[unit_index];
  const Constant& constant = ConstantOf(unit_index);
  const FoldedShape& shape = state.shape;
  const uint64_t element =
      static_cast<uint64_t>(BitsPerElement(constant.type)) / 8;
  const uint64_t source_end = unit.source.offset + unit.source.size;
  Item item;
  item.unit = unit_index;
  item.need_begin = unit.source.offset;
  item.need_end = source_end;
  item.out_end = unit.codes.offset;
  if (unit.kind == UnitKind::kCompress && state.encoding.mode == Mode::kNvfp4) {
    item.kind = ItemKind::kRange;
    item.exclusive = true;
    AddItem(item);
  }
  const bool rows = shape.inner == 1 && shape.trailing == 1;
  const uint64_t region =
      shape.reduce * shape.inner * shape.trailing;  // elements
  const uint64_t regions = shape.outer;
  const uint64_t region_bytes = region * element;
  // Blocks of this many regions start on byte boundaries of codes and zero
  // points, whatever the packing.
  const uint64_t groups_per_region = rows ? 1 : shape.inner;
  const bool aligned = region % 8 == 0 && groups_per_region % 2 == 0;
  const uint64_t align = aligned ? 1 : 8;
  const uint64_t limit = kRegionWindowsMax * window;
  const uint64_t block = std::min(regions, align) * region_bytes;
  if (region_bytes > 0 && block > limit) {
    item.kind = ItemKind::kWhole;
    item.exclusive = true;
    item.first = 0;
    item.last = regions;
    AddItem(item);
    return;
  }
  // Regions without elements have scales all the same; these count then.
  constexpr uint64_t kGroupBytes = 16;
  const uint64_t piece = region_bytes > 0 ? region_bytes : kGroupBytes;
  const uint64_t step = RoundUp(std::max<uint64_t>(1, window / piece), align);
  uint64_t at = 0;
  do {
    item.kind = rows ? ItemKind::kRows : ItemKind::kRegions;
    item.exclusive = false;
    item.first = at;
    item.last = std::min(regions, at + step);
    item.need_begin = unit.source.offset + item.first * region_bytes;
    item.need_end = unit.source.offset + item.last * region_bytes;
    const uint64_t codes_end = item.last * region;
    item.out_end =
        unit.codes.offset +
        std::min(unit.codes.size, *PackedSizeBytes(state.code_type, codes_end));
    AddItem(item);
    at += step;
  } while (at < regions);
}

// Which of Plan::awq have factors that these units, or the factors of another
// such match, are multiplied by. Matches use factors of earlier ones only.
std::vector<bool> WorkList::Impl::AwqNeeded() const {
  std::vector<bool> needed(plan().awq.size(), false);
  absl::flat_hash_map<const std::vector<float>*, size_t> match_of;
  for (size_t k = 0; k < needed.size(); ++k) {
    match_of[&awq_factors[k]] = k;
    match_of[&awq_inverses[k]] = k;
  }
  const auto need = [&](const std::vector<ScaleStep>& steps) {
    for (const ScaleStep& step : steps) {
      needed[match_of.at(step.factors)] = true;
    }
  };
  for (size_t unit = c.unit_begin; unit < c.unit_end; ++unit) {
    need(states[unit].steps);
  }
  for (size_t k = needed.size(); k-- > 0;) {
    if (!needed[k]) continue;
    for (const std::vector<ScaleStep>& before : awq_before[k]) need(before);
  }
  return needed;
}

void WorkList::Impl::MakeItems() {
  items_left.assign(c.layout->units.size(), 0);
  // AWQ's factors come from whole weights: before the first unit that uses
  // them, hence before everything.
  const std::vector<bool> awq_needed = AwqNeeded();
  for (size_t k = 0; k < plan().awq.size(); ++k) {
    if (!awq_needed[k]) continue;
    Item item;
    item.kind = ItemKind::kAwq;
    item.exclusive = true;
    item.unit = static_cast<uint32_t>(awq_unit[k]);
    item.first = k;
    for (const size_t index : TargetsOf(plan().awq[k])) {
      const Unit& unit =
          UnitAt(c.layout->unit_of_constant[plan().weights[index].constant]);
      item.need_end =
          std::max(item.need_end, unit.source.offset + unit.source.size);
    }
    AddItem(item);
  }
  for (uint32_t unit = static_cast<uint32_t>(c.unit_begin); unit < c.unit_end;
       ++unit) {
    if (UnitAt(unit).kind == UnitKind::kCompress) {
      AddCompressItems(unit);
    } else {
      AddCopyItems(unit);
    }
    items.back().out_end = UnitAt(unit).out_end;
  }
  // Sources may overlap or lie in another order than the items.
  uint64_t from = std::numeric_limits<uint64_t>::max();
  for (size_t i = items.size(); i-- > 0;) {
    from = std::min(from, items[i].need_begin);
    items[i].need_begin = from;
  }
  done.assign(items.size(), false);
  if (c.measure_error) errors.resize(items.size());
}

// What the plan itself knows needs no input; written before anything else.
absl::Status WorkList::Impl::WriteLiterals() {
  if (literals_written) return absl::OkStatus();
  for (size_t i = c.unit_begin; i < c.unit_end; ++i) {
    for (const Literal& literal : UnitAt(i).literals) {
      OVPRESS_RETURN_IF_ERROR(out->WriteAt(
          literal.offset, std::as_bytes(std::span<const char>(
                              literal.bytes.data(), literal.bytes.size()))));
    }
  }
  literals_written = true;
  return absl::OkStatus();
}

absl::Status WorkList::Impl::CheckFinite(uint32_t unit, bool finite) const {
  if (finite || plan().options.allow_non_finite) return absl::OkStatus();
  return NotFiniteError(plan().weights[UnitAt(unit).weight].name);
}

absl::Status WorkList::Impl::RunItem(size_t index) {
  const Item& item = items[index];
  absl::Status status;
  switch (item.kind) {
    case ItemKind::kCopy:
      status = RunCopy(item);
      break;
    case ItemKind::kScaleCopy:
      status = RunScaleCopy(item);
      break;
    case ItemKind::kRows:
      status = RunRows(item, index);
      break;
    case ItemKind::kRegions:
      status = RunRegions(item, index);
      break;
    case ItemKind::kRange:
      status = RunRange(item);
      break;
    case ItemKind::kWhole:
      status = RunWhole(item, index);
      break;
    case ItemKind::kAwq:
      status = RunAwq(item);
      break;
  }
  if (status.ok()) Finish(index);
  return status;
}

void WorkList::Impl::Finish(size_t index) {
  std::lock_guard<std::mutex> lock(mutex);
  const Item& item = items[index];
  done[index] = true;
  if (--items_left[item.unit] == 0 && Has(item.unit) &&
      UnitAt(item.unit).kind == UnitKind::kCompress) {
    weights_done.fetch_add(1, std::memory_order_relaxed);
  }
  while (done_prefix < items.size() && done[done_prefix]) {
    const uint64_t end = items[done_prefix].out_end;
    if (end > output_prefix.load(std::memory_order_relaxed)) {
      output_prefix.store(end, std::memory_order_release);
    }
    ++done_prefix;
  }
}

absl::Status WorkList::Impl::RunCopy(const Item& item) {
  const Unit& unit = UnitAt(item.unit);
  const uint64_t size = item.last - item.first;
  if (size == 0) return absl::OkStatus();
  ScopedBuffer buffer(&pool, size);
  const std::span<std::byte> bytes(buffer.data(), size);
  OVPRESS_RETURN_IF_ERROR(bin->ReadAt(unit.source.offset + item.first, bytes));
  OVPRESS_RETURN_IF_ERROR(out->WriteAt(unit.codes.offset + item.first, bytes));
  return (*advance)(size);
}

absl::Status WorkList::Impl::RunScaleCopy(const Item& item) {
  const Unit& unit = UnitAt(item.unit);
  const WeightReader reader = ReaderOf(item.unit);
  const uint64_t count = item.last - item.first;
  const uint64_t size = count * reader.element_size();
  if (size == 0) return absl::OkStatus();
  ScopedBuffer buffer(&pool, size);
  OVPRESS_RETURN_IF_ERROR(reader.Read(item.first, count, buffer.data()));
  OVPRESS_RETURN_IF_ERROR(
      out->WriteAt(unit.codes.offset + item.first * reader.element_size(),
                   std::span<const std::byte>(buffer.data(), size)));
  return (*advance)(size);
}

// Scales and zero points of groups [first, first + count). REQUIRES: `first`
// even if zero points share bytes.
absl::Status WorkList::Impl::WriteGroups(const Unit& unit,
                                         const UnitState& state, uint64_t first,
                                         uint64_t count, const float* step,
                                         const uint8_t* zero_point) {
  if (count == 0) return absl::OkStatus();
  ScopedBuffer buffer(&pool, count * state.scale_size);
  StoreScales(state.encoding, step, count, state.second_order_scale,
              buffer.data());
  OVPRESS_RETURN_IF_ERROR(out->WriteAt(
      unit.scale.offset + first * state.scale_size,
      std::span<const std::byte>(buffer.data(), count * state.scale_size)));
  if (!state.zero_points) return absl::OkStatus();
  const uint64_t size = *PackedSizeBytes(state.zero_point_type, count);
  ScopedBuffer packed(&pool, size);
  StoreZeroPoints(state.encoding, zero_point, count, packed.data());
  return out->WriteAt(
      unit.zero_point.offset + *PackedSizeBytes(state.zero_point_type, first),
      std::span<const std::byte>(packed.data(), size));
}

void WorkList::Impl::MeasureRows(const UnitState& state, const void* source,
                                 uint64_t rows, uint64_t length,
                                 const float* step, const uint8_t* zero_point,
                                 const std::byte* codes, size_t index) {
  std::vector<std::byte> stored(rows * state.scale_size);
  StoreScales(state.encoding, step, rows, state.second_order_scale,
              stored.data());
  std::vector<float> scale(rows);
  LoadScales(state.encoding, stored.data(), rows, state.second_order_scale,
             scale.data());
  AddError(index, ErrorOfRows(state.encoding, source, rows, length,
                              scale.data(), zero_point, codes));
}

absl::Status WorkList::Impl::RunRows(const Item& item, size_t index) {
  const Unit& unit = UnitAt(item.unit);
  const UnitState& state = states[item.unit];
  const WeightReader reader = ReaderOf(item.unit);
  const uint64_t rows = item.last - item.first;
  const uint64_t length = state.shape.reduce;
  const uint64_t count = rows * length;
  const uint64_t codes_size = *PackedSizeBytes(state.code_type, count);
  const uint64_t source_size = count * reader.element_size();
  ScopedBuffer source(&pool, source_size);
  ScopedBuffer codes(&pool, codes_size + 64);
  ScopedBuffer step(&pool, rows * sizeof(float));
  ScopedBuffer zero_point(&pool, rows);
  OVPRESS_RETURN_IF_ERROR(
      reader.Read(item.first * length, count, source.data()));
  uint8_t* const zero_points =
      state.zero_points ? zero_point.as<uint8_t>() : nullptr;
  const bool finite = QuantizeRows(state.encoding, source.data(), rows, length,
                                   step.as<float>(), zero_points, codes.data());
  OVPRESS_RETURN_IF_ERROR(CheckFinite(item.unit, finite));
  OVPRESS_RETURN_IF_ERROR(
      out->WriteAt(unit.codes.offset +
                       *PackedSizeBytes(state.code_type, item.first * length),
                   std::span<const std::byte>(codes.data(), codes_size)));
  OVPRESS_RETURN_IF_ERROR(WriteGroups(unit, state, item.first, rows,
                                      step.as<float>(), zero_points));
  // Without elements there is no error, but there may be a huge `length`.
  if (c.measure_error && count > 0) {
    MeasureRows(state, source.data(), rows, length, step.as<float>(),
                zero_points, codes.data(), index);
  }
  return (*advance)(source_size);
}

// Regions of `reduce` rows and `inner * trailing` columns; all the columns of
// one `inner` share a scale. A whole number of bytes at both ends.
absl::Status WorkList::Impl::RunRegions(const Item& item, size_t index) {
  const Unit& unit = UnitAt(item.unit);
  const UnitState& state = states[item.unit];
  const FoldedShape& shape = state.shape;
  const WeightReader reader = ReaderOf(item.unit);
  const uint64_t regions = item.last - item.first;
  const uint64_t columns = shape.inner * shape.trailing;
  const uint64_t region = shape.reduce * columns;
  const uint64_t count = regions * region;
  const uint64_t source_size = count * reader.element_size();
  if (count == 0) {
    // Groups without elements still have a scale each.
    const uint64_t groups = regions * shape.inner;
    std::vector<float> lo(groups, kInfinity), hi(groups, -kInfinity);
    std::vector<float> step(groups);
    std::vector<uint8_t> zero_point(groups);
    MakeSteps(state.encoding, lo.data(), hi.data(), groups, step.data(),
              state.zero_points ? zero_point.data() : nullptr);
    return WriteGroups(unit, state, item.first * shape.inner, groups,
                       step.data(), zero_point.data());
  }
  ScopedBuffer source(&pool, source_size);
  OVPRESS_RETURN_IF_ERROR(
      reader.Read(item.first * region, count, source.data()));
  const uint64_t groups = regions * shape.inner;
  std::vector<float> steps(groups);
  std::vector<uint8_t> zero_points(groups);
  std::vector<float> lo(columns), hi(columns);
  std::vector<float> wide_step(shape.trailing > 1 ? columns : 0);
  std::vector<uint8_t> wide_zero_point(shape.trailing > 1 ? columns : 0);
  const uint64_t codes_size = *PackedSizeBytes(state.code_type, count);
  ScopedBuffer codes(&pool, codes_size + 64);
  const bool aligned = region % 8 == 0 || !IsSubByte(state.code_type);
  const uint64_t region_codes = *PackedSizeBytes(state.code_type, region);
  ScopedBuffer region_buffer(&pool, aligned ? 0 : region_codes + 64);
  std::vector<uint8_t> unpacked;
  for (uint64_t r = 0; r < regions; ++r) {
    const std::byte* const data =
        source.data() + r * region * reader.element_size();
    std::fill(lo.begin(), lo.end(), kInfinity);
    std::fill(hi.begin(), hi.end(), -kInfinity);
    OVPRESS_RETURN_IF_ERROR(CheckFinite(
        item.unit,
        RangeOfColumns(state.encoding.source_type, data, shape.reduce, columns,
                       lo.data(), hi.data())));
    for (uint64_t i = 0; shape.trailing > 1 && i < shape.inner; ++i) {
      lo[i] = *std::min_element(
          lo.begin() + static_cast<ptrdiff_t>(i * shape.trailing),
          lo.begin() + static_cast<ptrdiff_t>((i + 1) * shape.trailing));
      hi[i] = *std::max_element(
          hi.begin() + static_cast<ptrdiff_t>(i * shape.trailing),
          hi.begin() + static_cast<ptrdiff_t>((i + 1) * shape.trailing));
    }
    float* const step = steps.data() + r * shape.inner;
    uint8_t* const zero_point = zero_points.data() + r * shape.inner;
    MakeSteps(state.encoding, lo.data(), hi.data(), shape.inner, step,
              state.zero_points ? zero_point : nullptr);
    const float* column_step = step;
    const uint8_t* column_zero_point = zero_point;
    if (shape.trailing > 1) {
      for (uint64_t i = 0; i < columns; ++i) {
        wide_step[i] = step[i / shape.trailing];
        wide_zero_point[i] = zero_point[i / shape.trailing];
      }
      column_step = wide_step.data();
      column_zero_point = wide_zero_point.data();
    }
    if (!state.zero_points) column_zero_point = nullptr;
    std::byte* const to =
        aligned ? codes.data() + r * region_codes : region_buffer.data();
    EncodeColumns(state.encoding, data, shape.reduce, columns, column_step,
                  column_zero_point, to);
    if (c.measure_error) {
      std::vector<std::byte> stored(shape.inner * state.scale_size);
      StoreScales(state.encoding, step, shape.inner, state.second_order_scale,
                  stored.data());
      std::vector<float> narrow(shape.inner), scale(columns);
      LoadScales(state.encoding, stored.data(), shape.inner,
                 state.second_order_scale, narrow.data());
      for (uint64_t i = 0; i < columns; ++i) {
        scale[i] = narrow[i / shape.trailing];
      }
      AddError(index,
               ErrorOfColumns(state.encoding, data, shape.reduce, columns,
                              scale.data(), column_zero_point, to));
    }
    if (!aligned) {
      UnpackCodes(state.code_type, region_buffer.data(), region, &unpacked);
    }
  }
  if (!aligned) {
    PackCodes(state.code_type, unpacked.data(), unpacked.size(), codes.data());
  }
  OVPRESS_RETURN_IF_ERROR(
      out->WriteAt(unit.codes.offset +
                       *PackedSizeBytes(state.code_type, item.first * region),
                   std::span<const std::byte>(codes.data(), codes_size)));
  OVPRESS_RETURN_IF_ERROR(WriteGroups(unit, state, item.first * shape.inner,
                                      groups, steps.data(),
                                      zero_points.data()));
  return (*advance)(source_size);
}

// nvfp4: the second-order scale follows from the largest group scale, which is
// monotone in the largest magnitude of the weight.
absl::Status WorkList::Impl::RunRange(const Item& item) {
  const Unit& unit = UnitAt(item.unit);
  UnitState& state = states[item.unit];
  const WeightReader reader = ReaderOf(item.unit);
  const uint64_t total = ConstantOf(item.unit).element_count;
  const uint64_t piece = window / reader.element_size();
  float lo = kInfinity;
  float hi = -kInfinity;
  OVPRESS_RETURN_IF_ERROR(executor->ParallelFor(
      total / piece + (total % piece != 0), [&](size_t i) -> absl::Status {
        const uint64_t first = i * piece;
        const uint64_t count = std::min(piece, total - first);
        ScopedBuffer source(&pool, count * reader.element_size());
        OVPRESS_RETURN_IF_ERROR(reader.Read(first, count, source.data()));
        float part_lo = kInfinity;
        float part_hi = -kInfinity;
        OVPRESS_RETURN_IF_ERROR(CheckFinite(
            item.unit, RangeOfRows(state.encoding.source_type, source.data(), 1,
                                   count, &part_lo, &part_hi)));
        {
          std::lock_guard<std::mutex> lock(mutex);
          lo = std::min(lo, part_lo);
          hi = std::max(hi, part_hi);
        }
        return (*advance)(0);
      }));
  float largest = 0;
  MakeSteps(state.encoding, &lo, &hi, 1, &largest, nullptr);
  state.second_order_scale = MakeSecondOrderScale(largest, state.groups);
  const float second = state.second_order_scale;
  return out->WriteAt(unit.second_order_scale.offset,
                      std::as_bytes(std::span<const float>(&second, 1)));
}

absl::Status WorkList::Impl::RunWhole(const Item& item, size_t index) {
  const Unit& unit = UnitAt(item.unit);
  const UnitState& state = states[item.unit];
  const FoldedShape& shape = state.shape;
  const bool rows = shape.inner == 1 && shape.trailing == 1;
  const uint64_t region = shape.reduce * shape.inner * shape.trailing;
  const uint64_t groups_per_region = rows ? 1 : shape.inner;
  // Codes that do not start on a byte boundary in every region are appended one
  // after the other; the same for packed zero points.
  std::unique_ptr<CodeAppender> appender;
  if (IsSubByte(state.code_type) && region % 8 != 0 && shape.outer > 1) {
    appender =
        std::make_unique<CodeAppender>(state.code_type, out, unit.codes.offset);
  }
  const bool zero_points_share_bytes = state.zero_points &&
                                       IsSubByte(state.zero_point_type) &&
                                       groups_per_region % 2 != 0;
  std::optional<CodeAppender> zero_point_appender;
  if (zero_points_share_bytes) {
    zero_point_appender.emplace(state.zero_point_type, out,
                                unit.zero_point.offset);
  }
  std::vector<float> step(groups_per_region);
  std::vector<uint8_t> zero_point(groups_per_region);
  for (uint64_t r = item.first; r < item.last; ++r) {
    OVPRESS_RETURN_IF_ERROR(
        WholeRegion(item.unit, r, index, appender.get(), &step, &zero_point));
    if (zero_points_share_bytes) {
      OVPRESS_RETURN_IF_ERROR(zero_point_appender->AppendUnpacked(
          zero_point.data(), zero_point.size()));
      UnitState scales_only = state;
      scales_only.zero_points = false;
      OVPRESS_RETURN_IF_ERROR(
          WriteGroups(unit, scales_only, r * groups_per_region,
                      groups_per_region, step.data(), nullptr));
    } else {
      OVPRESS_RETURN_IF_ERROR(WriteGroups(unit, state, r * groups_per_region,
                                          groups_per_region, step.data(),
                                          zero_point.data()));
    }
  }
  if (zero_points_share_bytes) {
    OVPRESS_RETURN_IF_ERROR(zero_point_appender->Finish());
  }
  return appender != nullptr ? appender->Finish() : absl::OkStatus();
}

// One region in two parallel passes over pieces of whole rows (or, where a
// group is contiguous, of elements).
absl::Status WorkList::Impl::WholeRegion(uint32_t unit_index, uint64_t r,
                                         size_t index, CodeAppender* appender,
                                         std::vector<float>* step,
                                         std::vector<uint8_t>* zero_point) {
  const Unit& unit = UnitAt(unit_index);
  const UnitState& state = states[unit_index];
  const FoldedShape& shape = state.shape;
  const WeightReader reader = ReaderOf(unit_index);
  const bool is_rows = shape.inner == 1 && shape.trailing == 1;
  const uint64_t columns = is_rows ? 1 : shape.inner * shape.trailing;
  const uint64_t row_bytes = columns * reader.element_size();
  const uint64_t base = r * shape.reduce * columns;
  uint64_t piece_rows = RoundUp(std::max<uint64_t>(1, window / row_bytes), 8);
  // Very wide rows: eight of them may be many windows, so fewer are taken if
  // the codes still end on a byte.
  if (piece_rows * row_bytes > kRegionWindowsMax * window &&
      (columns % 8 == 0 || !IsSubByte(state.code_type))) {
    piece_rows = std::max<uint64_t>(1, kRegionWindowsMax * window / row_bytes);
  }
  const uint64_t pieces =
      shape.reduce / piece_rows + (shape.reduce % piece_rows != 0);
  std::vector<float> lo(columns, kInfinity), hi(columns, -kInfinity);
  const ElementType type = state.encoding.source_type;

  OVPRESS_RETURN_IF_ERROR(
      executor->ParallelFor(pieces, [&](size_t i) -> absl::Status {
        const uint64_t first = i * piece_rows;
        const uint64_t rows = std::min(piece_rows, shape.reduce - first);
        ScopedBuffer source(&pool, rows * row_bytes);
        OVPRESS_RETURN_IF_ERROR(
            reader.Read(base + first * columns, rows * columns, source.data()));
        std::vector<float> part_lo(columns, kInfinity);
        std::vector<float> part_hi(columns, -kInfinity);
        const bool finite =
            is_rows ? RangeOfRows(type, source.data(), 1, rows, part_lo.data(),
                                  part_hi.data())
                    : RangeOfColumns(type, source.data(), rows, columns,
                                     part_lo.data(), part_hi.data());
        OVPRESS_RETURN_IF_ERROR(CheckFinite(unit_index, finite));
        {
          std::lock_guard<std::mutex> lock(mutex);
          for (uint64_t k = 0; k < columns; ++k) {
            lo[k] = std::min(lo[k], part_lo[k]);
            hi[k] = std::max(hi[k], part_hi[k]);
          }
        }
        return (*advance)(0);
      }));

  for (uint64_t k = 0; shape.trailing > 1 && k < shape.inner; ++k) {
    for (uint64_t t = 0; t < shape.trailing; ++t) {
      const float low = lo[k * shape.trailing + t];
      const float high = hi[k * shape.trailing + t];
      lo[k] = t == 0 ? low : std::min(lo[k], low);
      hi[k] = t == 0 ? high : std::max(hi[k], high);
    }
  }
  MakeSteps(state.encoding, lo.data(), hi.data(), step->size(), step->data(),
            state.zero_points ? zero_point->data() : nullptr);
  std::vector<float> wide_step;
  std::vector<uint8_t> wide_zero_point;
  const float* column_step = step->data();
  const uint8_t* column_zero_point = zero_point->data();
  if (shape.trailing > 1) {
    wide_step.resize(columns);
    wide_zero_point.resize(columns);
    for (uint64_t k = 0; k < columns; ++k) {
      wide_step[k] = (*step)[k / shape.trailing];
      wide_zero_point[k] = (*zero_point)[k / shape.trailing];
    }
    column_step = wide_step.data();
    column_zero_point = wide_zero_point.data();
  }
  if (!state.zero_points) column_zero_point = nullptr;

  std::vector<float> scale;  // widened from the stored form
  if (c.measure_error) {
    std::vector<std::byte> stored(step->size() * state.scale_size);
    StoreScales(state.encoding, step->data(), step->size(),
                state.second_order_scale, stored.data());
    std::vector<float> narrow(step->size());
    LoadScales(state.encoding, stored.data(), step->size(),
               state.second_order_scale, narrow.data());
    scale.resize(columns);
    for (uint64_t k = 0; k < columns; ++k) {
      scale[k] = narrow[k / shape.trailing];
    }
  }

  const auto encode = [&](size_t i) -> absl::Status {
    const uint64_t first = i * piece_rows;
    const uint64_t rows = std::min(piece_rows, shape.reduce - first);
    const uint64_t count = rows * columns;
    const uint64_t codes_size = *PackedSizeBytes(state.code_type, count);
    ScopedBuffer source(&pool, rows * row_bytes);
    ScopedBuffer codes(&pool, codes_size + 64);
    OVPRESS_RETURN_IF_ERROR(
        reader.Read(base + first * columns, count, source.data()));
    if (is_rows) {
      EncodeRows(state.encoding, source.data(), 1, rows, column_step,
                 column_zero_point, codes.data());
    } else {
      EncodeColumns(state.encoding, source.data(), rows, columns, column_step,
                    column_zero_point, codes.data());
    }
    if (c.measure_error) {
      AddError(
          index,
          is_rows
              ? ErrorOfRows(state.encoding, source.data(), 1, rows,
                            scale.data(), column_zero_point, codes.data())
              : ErrorOfColumns(state.encoding, source.data(), rows, columns,
                               scale.data(), column_zero_point, codes.data()));
    }
    if (appender != nullptr) {
      OVPRESS_RETURN_IF_ERROR(appender->Append(codes.data(), count));
    } else {
      OVPRESS_RETURN_IF_ERROR(out->WriteAt(
          unit.codes.offset +
              *PackedSizeBytes(state.code_type, base + first * columns),
          std::span<const std::byte>(codes.data(), codes_size)));
    }
    return (*advance)(rows * row_bytes);
  };
  if (appender == nullptr) return executor->ParallelFor(pieces, encode);
  for (uint64_t i = 0; i < pieces; ++i) {
    OVPRESS_RETURN_IF_ERROR(encode(i));
  }
  return absl::OkStatus();
}

// sc = 1 / max(mean|W| over the output axes, EPS), a = 1 / sc, in f32. The sums
// are NumPy's: along a strided axis rows are added one after the other, along
// the contiguous axis pairwise.
absl::Status WorkList::Impl::RunAwq(const Item& item) {
  const size_t k = item.first;
  const AwqScale& match = plan().awq[k];
  std::vector<AwqInput> inputs;
  for (const size_t index : TargetsOf(match)) {
    const PlannedWeight& weight = plan().weights[index];
    const Constant& constant = model().constants()[weight.constant];
    inputs.push_back(
        {WeightReader(bin, &constant, awq_before[k][inputs.size()]), &constant,
         weight.reduction_axes[0]});
  }
  OVPRESS_RETURN_IF_ERROR(ComputeAwqFactors(
      inputs, match.shared_over_batch, &pool, window,
      [this](uint64_t bytes) { return (*advance)(bytes); }, &awq_factors[k],
      &awq_inverses[k]));
  if (match.merged_constant != kNone || !Has(item.unit)) {
    return absl::OkStatus();
  }
  const Unit& unit = UnitAt(item.unit);
  for (size_t i = 0; i < unit.awq_multiply_of.size(); ++i) {
    if (unit.awq_multiply_of[i] != k) continue;
    const std::vector<float>& inverse = awq_inverses[k];
    std::vector<std::byte> stored(unit.awq_multiply[i].size);
    FromFloat(match.multiply_type, inverse.data(), inverse.size(),
              stored.data());
    OVPRESS_RETURN_IF_ERROR(out->WriteAt(unit.awq_multiply[i].offset, stored));
  }
  return absl::OkStatus();
}

WorkList::WorkList(const WorkContext& context)
    : impl_(std::make_unique<Impl>(context)) {
  impl_->window = WindowBytes(context.memory_budget_bytes, context.parallelism);
  impl_->PrepareUnits();
  impl_->PrepareAwq();
  impl_->MakeItems();
}
WorkList::~WorkList() = default;

absl::Status WorkList::RunAvailable(
    ByteSource& bin, uint64_t available_bytes, ByteSink& out,
    Executor& executor,
    const std::function<absl::Status(uint64_t bytes)>& advance) {
  Impl& impl = *impl_;
  impl.bin = &bin;
  impl.out = &out;
  impl.executor = &executor;
  impl.advance = &advance;
  OVPRESS_RETURN_IF_ERROR(impl.WriteLiterals());
  while (impl.next_item < impl.items.size() &&
         impl.items[impl.next_item].need_end <= available_bytes) {
    size_t end = impl.next_item;
    if (impl.items[end].exclusive) {
      OVPRESS_RETURN_IF_ERROR(impl.RunItem(end));
      impl.next_item = end + 1;
    } else {
      while (end < impl.items.size() && !impl.items[end].exclusive &&
             impl.items[end].need_end <= available_bytes) {
        ++end;
      }
      const size_t first = impl.next_item;
      OVPRESS_RETURN_IF_ERROR(executor.ParallelFor(
          end - first,
          [&impl, first](size_t i) { return impl.RunItem(first + i); }));
      impl.next_item = end;
    }
  }
  return absl::OkStatus();
}

uint64_t WorkList::input_needed_from() const {
  return impl_->next_item < impl_->items.size()
             ? impl_->items[impl_->next_item].need_begin
             : std::numeric_limits<uint64_t>::max();
}

uint64_t WorkList::output_prefix_bytes() const {
  return impl_->output_prefix.load(std::memory_order_acquire);
}
uint64_t WorkList::weights_done() const {
  return impl_->weights_done.load(std::memory_order_relaxed);
}

bool WorkList::finished() const {
  return impl_->next_item == impl_->items.size();
}

std::vector<SquaredSums> WorkList::ErrorsByUnit() const {
  std::lock_guard<std::mutex> lock(impl_->mutex);
  std::vector<SquaredSums> sums;
  if (!impl_->c.measure_error) return sums;
  sums.resize(impl_->c.layout->units.size());
  for (size_t i = 0; i < impl_->errors.size(); ++i) {
    sums[impl_->items[i].unit].error += impl_->errors[i].error;
    sums[impl_->items[i].unit].signal += impl_->errors[i].signal;
  }
  return sums;
}

}  // namespace ovpress
