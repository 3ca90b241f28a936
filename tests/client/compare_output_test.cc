// What `ovpress compare` prints: limits, bins, and names that are hostile.
#include "client/cli/compare.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

using ::testing::HasSubstr;
using ::testing::Not;

// A weight with signal 1 and the error that gives this SQNR.
ComparedWeight WithSqnr(const std::string& name, double sqnr_db) {
  ComparedWeight weight;
  weight.a = {name, "f32", {2, 3}, 24};
  weight.b = {name, "i4 g2", {2, 3}, 5};
  weight.reader_type = "MatMul";
  weight.is_weight = true;
  weight.elements = 6;
  weight.distance.signal = weight.distance.signal_b = weight.distance.product =
      1;
  weight.distance.error = std::pow(10.0, -sqnr_db / 10);
  return weight;
}

ModelComparison Some() {
  ModelComparison comparison;
  comparison.weights = {WithSqnr("good", 41), WithSqnr("bad", 12),
                        WithSqnr("fair", 22)};
  ComparedWeight equal = WithSqnr("same", 0);
  equal.distance.error = 0;
  comparison.weights.push_back(equal);
  return comparison;
}

TEST(BelowSqnr, NamesTheWorst) {
  EXPECT_EQ(BelowSqnr(Some(), 11.9), "");
  EXPECT_THAT(BelowSqnr(Some(), 30),
              HasSubstr("2 weights are below 30 dB; the worst is bad with "
                        "12.00 dB"));
  ModelComparison missing = Some();
  missing.only_in_a.push_back({{"bias", "f32", {1}, 4}, "add", false});
  EXPECT_EQ(BelowSqnr(missing, 0), "");
  missing.only_in_b.push_back({{"w", "f32", {1}, 4}, "mm", true});
  EXPECT_THAT(BelowSqnr(missing, 0), HasSubstr("w is in one model only"));
  ModelComparison shapes = Some();
  shapes.shape_mismatches.push_back(WithSqnr("w", 9));
  EXPECT_THAT(BelowSqnr(shapes, 0), HasSubstr("w has shape [2,3]"));
}

TEST(SqnrHistogram, CountsEveryWeightOnce) {
  const SqnrHistogram histogram = MakeSqnrHistogram(Some());
  EXPECT_EQ(histogram.equal, 1u);
  size_t count = 0;
  for (const SqnrHistogram::Bin& bin : histogram.bins) count += bin.count;
  EXPECT_EQ(count, 3u);
  EXPECT_LE(histogram.bins.front().low, 12);
  EXPECT_GT(histogram.bins.back().high, 41);
  EXPECT_LE(histogram.bins.size(), 24u);
  EXPECT_TRUE(MakeSqnrHistogram({}).bins.empty());
  ModelComparison wide;
  wide.weights = {WithSqnr("a", -200), WithSqnr("b", 2000)};
  EXPECT_LE(MakeSqnrHistogram(wide).bins.size(), 24u);
}

TEST(CompareText, ListsTheWorstFirst) {
  const std::string text = CompareText(Some(), "a.xml", "b.xml", 2);
  EXPECT_THAT(text, HasSubstr("the worst 2 of 4 weights"));
  EXPECT_LT(text.find(" bad "), text.find(" fair "));
  EXPECT_THAT(text, Not(HasSubstr(" good ")));
  EXPECT_THAT(text, HasSubstr("f32 -> i4 g2"));
}

TEST(CompareJson, HasNoInfinity) {
  const auto json = nlohmann::json::parse(CompareJson(Some(), "a", "b"));
  EXPECT_EQ(json["weights"].size(), 4u);
  EXPECT_NEAR(json["weights"][1]["sqnr_db"].get<double>(), 12, 1e-9);
  EXPECT_TRUE(json["weights"][3]["sqnr_db"].is_null());
  EXPECT_TRUE(json["weights"][3]["equal"].get<bool>());
}

TEST(CompareHtml, EscapesNamesAndStandsAlone) {
  ModelComparison comparison = Some();
  comparison.weights[0].a.name = "<script>alert(\"1\" & '2')</script>";
  comparison.only_in_b.push_back({{"<img src=x>", "f32", {1}, 4}, "mm", true});
  const std::string page = CompareHtml(comparison, "a<b>.xml", "b.xml");
  EXPECT_THAT(page, Not(HasSubstr("<script>alert")));
  EXPECT_THAT(page, Not(HasSubstr("<img")));
  EXPECT_THAT(page, Not(HasSubstr("a<b>")));
  EXPECT_THAT(page, HasSubstr("&lt;script&gt;alert(&quot;1&quot; &amp; "
                              "&#39;2&#39;)&lt;/script&gt;"));
  for (const char* outside : {"http:", "https:", "src=\"", "url(", "@import"}) {
    EXPECT_THAT(page, Not(HasSubstr(outside)));
  }
  EXPECT_THAT(page, HasSubstr("<svg"));
  // An empty comparison is a page, too.
  EXPECT_THAT(CompareHtml({}, "a", "b"), HasSubstr("</html>"));
}

}  // namespace
}  // namespace ovpress
