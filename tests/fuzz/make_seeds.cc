// Writes the first inputs of every fuzz target: fuzz_seeds FOLDER makes
// FOLDER/<target>/... They come from the real IRs in tests/data and from small
// models that hold each pattern the engine knows, so nothing large is kept in
// the repository.
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "core/engine/options.h"
#include "tests/fuzz/input.h"
#include "tests/testing/ir_builder.h"
#ifdef OVPRESS_FUZZ_WITH_SERVER
#include "google/bytestream/bytestream.pb.h"
#include "ovpress/v1/compression.pb.h"
#include "server/jobs/digest.h"
#include "server/jobs/options_json.h"
#endif

namespace {

using ovpress::ElementType;
using ovpress::testing::IrBuilder;
namespace fs = std::filesystem;

fs::path root;

void Write(const char* target, const std::string& name,
           const std::string& bytes) {
  const fs::path folder = root / target;
  fs::create_directories(folder);
  std::ofstream(folder / name, std::ios::binary) << bytes;
}

std::string ReadFile(const fs::path& path) {
  std::ifstream stream(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(stream),
          std::istreambuf_iterator<char>()};
}

// MatMul -> activation -> Multiply -> MatMul, an embedding in front.
IrBuilder Llm(ElementType type) {
  IrBuilder ir;
  const auto ids = ir.Parameter("ids", {1, 3}, ElementType::kI64);
  const auto table = ir.Weights("embed", type, {16, 32}, 1);
  const auto axis =
      ir.Constant("axis", ElementType::kI32, {}, std::string(4, '\0'));
  auto x = ir.Op("gather", "Gather", "opset8", "<data batch_dims=\"0\"/>",
                 {table, ids, axis}, {1, 3, 32});
  x.type = ElementType::kF32;
  const auto w0 = ir.Weights("w0", type, {32, 32}, 2);
  const auto w1 = ir.Weights("w1", type, {32, 32}, 3);
  const auto w2 = ir.Weights("w2", type, {32, 32}, 4);
  const auto up = ir.MatMul("m0", x, w0, false, true, {1, 3, 32});
  const auto gate = ir.MatMul("m1", x, w1, false, true, {1, 3, 32});
  const auto act = ir.Op("swish", "Swish", "opset4", "", {gate}, {1, 3, 32});
  const auto both =
      ir.Op("mul", "Multiply", "opset1", "<data auto_broadcast=\"numpy\"/>",
            {act, up}, {1, 3, 32});
  ir.Result("out", ir.MatMul("m2", both, w2, false, true, {1, 3, 32}));
  return ir;
}

IrBuilder Convolutions() {
  IrBuilder ir;
  const auto x = ir.Parameter("x", {1, 4, 8, 8});
  const auto w0 = ir.Weights("k0", ElementType::kF32, {8, 4, 3, 3}, 5);
  const auto c0 = ir.Op("conv", "Convolution", "opset1",
                        "<data strides=\"1,1\"/>", {x, w0}, {1, 8, 6, 6});
  const auto w1 = ir.Weights("k1", ElementType::kF16, {8, 1, 1, 3, 3}, 6);
  const auto w1f = ir.Convert("k1f", w1, ElementType::kF32);
  const auto c1 =
      ir.Op("group", "GroupConvolution", "opset1", "", {c0, w1f}, {1, 8, 4, 4});
  const auto w2 = ir.Weights("k2", ElementType::kF32, {8, 4, 3, 3}, 7);
  ir.Result("r", ir.Op("back", "ConvolutionBackpropData", "opset1", "",
                       {c1, w2}, {1, 4, 6, 6}));
  return ir;
}

// A shared constant, a tied pair, transposed weights, RoPE's pattern, a body.
IrBuilder Mixed() {
  IrBuilder ir;
  const auto x = ir.Parameter("x", {4, 16});
  const auto w0 = ir.Weights("w0", ElementType::kF32, {16, 16}, 8);
  const auto m0 = ir.MatMul("m0", x, w0, false, false, {4, 16});
  const auto tied =
      ir.ConstantAt("tied", ElementType::kF32, {16, 16}, 0, 16 * 16 * 4);
  const auto m1 = ir.MatMul("m1", m0, tied, false, true, {4, 16});
  const auto concat =
      ir.Op("cat", "Concat", "opset1", "<data axis=\"1\"/>", {m1, m1}, {4, 32});
  ir.Result("r0", ir.Op("sin", "Sin", "opset1", "", {concat}, {4, 32}));
  ir.Result("r1", ir.Op("cos", "Cos", "opset1", "", {concat}, {4, 32}));
  const auto body = ir.Op(
      "if", "If", "opset8",
      "<then_body><layers><layer id=\"0\" name=\"b\" type=\"Const\" "
      "version=\"opset1\"><data element_type=\"f32\" shape=\"4\" offset=\"0\" "
      "size=\"16\"/><output><port id=\"0\" precision=\"FP32\"/></output>"
      "</layer></layers>"
      "</then_body>",
      {m1}, {4, 16});
  ir.Result("r2", body);
  return ir;
}

std::string Model(const IrBuilder& ir, const std::string& options) {
  return ovpress::fuzz::JoinModelInput({options, ir.Xml(), ir.Bin()});
}

void ModelSeeds() {
  const std::pair<const char*, IrBuilder> models[] = {
      {"llm_f32", Llm(ElementType::kF32)},
      {"llm_f16", Llm(ElementType::kF16)},
      {"llm_bf16", Llm(ElementType::kBf16)},
      {"conv", Convolutions()},
      {"mixed", Mixed()}};
  for (const auto& [name, ir] : models) {
    Write("model_xml", name, ir.Xml());
    for (size_t mode = 0; mode < std::size(ovpress::kAllModes); ++mode) {
      std::string options(ovpress::fuzz::kOptionBytes, '\0');
      options[0] = static_cast<char>(mode);
      // Group size 16, adjusted; half the ratio for every other mode; awq.
      options[1] = mode >= 2 ? 2 * 6 + 1 : 0;
      options[2] = mode >= 2 && mode % 2 == 0 ? 2 * 60 + 1 : 0;
      options[4] = mode >= 2 && mode % 3 == 0 ? 4 + 8 + 1 + 2 : 0;
      options[5] = 1;
      const std::string file = absl::StrCat(name, "_", mode);
      Write("compress", file, Model(ir, options));
      if (mode % 4 == 0) Write("plan", file, Model(ir, options));
    }
  }
  for (const auto& entry :
       fs::directory_iterator(fs::path(OVPRESS_TEST_DATA_DIR) / "models")) {
    const std::string xml = ReadFile(entry.path() / "openvino_model.xml");
    const std::string name = entry.path().filename();
    Write("model_xml", name, xml);
    std::string options(ovpress::fuzz::kOptionBytes, '\0');
    options[0] = 3;
    options[5] = 2;
    Write("plan", name, ovpress::fuzz::JoinModelInput({options, xml, ""}));
  }
}

void OtherSeeds() {
  for (int i = 0; i < 4; ++i) {
    Write("ranges", absl::StrCat("seed", i),
          std::string("\x01\x00\x00\x04\x02", 5) + std::string(20, char(i)));
  }
  Write("codebook", "array", "[-1.5, -0.5, 0, 0.25, 1]");
  Write("codebook", "typed",
        "{\"dtype\": \"f8e4m3\", \"values\": [-448, -1, 0, 1, 448]}");
  Write("codebook", "ints", "{\"dtype\": \"i8\", \"values\": [-128, 0, 127]}");
  for (const auto& [descr, width] :
       {std::pair{"<f4", 4}, {"<f2", 2}, {"<f8", 8}, {"|i1", 1}, {"<i8", 8}}) {
    std::string header = absl::StrCat("{'descr': '", descr,
                                      "', 'fortran_order': False, 'shape': "
                                      "(2,), }");
    header.resize(117, ' ');
    header += '\n';
    std::string npy("\x93NUMPY\x01\x00", 8);
    npy += static_cast<char>(header.size());
    npy += '\0';
    npy += header;
    npy += std::string(static_cast<size_t>(width), '\0');
    std::string one(static_cast<size_t>(width), '\0');
    one.back() = '\x3c';
    npy += one;
    Write("codebook", absl::StrCat("npy_", descr + 1), npy);
  }
}

#ifdef OVPRESS_FUZZ_WITH_SERVER
void AccessSeeds() {
  const std::string hash(64, 'b');
  Write("access", "tokens",
        absl::StrCat(R"(t{"tokens":[{"identity":"a","sha256":")", hash,
                     R"(","scopes":["submit","read"],"expires":)"
                     R"("2030-01-01T00:00:00Z","comment":"c"}],)"
                     R"("identities":[{"identity":"cert:x","scopes":)"
                     R"(["admin"],"comment":"d"}]})"));
  Write("access", "quotas",
        R"(q{"identities":{"a":{"max_bytes":"2GiB","max_uploads":1,)"
        R"("max_queued":2,"max_running":3,"max_transfers":4,"max_watchers":5,)"
        R"("max_requests_per_second":0.5}}})");
  // The public keys of RFC 7517, appendix A.1.
  Write("access", "keys",
        R"(k{"keys":[{"kty":"EC","crv":"P-256",)"
        R"("x":"MKBCTNIcKUSDii11ySs3526iDZ8AiTo7Tu6KPAqv7D4",)"
        R"("y":"4Etl6SRW2YiLUrN5vfvVHuhp7x8PxltmWWlbbM4IFyM",)"
        R"("use":"sig","alg":"ES256","key_ops":["verify"],"kid":"1"},)"
        R"({"kty":"RSA","n":"0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78L)"
        R"(hWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhM)"
        R"(stn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2Q)"
        R"(vzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD0)"
        R"(8qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1)"
        R"(jF44-csFCur-kEgU8awapJzKnqDKgw","e":"AQAB","alg":"RS256",)"
        R"("kid":"2011-04-29"}]})");
  Write("access", "claims",
        R"(c{"iss":"i","aud":["x","a"],"sub":"s","exp":2000,"nbf":900.5,)"
        R"("iat":900,"scope":"submit read admin"})");
  Write("access", "header", R"(h{"alg":"ES256","kid":"k","typ":"JWT"})");
  Write("access", "forged", "jeyJhbGciOiJub25lIiwia2lkIjoiayJ9.e30.");
}

