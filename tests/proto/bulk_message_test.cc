// BulkMessage against protobuf itself.
#include "proto/bulk_message.h"

#include <string>
#include <vector>

#include "google/bytestream/bytestream.pb.h"
#include "grpcpp/impl/codegen/proto_utils.h"
#include "gtest/gtest.h"
#include "ovpress/v1/compression.pb.h"

namespace ovpress {
namespace {

using google::bytestream::WriteRequest;
using BulkWrite = BulkMessage<WriteRequest, 10>;
using BulkStream = BulkMessage<v1::CompressStreamRequest, 3>;

template <typename Bulk>
bool Parse(const std::vector<std::string>& pieces, Bulk* message) {
  std::vector<grpc::Slice> slices;
  for (const std::string& piece : pieces) slices.emplace_back(piece);
  grpc::ByteBuffer buffer(slices.data(), slices.size());
  return grpc::SerializationTraits<Bulk>::Deserialize(&buffer, message).ok();
}

template <typename Bulk>
std::string Encode(const Bulk& message) {
  grpc::ByteBuffer buffer;
  bool own = false;
  EXPECT_TRUE(
      grpc::SerializationTraits<Bulk>::Serialize(message, &buffer, &own).ok());
  std::vector<grpc::Slice> slices;
  EXPECT_TRUE(buffer.Dump(&slices).ok());
  std::string text;
  for (const grpc::Slice& slice : slices) {
    text.append(slice.begin(), slice.end());
  }
  return text;
}

WriteRequest Example(size_t size) {
  WriteRequest request;
  request.set_resource_name("uploads/u/blobs/b/7");
  request.set_write_offset(1ll << 40);
  request.set_finish_write(true);
  std::string data(size, '\0');
  for (size_t i = 0; i < size; ++i) data[i] = static_cast<char>(i * 7);
  request.set_data(data);
  return request;
}

TEST(BulkMessageTest, ReadsWhatProtobufWritesWhereverItIsCut) {
  for (const size_t size : {size_t{1}, size_t{127}, size_t{128}, size_t{300}}) {
    const WriteRequest request = Example(size);
    const std::string wire = request.SerializeAsString();
    for (size_t cut = 0; cut <= wire.size(); ++cut) {
      BulkWrite message;
      ASSERT_TRUE(Parse({wire.substr(0, cut), "", wire.substr(cut)}, &message));
      EXPECT_EQ(message.rest.resource_name(), request.resource_name());
      EXPECT_EQ(message.rest.write_offset(), request.write_offset());
      EXPECT_TRUE(message.rest.finish_write());
      EXPECT_TRUE(message.has_data);
      EXPECT_EQ(message.data.size(), size);
      EXPECT_EQ(message.data.ToString(), request.data());
      std::string copy(size, '\0');
      message.data.CopyTo(reinterpret_cast<std::byte*>(copy.data()));
      EXPECT_EQ(copy, request.data());
    }
  }
}

TEST(BulkMessageTest, ProtobufReadsWhatItWrites) {
  for (const size_t size : {size_t{1}, size_t{200}, size_t{70000}}) {
    const WriteRequest request = Example(size);
    BulkWrite message;
    message.rest = request;
    message.rest.clear_data();
    message.has_data = true;
    message.data.Append(grpc::Slice(request.data().substr(0, size / 2)));
    message.data.Append(grpc::Slice(request.data().substr(size / 2)));
    WriteRequest read;
    ASSERT_TRUE(read.ParseFromString(Encode(message)));
    EXPECT_EQ(read.SerializeAsString(), request.SerializeAsString());
  }
}

TEST(BulkMessageTest, EmptyFieldOfAOneofIsSet) {
  v1::CompressStreamRequest request;
  request.set_bin_chunk("");
  BulkStream message;
  ASSERT_TRUE(Parse({request.SerializeAsString()}, &message));
  EXPECT_TRUE(message.has_data);
  EXPECT_EQ(message.data.size(), 0u);
  EXPECT_EQ(Encode(message), request.SerializeAsString());
  request.mutable_open()->set_xml_size(5);
  ASSERT_TRUE(Parse({request.SerializeAsString()}, &message));
  EXPECT_FALSE(message.has_data);
  EXPECT_EQ(message.rest.open().xml_size(), 5);
}

TEST(BulkMessageTest, TheLastOfTwoCounts) {
  WriteRequest a;
  a.set_data("first");
  WriteRequest b;
  b.set_data("second");
  BulkWrite message;
  ASSERT_TRUE(Parse({a.SerializeAsString(), b.SerializeAsString()}, &message));
  EXPECT_EQ(message.data.ToString(), "second");
}

TEST(BulkMessageTest, EveryTruncationIsRefusedOrWhole) {
  const std::string wire = Example(300).SerializeAsString();
  for (size_t size = 0; size < wire.size(); ++size) {
    const std::string part = wire.substr(0, size);
    BulkWrite message;
    WriteRequest judge;
    EXPECT_EQ(Parse({part}, &message), judge.ParseFromString(part)) << size;
  }
}

TEST(BulkMessageTest, NonsenseIsRefused) {
  BulkWrite message;
  EXPECT_FALSE(Parse({std::string(12, '\xff')}, &message));
  EXPECT_FALSE(Parse({"\x53\x54"}, &message));  // a group
  // A length beyond the message.
  EXPECT_FALSE(Parse({"\x52\xff\xff\xff\xff\xff\xff\xff\xff\x7f"}, &message));
}

}  // namespace
}  // namespace ovpress
