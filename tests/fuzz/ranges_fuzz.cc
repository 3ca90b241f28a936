// Constants as ranges of the .bin: whatever numbers the XML holds, a model that
// passes both checks has no range outside, checked here in 128 bits.
#include "absl/strings/str_cat.h"
#include "core/ir/model.h"
#include "tests/fuzz/input.h"

namespace {

// Numbers around the edges come up often.
uint64_t TakeNumber(ovpress::fuzz::Bytes* input) {
  const uint8_t kind = input->Take<uint8_t>();
  const int64_t delta = input->Take<int8_t>();
  switch (kind % 6) {
    case 0:
      return input->Take<uint8_t>();
    case 1:
      return input->Take<uint16_t>();
    case 2:
      return input->Take<uint64_t>();
    case 3:
      return static_cast<uint64_t>(delta);  // around zero, and 2^64
    default:
      return (uint64_t{1} << (kind / 6 % 64)) + static_cast<uint64_t>(delta);
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using namespace ovpress;  // NOLINT(google-build-using-namespace): one
                            // function
  constexpr const char* kTypes[] = {
      "f32", "f16", "bf16", "f64", "i64",    "u8",      "i8",     "u4",
      "i4",  "u1",  "u2",   "nf4", "f4e2m1", "boolean", "u3",     "u6",
      "i32", "i16", "u16",  "u32", "u64",    "string",  "f8e4m3", "f8e8m0"};
  fuzz::Bytes input(data, size);
  const uint64_t bin_bytes = TakeNumber(&input);
  const int count = input.Take<uint8_t>() % 4 + 1;
  std::string xml = "<net name=\"n\" version=\"11\"><layers>";
  for (int i = 0; i < count; ++i) {
    std::string shape;
    const int rank = input.Take<uint8_t>() % 5;
    for (int axis = 0; axis < rank; ++axis) {
      absl::StrAppend(&shape, axis > 0 ? "," : "", TakeNumber(&input));
    }
    absl::StrAppend(
        &xml, "<layer id=\"", i, "\" name=\"c", i,
        "\" type=\"Const\" version=\"opset1\"><data element_type=\"",
        kTypes[input.Take<uint8_t>() % std::size(kTypes)], "\" shape=\"", shape,
        "\" offset=\"", TakeNumber(&input), "\" size=\"", TakeNumber(&input),
        "\"/><output><port id=\"0\" precision=\"FP32\"/></output></layer>");
  }
  xml += "</layers></net>";
  const auto model = Model::Parse(xml);
  if (!model.ok() || !model->CheckConstantRanges(bin_bytes).ok()) return 0;
  __extension__ typedef unsigned __int128 Wide;  // NOLINT(modernize-use-using)
  OVPRESS_FUZZ_ASSERT(model->BinBytesUsed() <= bin_bytes, xml);
  for (const Constant& constant : model->constants()) {
    const Wide end = Wide{constant.offset_bytes} + Wide{constant.size_bytes};
    OVPRESS_FUZZ_ASSERT(end <= bin_bytes, xml);
    Wide elements = 1;
    for (const uint64_t dim : constant.shape) {
      elements *= dim;
      if (elements == 0) break;
      OVPRESS_FUZZ_ASSERT(elements <= UINT64_MAX, xml);
    }
    OVPRESS_FUZZ_ASSERT(elements == constant.element_count, xml);
    if (constant.type == ElementType::kString) continue;
    const Wide bits =
        elements * static_cast<unsigned>(BitsPerElement(constant.type));
    OVPRESS_FUZZ_ASSERT(Wide{constant.size_bytes} * 8 >= bits, xml);
  }
  return 0;
}
