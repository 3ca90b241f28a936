// Reading: real files, bodies, and one corruption for each field that the XML
// controls.
#include "core/ir/model.h"

#include <fstream>
#include <sstream>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "core/ir/editor.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using ::ovpress::testing::StatusIs;
using ::testing::HasSubstr;

std::string ReadFile(const std::string& path) {
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  EXPECT_FALSE(text.str().empty()) << path;
  return text.str();
}

std::string ModelPath(const std::string& name) {
  return absl::StrCat(OVPRESS_TEST_DATA_DIR, "/models/", name,
                      "/openvino_model.xml");
}

constexpr const char* kModels[] = {"bert",       "gpt2",  "llama",
                                   "llama_tied", "qwen2", "resnet"};

constexpr const char kSmall[] = R"(<?xml version="1.0"?>
<net name="small" version="11">
	<layers>
		<layer id="0" name="x" type="Parameter" version="opset1">
			<data shape="?,4" element_type="f32" />
			<output>
				<port id="0" precision="FP32" names="x">
					<dim>-1</dim>
					<dim>4</dim>
				</port>
			</output>
		</layer>
		<layer id="1" name="w" type="Const" version="opset1">
			<data element_type="f32" shape="8, 4" offset="16" size="128" />
			<output>
				<port id="0" precision="FP32" names="weight">
					<dim>8</dim>
					<dim>4</dim>
				</port>
			</output>
		</layer>
		<layer id="2" name="mm" type="MatMul" version="opset1">
			<data transpose_a="false" transpose_b="true" />
			<input>
				<port id="0" precision="FP32">
					<dim>-1</dim>
					<dim>4</dim>
				</port>
				<port id="1" precision="FP32">
					<dim>8</dim>
					<dim>4</dim>
				</port>
			</input>
			<output>
				<port id="2" precision="FP32">
					<dim>-1</dim>
					<dim>8</dim>
				</port>
			</output>
		</layer>
		<layer id="3" name="y" type="Result" version="opset1">
			<input>
				<port id="0" precision="FP32">
					<dim>-1</dim>
					<dim>8</dim>
				</port>
			</input>
		</layer>
	</layers>
	<edges>
		<edge from-layer="0" from-port="0" to-layer="2" to-port="0" />
		<edge from-layer="1" from-port="0" to-layer="2" to-port="1" />
		<edge from-layer="2" from-port="2" to-layer="3" to-port="0" />
	</edges>
	<rt_info>
		<optimum>
			<version value="1" />
		</optimum>
	</rt_info>
</net>
)";

std::string With(absl::string_view from, absl::string_view to) {
  const std::string changed = absl::StrReplaceAll(kSmall, {{from, to}});
  EXPECT_NE(changed, kSmall) << from;
  return changed;
}

TEST(Model, ReadsLayersEdgesAndConstants) {
  const auto model = Model::Parse(kSmall);
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->name(), "small");
  EXPECT_EQ(model->version(), 11);
  ASSERT_EQ(model->layers().size(), 4u);
  const Layer& matmul = model->layers()[2];
  EXPECT_EQ(matmul.Attribute("transpose_b"), "true");
  EXPECT_EQ(matmul.producers[1].layer, 1u);
  ASSERT_EQ(matmul.consumers[0].size(), 1u);
  EXPECT_EQ(matmul.consumers[0][0].layer, 3u);
  ASSERT_EQ(model->constants().size(), 1u);
  const Constant& constant = model->constants()[0];
  EXPECT_EQ(constant.element_count, 32u);
  EXPECT_EQ(constant.offset_bytes, 16u);
  EXPECT_EQ(model->BinBytesUsed(), 144u);
  EXPECT_TRUE(model->CheckConstantRanges(144).ok());
  EXPECT_THAT(
      model->CheckConstantRanges(143),
      StatusIs(absl::StatusCode::kDataLoss, HasSubstr("'w' at 16 of 128")));
}

