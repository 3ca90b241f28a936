// libFuzzer's hook for inputs that hold a model: most changes are made in the
// XML's structure, some in its text, the options or the .bin.
#include <cstring>

#include "tests/fuzz/input.h"
#include "tests/fuzz/xml_mutator.h"

extern "C" size_t LLVMFuzzerMutate(uint8_t* data, size_t size, size_t max_size);

namespace {

std::string MutateBytes(const std::string& bytes, size_t size_max) {
  std::string buffer = bytes;
  buffer.resize(std::max(size_max, bytes.size()));
  const size_t size = LLVMFuzzerMutate(
      reinterpret_cast<uint8_t*>(buffer.data()), bytes.size(), buffer.size());
  buffer.resize(size);
  return buffer;
}

}  // namespace

extern "C" size_t LLVMFuzzerCustomMutator(uint8_t* data, size_t size,
                                          size_t max_size, unsigned int seed) {
  using namespace ovpress::fuzz;  // NOLINT(google-build-using-namespace)
  std::minstd_rand random(seed + 1);
  const size_t choice = random() % 20;
#ifdef OVPRESS_FUZZ_XML_ONLY
  std::string out(reinterpret_cast<const char*>(data), size);
  out = choice < 15 ? MutateXml(out, &random, max_size)
                    : MutateBytes(out, max_size);
#else
  ModelInput parts =
      SplitModelInput({reinterpret_cast<const char*>(data), size});
  const size_t room = max_size > size ? max_size - size : 0;
  if (choice < 12) {
    parts.xml = MutateXml(parts.xml, &random, parts.xml.size() + room);
  } else if (choice < 14) {
    parts.xml = MutateBytes(parts.xml, parts.xml.size() + room);
  } else if (choice < 18) {
    parts.options[random() % kOptionBytes] = static_cast<char>(random() % 256);
  } else {
    parts.bin = MutateBytes(parts.bin, parts.bin.size() + room);
  }
  const std::string out = JoinModelInput(parts);
#endif
  if (out.empty() || out.size() > max_size) {
    return LLVMFuzzerMutate(data, size, max_size);
  }
  std::memcpy(data, out.data(), out.size());
  return out.size();
}