void ServerSeeds() {
  AccessSeeds();
  const std::string digest(64, 'a');
  Write("names", "blob", absl::StrCat("blobs/", digest, "/12"));
  Write("names", "upload",
        absl::StrCat("uploads/0a-Z/blobs/", digest, "/9223372036854775807"));
  Write("names", "dots", absl::StrCat("uploads/../blobs/", digest, "/1"));
  Write("names", "digest", digest);
  for (size_t i = 0; i < 64; ++i) {
    std::string bytes(ovpress::fuzz::kOptionBytes, '\0');
    for (size_t k = 0; k < bytes.size(); ++k) {
      bytes[k] = static_cast<char>((i * 37 + k * 101) % 256);
    }
    const auto options = ovpress::fuzz::OptionsFromBytes(bytes);
    if (!ovpress::ValidateOptions(options).ok()) continue;
    Write("options_json", absl::StrCat("seed", i),
          ovpress::OptionsToJson(options));
  }
  ovpress::v1::CompressModelRequest request;
  request.set_request_id("r");
  for (auto* blob : {request.mutable_model()->mutable_xml(),
                     request.mutable_model()->mutable_bin()}) {
    blob->set_sha256(digest);
    blob->set_size_bytes(7);
  }
  auto* options = request.mutable_options();
  options->set_mode("int4_sym");
  options->set_ratio(0.5);
  options->set_group_size(32);
  options->set_backup_mode("int8_sym");
  options->set_sensitivity_metric("weight_quantization_error");
  options->set_group_size_fallback("adjust");
  options->mutable_ignored_scope()->add_names("m0");
  options->mutable_ignored_scope()->add_patterns(".*");
  options->mutable_ignored_scope()->add_types("MatMul");
  request.mutable_settings()->set_memory_budget_bytes(1 << 28);
  request.mutable_ttl()->set_seconds(60);
  (*request.mutable_labels())["team"] = "a";
  Write("wire", "job", '\0' + request.SerializeAsString());
  Write("wire", "options", '\1' + options->SerializeAsString());
  ovpress::v1::CompressionOptions table;
  table.set_mode("codebook");
  table.set_codebook("[-1, 0, 1]");
  Write("wire", "codebook", '\1' + table.SerializeAsString());
  ovpress::v1::EstimateCompressionRequest estimate;
  estimate.set_xml(Mixed().Xml());
  estimate.mutable_options()->set_mode("int8_sym");
  Write("wire", "estimate", '\2' + estimate.SerializeAsString());
  ovpress::v1::CompressStreamRequest open;
  *open.mutable_open()->mutable_options() = *options;
  open.mutable_open()->set_xml_size(10);
  Write("wire", "stream", '\3' + open.SerializeAsString());
  ovpress::v1::FindMissingBlobsRequest missing;
  *missing.add_blobs() = request.model().xml();
  Write("wire", "missing", '\4' + missing.SerializeAsString());
  google::bytestream::WriteRequest write;
  write.set_resource_name(absl::StrCat("uploads/u/blobs/", digest, "/7"));
  write.set_data("abcdefg");
  write.set_finish_write(true);
  Write("wire", "write", '\5' + write.SerializeAsString());
  google::bytestream::ReadRequest read;
  read.set_resource_name(absl::StrCat("blobs/", digest, "/7"));
  Write("wire", "read", '\6' + read.SerializeAsString());
  Write("wire", "error", "\7some message");
}
#endif

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) {
    std::fprintf(stderr, "usage: fuzz_seeds FOLDER\n");
    return 2;
  }
  root = argv[1];
  ModelSeeds();
  OtherSeeds();
#ifdef OVPRESS_FUZZ_WITH_SERVER
  ServerSeeds();
#endif
  return 0;
}