// OpenVINO does not care for the case of types and booleans.
TEST(Model, SpellingsOfTypesAndBooleans) {
  for (const char* type : {"matmul", "MATMUL", "Matmul"}) {
    const auto model =
        Model::Parse(With("\"MatMul\"", absl::StrCat("\"", type, "\"")));
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_EQ(model->layers()[2].type, "MatMul");
  }
  // The ends of a graph it finds by these alone.
  const auto other = Model::Parse(With("\"Result\"", "\"result\""));
  ASSERT_TRUE(other.ok()) << other.status();
  EXPECT_EQ(other->layers()[3].type, "result");
  for (const char* value : {"true", "True", "TRUE", "1"}) {
    const auto model = Model::Parse(absl::StrReplaceAll(
        kSmall, {{"transpose_b=\"true\"",
                  absl::StrCat("transpose_b=\"", value, "\"")}}));
    ASSERT_TRUE(model.ok()) << model.status();
    EXPECT_TRUE(model->layers()[2].IsTrue("transpose_b")) << value;
    EXPECT_FALSE(model->layers()[2].IsTrue("transpose_a"));
    EXPECT_FALSE(model->layers()[2].IsTrue("transpose_c"));
  }
}

TEST(Model, WhatAConvertGivesIsInItsAttribute) {
  const auto model =
      Model::Parse(With("\"MatMul\" version=\"opset1\">\n\t\t\t<data ",
                        "\"Convert\" version=\"opset1\">\n\t\t\t<data "
                        "destination_type=\"f16\" "));
  ASSERT_TRUE(model.ok()) << model.status();
  EXPECT_EQ(model->layers()[2].outputs[0].type, ElementType::kF16);
}

TEST(Model, ReadsTheExportersFiles) {
  for (const char* name : kModels) {
    const auto model = Model::Parse(ReadFile(ModelPath(name)));
    ASSERT_TRUE(model.ok()) << name << ": " << model.status();
    EXPECT_GT(model->constants().size(), 5u);
  }
}

