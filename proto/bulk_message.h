// Protobuf messages with one large `bytes` field that goes between gRPC's
// buffers and ours without the copies (two a direction) that protobuf makes.
// The wire format is protobuf's: the other side need not know.
//
// A BulkMessage can be the message type of a gRPC stream.
#ifndef OVPRESS_PROTO_BULK_MESSAGE_H_
#define OVPRESS_PROTO_BULK_MESSAGE_H_

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "google/protobuf/message_lite.h"
#include "grpcpp/impl/codegen/client_unary_call.h"
#include "grpcpp/impl/codegen/serialization_traits.h"
#include "grpcpp/support/byte_buffer.h"
#include "grpcpp/support/slice.h"
#include "grpcpp/support/status.h"
#include "grpcpp/support/sync_stream.h"

namespace ovpress {

// Bytes in pieces that gRPC counts references to. Copying it copies no byte.
class BulkBytes {
 public:
  void Append(grpc::Slice slice) {
    size_ += slice.size();
    if (slice.size() > 0) slices_.push_back(std::move(slice));
  }
  void Clear() {
    slices_.clear();
    size_ = 0;
  }
  size_t size() const { return size_; }
  const std::vector<grpc::Slice>& slices() const { return slices_; }
  // REQUIRES: room for size() bytes at `to`.
  void CopyTo(std::byte* to) const;
  std::string ToString() const;

 private:
  std::vector<grpc::Slice> slices_;
  size_t size_ = 0;
};

namespace bulk_internal {
// Splits the encoded message into field `field_number`, which must be of type
// bytes, and the encoding of the rest. False if it is no valid encoding.
bool Split(const std::vector<grpc::Slice>& message, uint32_t field_number,
           std::string* rest, bool* has_data, BulkBytes* data);
grpc::ByteBuffer Join(std::string rest, uint32_t field_number, bool has_data,
                      const BulkBytes& data);
}  // namespace bulk_internal

// `rest` is the message without field kFieldNumber, which is in `data`. In a
// oneof, has_data means that the field is the one that is set.
template <typename Message, uint32_t kFieldNumber>
struct BulkMessage {
  Message rest;
  bool has_data = false;
  BulkBytes data;
};

}  // namespace ovpress

namespace grpc {

template <typename Message, uint32_t kFieldNumber>
class SerializationTraits<ovpress::BulkMessage<Message, kFieldNumber>> {
 public:
  using Bulk = ovpress::BulkMessage<Message, kFieldNumber>;
  static Status Serialize(const Bulk& message, ByteBuffer* buffer,
                          bool* own_buffer) {
    *buffer = ovpress::bulk_internal::Join(message.rest.SerializeAsString(),
                                           kFieldNumber, message.has_data,
                                           message.data);
    *own_buffer = true;
    return Status::OK;
  }
  static Status Deserialize(ByteBuffer* buffer, Bulk* message) {
    std::vector<Slice> slices;
    const Status dumped = buffer->Dump(&slices);
    if (!dumped.ok()) return dumped;
    buffer->Clear();
    std::string rest;
    if (!ovpress::bulk_internal::Split(slices, kFieldNumber, &rest,
                                       &message->has_data, &message->data) ||
        !message->rest.ParseFromString(rest)) {
      return Status(StatusCode::INTERNAL, "a message that is no protobuf");
    }
    return Status::OK;
  }
};

}  // namespace grpc

namespace ovpress {

// Opens the call `method` ("/package.Service/Method") as a stream both ways: on
// the wire there is no difference to one that streams one way only.
template <typename Sent, typename Received>
std::unique_ptr<grpc::ClientReaderWriter<Sent, Received>> OpenBulkStream(
    grpc::ChannelInterface* channel, const char* method,
    grpc::ClientContext* context) {
  const grpc::internal::RpcMethod rpc(
      method, grpc::internal::RpcMethod::BIDI_STREAMING);
  return std::unique_ptr<grpc::ClientReaderWriter<Sent, Received>>(
      grpc::internal::ClientReaderWriterFactory<Sent, Received>::Create(
          channel, rpc, context));
}

}  // namespace ovpress

#endif  // OVPRESS_PROTO_BULK_MESSAGE_H_
