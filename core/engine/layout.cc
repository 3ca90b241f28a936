#include "core/engine/layout.h"

#include <algorithm>
#include <cstring>
#include <limits>
#include <map>
#include <numeric>
#include <tuple>

#include "absl/container/flat_hash_map.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

// Constants may overlap in a legal file, but each is written once per distinct
// range; a hostile file could make a few bytes into terabytes.
constexpr uint64_t kOutputGrowthMax = 4;
constexpr uint64_t kOutputGrowthFreeBytes = 64ull << 20;

// What does not fit 64 bits; no file is that long.
constexpr uint64_t kTooMany = std::numeric_limits<uint64_t>::max();

uint64_t Packed(ElementType type, uint64_t count) {
  return PackedSizeBytes(type, count).value_or(kTooMany);
}

uint64_t Sum(uint64_t a, uint64_t b) {
  return a > kTooMany - b ? kTooMany : a + b;
}

// The product of a constant's shape fits; that of its scale need not, if the
// constant has a dimension of 0.
uint64_t Product(const std::vector<uint64_t>& shape) {
  uint64_t product = 1;
  bool too_many = false;
  for (const uint64_t dim : shape) {
    if (dim == 0) return 0;
    too_many = too_many || product > kTooMany / dim;
    product *= dim;
  }
  return too_many ? kTooMany : product;
}

std::string Int64Bytes(const std::vector<uint64_t>& values) {
  std::string bytes(values.size() * 8, '\0');
  for (size_t i = 0; i < values.size(); ++i) {
    const int64_t value = static_cast<int64_t>(values[i]);
    std::memcpy(bytes.data() + i * 8, &value, 8);
  }
  return bytes;
}

class Builder {
 public:
  Builder(const Model& model, const Plan& plan) : model_(model), plan_(plan) {}

  absl::StatusOr<Layout> Build();

 private:
  void PlaceParts(Unit* unit);
  uint64_t PlaceLiteral(const std::string& bytes, Unit* unit);
  ByteRange Place(uint64_t size) {
    const ByteRange range{next_, size};
    next_ = Sum(next_, size);
    return range;
  }

  const Model& model_;
  const Plan& plan_;
  uint64_t next_ = 0;
  std::map<std::string, uint64_t> literals_;
};

uint64_t Builder::PlaceLiteral(const std::string& bytes, Unit* unit) {
  const auto [found, inserted] = literals_.try_emplace(bytes, next_);
  if (inserted) {
    unit->literals.push_back({next_, bytes});
    next_ = Sum(next_, bytes.size());
  }
  return found->second;
}

void Builder::PlaceParts(Unit* unit) {
  const PlannedWeight& weight = plan_.weights[unit->weight];
  const WeightConfig& config = *weight.config;
  const ModeTraits& traits = ModeTraitsOf(config.mode);
  const Constant& constant = model_.constants()[unit->constant];
  const std::vector<uint64_t> scale_shape =
      ScaleShape(constant.shape, weight.reduction_axes, config.group_size);
  const uint64_t groups = Product(scale_shape);
  const Codebook* codebook = CodebookOf(plan_.options, config.mode);
  if (codebook != nullptr) {
    unit->table_offset = PlaceLiteral(
        std::string(reinterpret_cast<const char*>(codebook->stored.data()),
                    codebook->stored.size()),
        unit);
  }
  unit->codes = Place(
      Packed(CodeTypeOf(plan_.options, config.mode), constant.element_count));
  if (codebook != nullptr) {
    unit->axis_offset = PlaceLiteral(Int64Bytes({0}), unit);
  }
  if (traits.zero_point_per_group) {
    unit->zero_point = Place(Packed(traits.code_type, groups));
  }
  if (traits.scalar_zero_point) {
    const char offset = static_cast<char>(1 << (traits.bits - 1));
    unit->scalar_zero_point_offset = PlaceLiteral(std::string(1, offset), unit);
  }
  unit->scale = Place(Packed(traits.scale_type, groups));
  if (config.mode == Mode::kNvfp4) {
    unit->second_order_scale = Place(sizeof(float));
  }
  if (config.group_size != -1) {
    unit->shape_offset = PlaceLiteral(Int64Bytes(constant.shape), unit);
  }
}

