// The compression modes and what each fixes: bits, storage types, defaults.
// Names and values are NNCF's (nncf.CompressWeightsMode, nncf.BackupMode).
#ifndef OVPRESS_CORE_QUANT_SCHEME_H_
#define OVPRESS_CORE_QUANT_SCHEME_H_

#include <cstdint>
#include <optional>
#include <span>
#include <vector>

#include "absl/strings/string_view.h"
#include "core/base/element_type.h"

namespace ovpress {

enum class Mode : uint8_t {
  kInt8Asym,
  kInt8Sym,
  kInt4Asym,
  kInt4Sym,
  kInt3Sym,
  kInt2Sym,
  kNf4,
  kFp4,
  kFp8E4m3,
  kMxfp4,
  kMxfp8E4m3,
  kNvfp4,
  kCb4,
  kCodebook,
};

inline constexpr Mode kAllModes[] = {
    Mode::kInt8Asym, Mode::kInt8Sym, Mode::kInt4Asym,  Mode::kInt4Sym,
    Mode::kInt3Sym,  Mode::kInt2Sym, Mode::kNf4,       Mode::kFp4,
    Mode::kFp8E4m3,  Mode::kMxfp4,   Mode::kMxfp8E4m3, Mode::kNvfp4,
    Mode::kCb4,      Mode::kCodebook};

// Which side of NNCF's two code paths a weight of this many elements takes; the
// integer modes give equal bits on both (nncf-data-free note, section 4.1).
enum class Numerics : uint8_t { kNumPy, kOpenVino };
inline constexpr uint64_t kOpenVinoPathMinElements = 10000;

// What is fixed for a mode. One row per mode; see ModeTraitsOf.
struct ModeTraits {
  Mode mode;
  absl::string_view name;      // "int4_sym"
  int bits;                    // of one code; codebook: of a 16-entry table
  ElementType code_type;       // element type of the stored weight
  ElementType scale_type;      // f16; f8e8m0 for MX; f8e4m3 for nvfp4
  bool zero_point_per_group;   // asym modes: stored with the scale's shape
  bool scalar_zero_point;      // int2/int3: one i8 scalar, 2^(bits-1)
  bool is_int8;                // int8_asym, int8_sym: per channel, whole model
  int64_t default_group_size;  // -1: one scale per channel
  bool group_size_fixed;       // no other group size is accepted
  // The OpenVINO path exists for this mode (else always NumPy numerics).
  bool has_openvino_path;
};
const ModeTraits& ModeTraitsOf(Mode mode);
std::optional<Mode> ParseMode(absl::string_view name);

// A sorted table of representable values for cb4 and codebook. `values` are
// what the arithmetic uses; `type` is how the table is stored (f8e4m3 for cb4;
// f32, f16, bf16, f64, f8e4m3, f8e5m2, i8, u8 ... for the user's).
struct Codebook {
  ElementType type = ElementType::kF8e4m3;
  std::vector<double> values;     // ascending, 2 to 65536 entries
  std::vector<std::byte> stored;  // the constant's bytes, little endian
  // u4 up to 16 entries, u8 up to 256, else u16.
  ElementType index_type() const;
};
// The built-in table of cb4 (16 entries, f8e4m3).
const Codebook& Cb4Codebook();

}  // namespace ovpress

#endif  // OVPRESS_CORE_QUANT_SCHEME_H_
