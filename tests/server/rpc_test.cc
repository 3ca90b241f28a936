// The translation of errors and of options at the border to the wire.
#include "gmock/gmock.h"
#include "google/rpc/error_details.pb.h"
#include "gtest/gtest.h"
#include "server/jobs/errors.h"
#include "server/rpc/convert.h"
#include "server/rpc/grpc_status.h"

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

}  // namespace
}  // namespace ovpress
