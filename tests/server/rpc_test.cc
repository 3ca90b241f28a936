// The translation of errors and of options at the border to the wire.
#include <algorithm>
#include <string>

#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "nlohmann/json.hpp"
#include "server/jobs/errors.h"
#include "server/rpc/convert.h"
#include "server/rpc/grpc_status.h"
#include "server/rpc/log.h"

namespace ovpress {
namespace {

TEST(GrpcStatusTest, EveryCodeKeepsItsNumberAndItsText) {
  EXPECT_TRUE(ToGrpcStatus(absl::OkStatus()).ok());
  for (int code = 1; code <= 16; ++code) {
    const grpc::Status status = ToGrpcStatus(
        absl::Status(static_cast<absl::StatusCode>(code), "what happened"));
    EXPECT_EQ(static_cast<int>(status.error_code()), code);
    EXPECT_EQ(status.error_message(), "what happened");
    google::rpc::Status details;
    ASSERT_TRUE(details.ParseFromString(status.error_details()));
    google::rpc::ErrorInfo info;
    ASSERT_TRUE(details.details(0).UnpackTo(&info));
    EXPECT_EQ(info.reason(),
              absl::StatusCodeToString(static_cast<absl::StatusCode>(code)));
  }
}

TEST(GrpcStatusTest, ForeignBytesAndLengthAreTamed) {
  const google::rpc::Status status = ToRpcStatus(
      absl::DataLossError("name \xff\xfe" + std::string(10000, 'x')));
  EXPECT_LE(status.message().size(), 2048u);
  EXPECT_THAT(status.message(), testing::HasSubstr("name ??"));
}

TEST(ConvertTest, UnknownValuesNameTheValidOnes) {
  v1::CompressionOptions proto;
  EXPECT_EQ(OptionsFromProto(proto)->mode, Mode::kInt8Asym);
  proto.set_mode("int9");
  EXPECT_THAT(OptionsFromProto(proto).status().message(),
              testing::HasSubstr("nvfp4"));
  proto.set_mode("int4_sym");
  proto.set_backup_mode("int7");
  EXPECT_THAT(OptionsFromProto(proto).status().message(),
              testing::HasSubstr("int8_sym"));
}

nlohmann::json JsonOf(absl::string_view message) {
  spdlog::memory_buf_t line;
  MakeJsonLogFormatter()->format(
      spdlog::details::log_msg("ovpress", spdlog::level::warn,
                               {message.data(), message.size()}),
      line);
  const std::string text(line.data(), line.size());
  EXPECT_EQ(std::count(text.begin(), text.end(), '\n'), 1);
  return nlohmann::json::parse(text);
}

TEST(LogTest, JsonHoldsAnyMessage) {
  const std::string odd = "a \"quoted\" \\ name\nnext\tline \x01";
  const nlohmann::json line = JsonOf(odd);
  EXPECT_EQ(line["message"], odd);
  EXPECT_EQ(line["level"], "warning");
  EXPECT_FALSE(line.contains("job"));
  EXPECT_EQ(JsonOf("not UTF-8: \xff.")["message"], "not UTF-8: \uFFFD.");
}

TEST(LogTest, JobIsAFieldOfItsOwn) {
  nlohmann::json line = JsonOf("job=0123abcd failed: \"why\"");
  EXPECT_EQ(line["job"], "0123abcd");
  EXPECT_EQ(line["message"], "failed: \"why\"");
  line = JsonOf("job=0123abcd");
  EXPECT_EQ(line["job"], "0123abcd");
  EXPECT_EQ(line["message"], "");
}

}  // namespace
}  // namespace ovpress
