#include "proto/bulk_message.h"

#include <algorithm>
#include <cstring>
#include <utility>

namespace ovpress {
namespace {

constexpr uint32_t kVarint = 0;
constexpr uint32_t kFixed64 = 1;
constexpr uint32_t kLengthDelimited = 2;
constexpr uint32_t kFixed32 = 5;

// Reads slices in order.
class Cursor {
 public:
  explicit Cursor(const std::vector<grpc::Slice>& slices) : slices_(slices) {
    SkipEmpty();
  }

  bool AtEnd() const { return slice_ == slices_.size(); }

  // The next byte is appended to `copy`, too.
  bool Byte(uint8_t* byte, std::string* copy) {
    if (AtEnd()) return false;
    *byte = slices_[slice_].begin()[at_++];
    copy->push_back(static_cast<char>(*byte));
    SkipEmpty();
    return true;
  }

  bool Varint(uint64_t* value, std::string* copy) {
    *value = 0;
    for (int shift = 0; shift < 70; shift += 7) {
      uint8_t byte = 0;
      if (!Byte(&byte, copy)) return false;
      if (shift < 64) *value |= static_cast<uint64_t>(byte & 0x7f) << shift;
      if (byte < 0x80) return true;
    }
    return false;
  }

  // The next `size` bytes, without copying them.
  bool Take(uint64_t size, BulkBytes* bytes) {
    while (size > 0) {
      if (AtEnd()) return false;
      const grpc::Slice& slice = slices_[slice_];
      const size_t part =
          static_cast<size_t>(std::min<uint64_t>(size, slice.size() - at_));
      bytes->Append(part == slice.size() ? slice : slice.sub(at_, at_ + part));
      at_ += part;
      size -= part;
      SkipEmpty();
    }
    return true;
  }

  bool Copy(uint64_t size, std::string* copy) {
    while (size > 0) {
      if (AtEnd()) return false;
      const grpc::Slice& slice = slices_[slice_];
      const size_t part =
          static_cast<size_t>(std::min<uint64_t>(size, slice.size() - at_));
      copy->append(reinterpret_cast<const char*>(slice.begin()) + at_, part);
      at_ += part;
      size -= part;
      SkipEmpty();
    }
    return true;
  }

 private:
  void SkipEmpty() {
    while (slice_ < slices_.size() && at_ == slices_[slice_].size()) {
      ++slice_;
      at_ = 0;
    }
  }
  const std::vector<grpc::Slice>& slices_;
  size_t slice_ = 0;
  size_t at_ = 0;
};

void AppendVarint(uint64_t value, std::string* out) {
  while (value >= 0x80) {
    out->push_back(static_cast<char>(value | 0x80));
    value >>= 7;
  }
  out->push_back(static_cast<char>(value));
}

}  // namespace

void BulkBytes::CopyTo(std::byte* to) const {
  for (const grpc::Slice& slice : slices_) {
    std::memcpy(to, slice.begin(), slice.size());
    to += slice.size();
  }
}

std::string BulkBytes::ToString() const {
  std::string text;
  text.reserve(size_);
  for (const grpc::Slice& slice : slices_) {
    text.append(reinterpret_cast<const char*>(slice.begin()), slice.size());
  }
  return text;
}

namespace bulk_internal {

bool Split(const std::vector<grpc::Slice>& message, uint32_t field_number,
           std::string* rest, bool* has_data, BulkBytes* data) {
  rest->clear();
  data->Clear();
  *has_data = false;
  Cursor cursor(message);
  std::string unused;
  while (!cursor.AtEnd()) {
    const size_t start = rest->size();
    uint64_t tag = 0;
    if (!cursor.Varint(&tag, rest)) return false;
    uint64_t size = 0;
    switch (tag & 7) {
      case kVarint:
        if (!cursor.Varint(&size, rest)) return false;
        break;
      case kFixed64:
        if (!cursor.Copy(8, rest)) return false;
        break;
      case kFixed32:
        if (!cursor.Copy(4, rest)) return false;
        break;
      case kLengthDelimited:
        if (tag >> 3 == field_number) {
          rest->resize(start);
          unused.clear();
          data->Clear();  // the last one counts
          *has_data = true;
          if (!cursor.Varint(&size, &unused) || !cursor.Take(size, data)) {
            return false;
          }
        } else if (!cursor.Varint(&size, rest) || !cursor.Copy(size, rest)) {
          return false;
        }
        break;
      default:
        return false;  // groups are of proto2
    }
  }
  return true;
}

grpc::ByteBuffer Join(std::string rest, uint32_t field_number, bool has_data,
                      const BulkBytes& data) {
  std::vector<grpc::Slice> slices;
  slices.reserve(1 + data.slices().size());
  if (has_data) {
    AppendVarint(field_number << 3 | kLengthDelimited, &rest);
    AppendVarint(data.size(), &rest);
  }
  slices.emplace_back(rest);
  if (has_data) {
    slices.insert(slices.end(), data.slices().begin(), data.slices().end());
  }
  return grpc::ByteBuffer(slices.data(), slices.size());
}

}  // namespace bulk_internal
}  // namespace ovpress