TEST(Model, OneErrorForEachCorruptedField) {
  const struct {
    const char* from;
    const char* to;
    absl::StatusCode code;
    const char* piece;
  } kCases[] = {
      {"<net ", "<nett ", absl::StatusCode::kDataLoss, "malformed"},
      {"version=\"11\"", "version=\"7\"", absl::StatusCode::kUnimplemented,
       "IR version '7'"},
      {"version=\"11\"", "version=\"x\"", absl::StatusCode::kUnimplemented,
       "IR version 'x'"},
      {" version=\"11\"", "", absl::StatusCode::kUnimplemented, "IR version"},
      {"<layer id=\"1\"", "<layer id=\"0\"", absl::StatusCode::kDataLoss,
       "two layers have the id 0"},
      {"<layer id=\"1\"", "<layer id=\"-1\"", absl::StatusCode::kDataLoss,
       "not an unsigned number"},
      {"<layer id=\"1\"", "<layer id=\"1e3\"", absl::StatusCode::kDataLoss,
       "not an unsigned number"},
      {"<layer id=\"1\"", "<layer", absl::StatusCode::kDataLoss,
       "no attribute 'id'"},
      {" name=\"mm\"", "", absl::StatusCode::kDataLoss, "no attribute 'name'"},
      {"type=\"MatMul\" version=\"opset1\"", "type=\"MatMul\"",
       absl::StatusCode::kDataLoss, "no attribute 'version'"},
      {"<port id=\"2\" precision=\"FP32\">", "<port id=\"2\">",
       absl::StatusCode::kDataLoss, "output without a 'precision'"},
      {"\"Const\"", "\"constant\"", absl::StatusCode::kDataLoss,
       "calls a constant 'Const'"},
      {"element_type=\"f32\" shape=\"8, 4\"",
       "element_type=\"FP32\" shape=\"8, 4\"", absl::StatusCode::kUnimplemented,
       "unknown element type 'FP32'"},
      {"element_type=\"f32\" shape=\"8, 4\"",
       "element_type=\"f33\" shape=\"8, 4\"", absl::StatusCode::kUnimplemented,
       "unknown element type 'f33'"},
      {"element_type=\"f32\" shape=\"8, 4\"",
       "element_type=\"f64\" shape=\"8, 4\"", absl::StatusCode::kDataLoss,
       "needs 256 bytes"},
      {"shape=\"8, 4\"", "shape=\"8, 5\"", absl::StatusCode::kDataLoss,
       "needs 160 bytes, but its size is 128"},
      {"shape=\"8, 4\"", "shape=\"8, -4\"", absl::StatusCode::kDataLoss,
       "not a list of sizes"},
      {"shape=\"8, 4\"", "shape=\"8, ?\"", absl::StatusCode::kDataLoss,
       "not a list of sizes"},
      {"shape=\"8, 4\"", "shape=\"4294967296, 4294967296\"",
       absl::StatusCode::kDataLoss, "overflows 64 bits"},
      {"shape=\"8, 4\"", "shape=\"4611686018427387904\"",
       absl::StatusCode::kDataLoss, "needs too many bytes"},
      {"shape=\"8, 4\"", "shape=\"9223372036854775808\"",
       absl::StatusCode::kDataLoss, "not a list of sizes"},
      {"offset=\"16\"", "offset=\"-16\"", absl::StatusCode::kDataLoss,
       "offset='-16'"},
      {"offset=\"16\"", "offset=\"18446744073709551600\"",
       absl::StatusCode::kDataLoss, "overflows 64 bits"},
      {" offset=\"16\"", "", absl::StatusCode::kDataLoss,
       "no attribute 'offset'"},
      {"size=\"128\"", "size=\"\"", absl::StatusCode::kDataLoss, "size=''"},
      {"size=\"128\"", "size=\"127\"", absl::StatusCode::kDataLoss,
       "size is 127"},
      {"<port id=\"1\"", "<port id=\"0\"", absl::StatusCode::kDataLoss,
       "two ports with id 0"},
      {"<port id=\"1\"", "<port id=\"4294967296\"", absl::StatusCode::kDataLoss,
       "out of range"},
      {"from-layer=\"1\"", "from-layer=\"9\"", absl::StatusCode::kDataLoss,
       "no layer 9"},
      {"to-layer=\"3\"", "to-layer=\"9\"", absl::StatusCode::kDataLoss,
       "no layer 9"},
      {"from-port=\"2\"", "from-port=\"5\"", absl::StatusCode::kDataLoss,
       "no output port 5"},
      {"to-port=\"1\"", "to-port=\"5\"", absl::StatusCode::kDataLoss,
       "no input port 5"},
      {"to-port=\"1\"", "to-port=\"0\"", absl::StatusCode::kDataLoss,
       "has an edge already"},
      {"from-layer=\"1\" from-port=\"0\"", "from-layer=\"2\" from-port=\"2\"",
       absl::StatusCode::kDataLoss, "cycle"},
      {"<?xml version=\"1.0\"?>", "<!DOCTYPE net [<!ENTITY a \"b\">]>",
       absl::StatusCode::kDataLoss, "document type"},
  };
  for (const auto& c : kCases) {
    EXPECT_THAT(Model::Parse(With(c.from, c.to)),
                StatusIs(c.code, HasSubstr(c.piece)))
        << c.from << " -> " << c.to;
  }
}

TEST(Model, EveryTruncationIsAnErrorNeverACrash) {
  const std::string text = kSmall;
  for (size_t size = 0; size + 8 < text.size(); ++size) {
    EXPECT_FALSE(Model::Parse(text.substr(0, size)).ok()) << size;
  }
}

TEST(Model, LimitsAreNamed) {
  IrLimits limits;
  limits.xml_bytes_max = 100;
  EXPECT_THAT(Model::Parse(kSmall, limits),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("the limit is 100")));
  limits = {};
  limits.layers_max = 3;
  EXPECT_THAT(Model::Parse(kSmall, limits),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("more than 3 layers")));
  // Nesting deeper than any stack would bear.
  std::string deep = "<net version=\"11\"><layers>";
  for (int i = 0; i < 300000; ++i) deep += "<a>";
  EXPECT_FALSE(Model::Parse(deep).ok());
  for (int i = 0; i < 300000; ++i) deep += "</a>";
  deep += "</layers></net>";
  EXPECT_THAT(Model::Parse(deep), StatusIs(absl::StatusCode::kResourceExhausted,
                                           HasSubstr("deeper than 256")));
}

