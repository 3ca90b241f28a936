// How a fuzz target cuts its input into what it needs. An input that holds a
// model is
//
//   16 bytes of options | .xml | one zero byte | .bin
//
// so that the text stays readable in a file and the mutator finds its parts.
#ifndef OVPRESS_TESTS_FUZZ_INPUT_H_
#define OVPRESS_TESTS_FUZZ_INPUT_H_

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "absl/strings/string_view.h"
#include "core/engine/options.h"

// What every target defines; libFuzzer or the replay driver calls it.
extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

namespace ovpress::fuzz {

// A broken promise of ours: ends the process, so that the input is kept.
#define OVPRESS_FUZZ_ASSERT(condition, detail)                              \
  do {                                                                      \
    if (!(condition)) {                                                     \
      std::fprintf(stderr, "%s:%d: not true: %s: %s\n", __FILE__, __LINE__, \
                   #condition, std::string(detail).c_str());                \
      std::abort();                                                         \
    }                                                                       \
  } while (false)

// Takes values from the front of the input; zeros once it is used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), size_(size) {}

  template <typename T>
  T Take() {
    T value{};
    const size_t count = size_ < sizeof(T) ? size_ : sizeof(T);
    if (count > 0) std::memcpy(&value, data_, count);
    data_ += count;
    size_ -= count;
    return value;
  }
  bool TakeBool() { return (Take<uint8_t>() & 1) != 0; }
  absl::string_view Rest() const {
    return {reinterpret_cast<const char*>(data_), size_};
  }

 private:
  const uint8_t* data_;
  size_t size_;
};

inline constexpr size_t kOptionBytes = 16;

struct ModelInput {
  std::string options;  // kOptionBytes, zeros where the input was shorter
  std::string xml;
  std::string bin;
};

inline ModelInput SplitModelInput(absl::string_view input) {
  ModelInput parts;
  parts.options = std::string(input.substr(0, kOptionBytes));
  parts.options.resize(kOptionBytes);
  if (input.size() <= kOptionBytes) return parts;
  const absl::string_view rest = input.substr(kOptionBytes);
  const size_t end = rest.find('\0');
  parts.xml = std::string(rest.substr(0, end));
  if (end != absl::string_view::npos) {
    parts.bin = std::string(rest.substr(end + 1));
  }
  return parts;
}

inline std::string JoinModelInput(const ModelInput& parts) {
  std::string out = parts.options;
  out.resize(kOptionBytes);
  out += parts.xml;
  if (!parts.bin.empty()) {
    out += '\0';
    out += parts.bin;
  }
  return out;
}

// Every combination can be reached; zeros are the defaults (int8_asym).
CompressionOptions OptionsFromBytes(absl::string_view bytes);

}  // namespace ovpress::fuzz

#endif  // OVPRESS_TESTS_FUZZ_INPUT_H_