absl::StatusOr<Layout> Builder::Build() {
  const std::vector<Constant>& constants = model_.constants();
  std::vector<size_t> weight_of(constants.size(), kNone);
  for (size_t i = 0; i < plan_.weights.size(); ++i) {
    if (plan_.weights[i].config.has_value()) {
      weight_of[plan_.weights[i].constant] = i;
    }
  }
  // Constants that AWQ touches are never shared with another's output.
  std::vector<bool> scaled(constants.size(), false);
  absl::flat_hash_map<size_t, std::vector<size_t>> multiplies_of;
  for (size_t k = 0; k < plan_.awq.size(); ++k) {
    const AwqScale& awq = plan_.awq[k];
    const size_t target = plan_.weights[awq.weight].constant;
    scaled[target] = true;
    for (const size_t weight : awq.together) {
      scaled[plan_.weights[weight].constant] = true;
    }
    if (awq.merged_constant != kNone) {
      scaled[awq.merged_constant] = true;
    } else {
      multiplies_of[target].push_back(k);
    }
  }

  std::vector<size_t> order(constants.size());
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return constants[a].offset_bytes < constants[b].offset_bytes;
  });

  Layout layout;
  layout.unit_of_constant.assign(constants.size(), kNone);
  const uint64_t used = model_.BinBytesUsed();
  // Range, type, shape and treatment of what was placed already.
  using Key = std::tuple<uint64_t, uint64_t, ElementType, std::vector<uint64_t>,
                         int, int64_t, std::vector<int>>;
  std::map<Key, size_t> placed;
  for (const size_t index : order) {
    const Constant& constant = constants[index];
    Unit unit;
    unit.constant = index;
    unit.source = {constant.offset_bytes, constant.size_bytes};
    Key key{constant.offset_bytes,
            constant.size_bytes,
            ElementType::kDynamic,
            {},
            -1,
            0,
            {}};
    if (weight_of[index] != kNone) {
      unit.kind = UnitKind::kCompress;
      unit.weight = weight_of[index];
      const PlannedWeight& weight = plan_.weights[unit.weight];
      key = {constant.offset_bytes,
             constant.size_bytes,
             constant.type,
             constant.shape,
             static_cast<int>(weight.config->mode),
             weight.config->group_size,
             weight.reduction_axes};
    } else if (scaled[index]) {
      unit.kind = UnitKind::kScale;
    }
    if (!scaled[index]) {
      const auto [found, inserted] =
          placed.try_emplace(std::move(key), layout.units.size());
      if (!inserted) {
        layout.unit_of_constant[index] = found->second;
        continue;
      }
    }
    if (unit.kind == UnitKind::kCompress) {
      PlaceParts(&unit);
      const auto multiplies = multiplies_of.find(index);
      for (const size_t k : multiplies != multiplies_of.end()
                                ? multiplies->second
                                : std::vector<size_t>()) {
        const AwqScale& awq = plan_.awq[k];
        unit.awq_multiply.push_back(
            Place(Packed(awq.multiply_type, Product(awq.multiply_shape))));
        unit.awq_multiply_of.push_back(k);
      }
    } else {
      unit.codes = Place(constant.size_bytes);
    }
    unit.out_end = next_;
    if (next_ > static_cast<uint64_t>(std::numeric_limits<int64_t>::max())) {
      return absl::ResourceExhaustedError(
          absl::StrCat("the output would have more than 2^63 bytes, at "
                       "constant '",
                       constant.name, "'"));
    }
    if (next_ / kOutputGrowthMax > used &&
        next_ - used > kOutputGrowthFreeBytes) {
      return absl::ResourceExhaustedError(absl::StrCat(
          "overlapping constants would make an output of more than ",
          kOutputGrowthMax, " times the ", used,
          " bytes that the constants use, at constant '", constant.name, "'"));
    }
    layout.unit_of_constant[index] = layout.units.size();
    layout.units.push_back(std::move(unit));
  }
  layout.output_bytes = next_;
  return layout;
}

}  // namespace

absl::StatusOr<Layout> MakeLayout(const Model& model, const Plan& plan) {
  return Builder(model, plan).Build();
}

uint64_t CompressedBytes(const Model& model, const CompressionOptions& options,
                         const PlannedWeight& weight,
                         const WeightConfig& config) {
  const ModeTraits& traits = ModeTraitsOf(config.mode);
  const Constant& constant = model.constants()[weight.constant];
  const uint64_t groups = Product(
      ScaleShape(constant.shape, weight.reduction_axes, config.group_size));
  uint64_t bytes =
      Sum(Packed(CodeTypeOf(options, config.mode), constant.element_count),
          Packed(traits.scale_type, groups));
  if (traits.zero_point_per_group) {
    bytes = Sum(bytes, Packed(traits.code_type, groups));
  }
  if (traits.scalar_zero_point) bytes = Sum(bytes, 1);
  if (config.mode == Mode::kNvfp4) bytes = Sum(bytes, sizeof(float));
  if (const Codebook* codebook = CodebookOf(options, config.mode)) {
    bytes = Sum(bytes, codebook->stored.size());
  }
  return bytes;
}

}  // namespace ovpress
