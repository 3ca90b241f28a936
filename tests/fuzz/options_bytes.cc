#include <iterator>

#include "tests/fuzz/input.h"

namespace ovpress::fuzz {

CompressionOptions OptionsFromBytes(absl::string_view bytes) {
  Bytes input(reinterpret_cast<const uint8_t*>(bytes.data()), bytes.size());
  CompressionOptions options;
  options.mode = kAllModes[input.Take<uint8_t>() % std::size(kAllModes)];
  constexpr int64_t kGroupSizes[] = {
      -1,        1,        2,   3,   4, 8,  16,
      32,        64,       128, 256, 0, -2, int64_t{1} << 40,
      INT64_MAX, INT64_MIN};
  const uint8_t group = input.Take<uint8_t>();
  if (group & 1) options.group_size = kGroupSizes[(group >> 1) % 16];
  const uint8_t ratio = input.Take<uint8_t>();
  if (ratio & 1) options.ratio = static_cast<double>(ratio >> 1) / 120;
  const uint8_t backup = input.Take<uint8_t>();
  if (backup & 1) {
    constexpr BackupMode kModes[] = {
        BackupMode::kKeepFloat, BackupMode::kInt8Sym, BackupMode::kInt8Asym,
        BackupMode::kMxfp8E4m3, BackupMode::kFp8E4m3};
    options.backup_mode = kModes[(backup >> 1) % 5];
  }
  const uint8_t flags = input.Take<uint8_t>();
  if (flags & 1) options.all_layers = (flags & 2) != 0;
  if (flags & 4) options.awq = (flags & 8) != 0;
  options.awq_extended = (flags & 16) != 0;
  options.allow_non_finite = (flags & 32) != 0;
  options.ignored.validate = (flags & 64) != 0;
  if (flags & 128) options.sensitivity_metric = "weight_quantization_error";
  options.group_size_fallback =
      static_cast<GroupSizeFallback>(input.Take<uint8_t>() % 3);
  constexpr int64_t kLeast[] = {32, 1, 2, 4, 0, -1, INT64_MIN, INT64_MAX};
  options.min_adjusted_group_size = kLeast[input.Take<uint8_t>() % 8];
  const uint8_t ignored = input.Take<uint8_t>();
  if (ignored & 1) options.ignored.names.push_back("m0");
  if (ignored & 2) options.ignored.patterns.push_back(".*1");
  if (ignored & 4) options.ignored.types.push_back("MatMul");
  if (options.mode == Mode::kCodebook) {
    constexpr absl::string_view kTables[] = {
        "[-1, 0, 1]", "{\"dtype\":\"f8e4m3\",\"values\":[-2,-1,0,1,2,4]}",
        "[-8,-7,-6,-5,-4,-3,-2,-1,0,1,2,3,4,5,6,7,8]",
        "{\"dtype\":\"i8\",\"values\":[-128,-3,0,127]}"};
    const auto table = ParseCodebook(kTables[input.Take<uint8_t>() % 4],
                                     &options.codebook_text);
    if (table.ok()) options.codebook = *table;
  }
  return options;
}

}  // namespace ovpress::fuzz
