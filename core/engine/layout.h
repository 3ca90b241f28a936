// Where every output byte lies. Constants keep the order of their source
// offsets, so reading and writing are sequential; parts follow one another
// without padding, as in the files that OpenVINO writes. Constants that share a
// source range and a treatment share their output.
#ifndef OVPRESS_CORE_ENGINE_LAYOUT_H_
#define OVPRESS_CORE_ENGINE_LAYOUT_H_

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/engine/plan.h"

namespace ovpress {

struct ByteRange {
  uint64_t offset = 0;
  uint64_t size = 0;
};

// A constant whose bytes the plan itself knows: a Reshape's target shape, the
// zero point of int2/int3, the axis of a codebook's Gather, the table.
struct Literal {
  uint64_t offset = 0;
  std::string bytes;
};

enum class UnitKind : uint8_t {
  kCopy,      // byte for byte
  kCompress,  // codes, zero points, scales ...
  kScale,     // stays float, but AWQ multiplies it
};

// What becomes of one source range.
struct Unit {
  UnitKind kind = UnitKind::kCopy;
  size_t constant = kNone;  // the first constant with this treatment
  size_t weight = kNone;    // in Plan::weights; kCompress only
  ByteRange source;
  ByteRange codes;  // for kCopy and kScale: the bytes themselves
  ByteRange zero_point;
  ByteRange scale;
  ByteRange second_order_scale;
  std::vector<ByteRange> awq_multiply;  // one per AwqScale with a Multiply
  std::vector<size_t> awq_multiply_of;  // the index in Plan::awq
  std::vector<Literal> literals;        // written with this unit
  // Where to find literals, this unit's or an earlier one's.
  uint64_t shape_offset = 0;
  uint64_t table_offset = 0;
  uint64_t axis_offset = 0;
  uint64_t scalar_zero_point_offset = 0;
  uint64_t out_end = 0;  // one past this unit's last byte
};

struct Layout {
  std::vector<Unit> units;               // in output order
  std::vector<size_t> unit_of_constant;  // by Model::constants
  uint64_t output_bytes = 0;
};

// kResourceExhausted if overlapping constants would make the output more than
// kOutputGrowthMax times the .bin's used size.
absl::StatusOr<Layout> MakeLayout(const Model& model, const Plan& plan);

// Bytes of one weight's parts in a configuration, literals left out.
uint64_t CompressedBytes(const Model& model, const CompressionOptions& options,
                         const PlannedWeight& weight,
                         const WeightConfig& config);

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_LAYOUT_H_