TEST(Model, ConstantsOfBodiesAreFoundAtAnyDepth) {
  const std::string body =
      R"(<layer id="7" name="if" type="If" version="opset8">
<then_body><layers><layer id="0" name="inner" type="Const" version="opset1">
<data element_type="i64" shape="" offset="0" size="8"/><output><port id="0"/></output></layer>
<layer id="1" name="loop" type="Loop" version="opset5"><body><layers>
<layer id="0" name="deepest" type="Const" version="opset1">
<data element_type="u4" shape="3" offset="8" size="2"/><output><port id="0"/></output></layer>
</layers></body></layer></layers></then_body></layer></layers>)";
  const auto model = Model::Parse(With("</layers>", body));
  ASSERT_TRUE(model.ok()) << model.status();
  ASSERT_EQ(model->constants().size(), 3u);
  EXPECT_EQ(model->constants()[1].name, "inner");
  EXPECT_EQ(model->constants()[1].layer, kNone);
  EXPECT_EQ(model->constants()[2].name, "deepest");
  EXPECT_TRUE(model->layers().back().has_body);
}

// --- editor ----------------------------------------------------------------

TEST(ModelEditor, AnUntouchedModelIsWrittenAsOpenVinoWroteIt) {
  for (const char* name : kModels) {
    const std::string text = ReadFile(ModelPath(name));
    const auto model = Model::Parse(text);
    ASSERT_TRUE(model.ok());
    EXPECT_EQ(ModelEditor(*model).Serialize(), text) << name;
  }
  const auto model = Model::Parse(kSmall);
  EXPECT_EQ(ModelEditor(*model).Serialize(), kSmall);
}

TEST(ModelEditor, AddsBehindTheAnchorInOrderAndRedirects) {
  const auto model = Model::Parse(kSmall);
  ModelEditor editor(*model);
  const NewLayer convert{.name = "c<&>\"1\"",
                         .type = "Convert",
                         .version = "opset1",
                         .attributes = {{"destination_type", "f16"}},
                         .inputs = {{ElementType::kF32, {8, 4}}},
                         .outputs = {{ElementType::kF16, {8, 4}}}};
  const uint64_t first = editor.AddLayerAfter(1, convert);
  NewLayer other = convert;
  other.name = "second";
  const uint64_t second = editor.AddLayerAfter(1, other);
  EXPECT_EQ(first, 4u);
  EXPECT_EQ(second, 5u);
  editor.Connect({1, 0}, {first, 0});
  editor.Connect({first, 1}, {second, 0});
  editor.Connect({second, 1}, {2, 1});  // replaces w -> mm
  editor.SetLayerName(3, "renamed");
  const auto again = Model::Parse(editor.Serialize());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->layers()[2].name, "c<&>\"1\"");
  EXPECT_EQ(again->layers()[3].name, "second");
  EXPECT_EQ(again->layers()[4].producers[1].layer, 3u);
  EXPECT_EQ(again->layers()[1].consumers[0].size(), 1u);
  EXPECT_EQ(again->layers()[5].name, "renamed");
}

TEST(ModelEditor, RemovesALayerWithItsEdgesOnly) {
  const auto model = Model::Parse(kSmall);
  ModelEditor editor(*model);
  // mm reads x twice once w is gone and redirected.
  editor.Connect({0, 0}, {2, 1});
  editor.RemoveLayer(1);
  const auto again = Model::Parse(editor.Serialize());
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->layers().size(), 3u);
  EXPECT_EQ(again->layers()[0].consumers[0].size(), 2u);
}

