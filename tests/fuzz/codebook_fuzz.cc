// Codebook files, JSON and .npy: what is accepted ascends, is finite, and its
// stored bytes are those of its values.
#include <cmath>

#include "core/engine/options.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ovpress;  // NOLINT(google-build-using-namespace): one
                            // function
  std::string text;
  const auto table =
      ParseCodebook({reinterpret_cast<const char*>(data), size}, &text);
  if (!table.ok()) {
    OVPRESS_FUZZ_ASSERT(absl::IsInvalidArgument(table.status()),
                        table.status().ToString());
    OVPRESS_FUZZ_ASSERT(table.status().message().size() < 4096,
                        "the message quotes too much");
    return 0;
  }
  const Codebook& codebook = **table;
  OVPRESS_FUZZ_ASSERT(!text.empty(), "no text for rt_info");
  OVPRESS_FUZZ_ASSERT(codebook.values.size() >= 2, "");
  OVPRESS_FUZZ_ASSERT(codebook.values.size() <= 65536, "");
  for (size_t i = 0; i < codebook.values.size(); ++i) {
    OVPRESS_FUZZ_ASSERT(std::isfinite(codebook.values[i]), "");
    OVPRESS_FUZZ_ASSERT(i == 0 || codebook.values[i - 1] < codebook.values[i],
                        "");
  }
  OVPRESS_FUZZ_ASSERT(
      codebook.stored.size() * 8 ==
          codebook.values.size() *
              static_cast<size_t>(BitsPerElement(codebook.type)),
      "");
  CompressionOptions options;
  options.mode = Mode::kCodebook;
  options.codebook = *table;
  OVPRESS_FUZZ_ASSERT(ValidateOptions(options).ok(), "");
  (void)CanonicalOptions(options);
  return 0;
}
