// Stored options: any text gives options or one status; options that are valid
// survive the way through text unchanged.
#include "server/jobs/options_json.h"
#include "tests/fuzz/input.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ovpress;  // NOLINT(google-build-using-namespace): one
                            // function
  const auto options =
      OptionsFromJson({reinterpret_cast<const char*>(data), size});
  if (!options.ok()) {
    OVPRESS_FUZZ_ASSERT(absl::IsInvalidArgument(options.status()),
                        options.status().ToString());
    return 0;
  }
  if (!ValidateOptions(*options).ok()) return 0;
  const std::string text = OptionsToJson(*options);
  const auto again = OptionsFromJson(text);
  OVPRESS_FUZZ_ASSERT(again.ok(), again.status().ToString());
  OVPRESS_FUZZ_ASSERT(CanonicalOptions(*again) == CanonicalOptions(*options),
                      text);
  OVPRESS_FUZZ_ASSERT(OptionsToJson(*again) == text, text);
  return 0;
}