TEST(ModelEditor, RewritesAConstant) {
  const auto model = Model::Parse(kSmall);
  ModelEditor editor(*model);
  editor.SetConstant(1, ElementType::kU4, {8, 2, 2}, 7, 16, true);
  const std::string text = editor.Serialize();
  EXPECT_THAT(text, HasSubstr("<data element_type=\"u4\" shape=\"8, 2, 2\" "
                              "offset=\"7\" size=\"16\" />"));
  EXPECT_THAT(text, HasSubstr("<port id=\"0\" precision=\"U4\">"));
  EXPECT_THAT(text, ::testing::Not(HasSubstr("names=\"weight\"")));
  const auto again = Model::Parse(text);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_EQ(again->layers()[1].outputs[0].dims,
            (std::vector<int64_t>{8, 2, 2}));
}

TEST(ModelEditor, RtInfoStaysSortedAndKeepsItsNeighbours) {
  const auto model = Model::Parse(kSmall);
  ModelEditor editor(*model);
  editor.SetRtInfo({"zeta"}, "3");
  editor.SetRtInfo({"nncf", "b"}, "2");
  editor.SetRtInfo({"nncf", "a"}, "1");
  editor.SetRtInfo({"nncf", "a"}, "1 & \"more\"");
  editor.SetRtInfo({"gone", "x"}, "1");
  editor.RemoveRtInfo({"gone"});
  editor.RemoveRtInfo({"never", "was"});
  EXPECT_THAT(editor.Serialize(),
              HasSubstr("\t<rt_info>\n"
                        "\t\t<nncf>\n"
                        "\t\t\t<a value=\"1 &amp; &quot;more&quot;\" />\n"
                        "\t\t\t<b value=\"2\" />\n"
                        "\t\t</nncf>\n"
                        "\t\t<optimum>\n"
                        "\t\t\t<version value=\"1\" />\n"
                        "\t\t</optimum>\n"
                        "\t\t<zeta value=\"3\" />\n"
                        "\t</rt_info>"));
}

TEST(ModelEditor, LegacyMetadataBecomesRtInfo) {
  const char kMeta[] =
      "\t<meta_data>\n"
      "\t\t<MO_version value=\"2021.4\" />\n"
      "\t\t<cli_parameters>\n"
      "\t\t\t<unset unset_cli_parameters=\"a, b\" />\n"
      "\t\t</cli_parameters>\n"
      "\t</meta_data>\n"
      "\t<quantization_parameters>\n"
      "\t\t<config>{\n    'a': 1}</config>\n"
      "\t</quantization_parameters>\n";
  std::string old = kSmall;
  old.replace(old.find("\t<rt_info>"), std::string::npos,
              absl::StrCat(kMeta, "</net>\n"));
  const auto model = Model::Parse(old);
  ASSERT_TRUE(model.ok()) << model.status();
  ModelEditor editor(*model);
  editor.AdoptLegacyMetadata();
  editor.SetRtInfo({"nncf", "a"}, "1");
  const std::string xml = editor.Serialize();
  EXPECT_THAT(xml, HasSubstr("\t<rt_info>\n"
                             "\t\t<MO_version value=\"2021.4\" />\n"
                             "\t\t<conversion_parameters>\n"
                             "\t\t\t<unset unset_cli_parameters=\"a, b\" />\n"
                             "\t\t</conversion_parameters>\n"
                             "\t\t<nncf>\n"
                             "\t\t\t<a value=\"1\" />\n"
                             "\t\t</nncf>\n"
                             "\t\t<optimization>\n"
                             "\t\t\t<config value=\"{ 'a': 1}\" />\n"
                             "\t\t</optimization>\n"
                             "\t</rt_info>"));
  EXPECT_THAT(xml, ::testing::Not(HasSubstr("meta_data")));
  EXPECT_THAT(xml, ::testing::Not(HasSubstr("quantization_parameters")));
  // Beside <rt_info> OpenVINO does not look at them.
  std::string both = kSmall;
  both.insert(both.find("\t<rt_info>"), kMeta);
  const auto second = Model::Parse(both);
  ASSERT_TRUE(second.ok()) << second.status();
  ModelEditor other(*second);
  other.AdoptLegacyMetadata();
  EXPECT_THAT(other.Serialize(), ::testing::Not(HasSubstr("2021.4")));
}

}  // namespace
}  // namespace ovpress
