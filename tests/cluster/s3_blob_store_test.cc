// What only several servers on one object store can do, and do wrong.
#include <signal.h>

#include <algorithm>
#include <atomic>
#include <random>
#include <thread>

#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "server/cluster/sha256_state.h"
#include "tests/cluster/fake_http_server.h"
#include "tests/cluster/s3_store_fixture.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using testing::S3Place;
using ::testing::SizeIs;
using testing::StatusIs;

std::string RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

TEST(ResumableSha256Test, GoesOnFromAStoredState) {
  const std::string bytes = RandomBytes(1000, 1);
  for (const size_t cut : {size_t{0}, size_t{64}, size_t{640}}) {
    ResumableSha256 first;
    first.Update(AsBytes(bytes).first(cut));
    const std::string state = first.Save();
    EXPECT_EQ(state.size(), 40u);
    auto second = ResumableSha256::Restore(state);
    ASSERT_TRUE(second.ok());
    second->Update(AsBytes(bytes).subspan(cut));
    EXPECT_EQ(second->bytes_hashed(), bytes.size());
    EXPECT_EQ(second->FinishHex(), Sha256Hex(bytes)) << cut;
  }
  // Past 4 GiB the count of bits needs its upper half.
  std::string state = ResumableSha256().Save();
  state[3] = 4;  // 2^34 bytes
  auto late = ResumableSha256::Restore(state);
  ASSERT_TRUE(late.ok());
  EXPECT_EQ(late->Save(), state);
  EXPECT_EQ(ResumableSha256::Restore("short").status().code(),
            StatusCode::kDataLoss);
  state[7] = 1;
  EXPECT_EQ(ResumableSha256::Restore(state).status().code(),
            StatusCode::kDataLoss);
}

TEST(PartBytesTest, KeepsToTheLimitsOfS3) {
  for (const uint64_t size :
       {uint64_t{1}, uint64_t{8} << 20, uint64_t{5} << 30, uint64_t{70} << 30,
        uint64_t{256} << 30, uint64_t{5} << 40}) {
    const uint64_t part = PartBytesFor(size);
    EXPECT_EQ(part % kBlobBlockBytes, 0u) << size;
    EXPECT_LE((size + part - 1) / part, uint64_t{kS3MaxParts}) << size;
    EXPECT_GE(part, kS3MinPartBytes);
  }
  EXPECT_EQ(PartBytesFor(1), 8u << 20);
  EXPECT_EQ(PartBytesFor(uint64_t{70} << 30), 64u << 20);
}

class S3StoreTest : public ::testing::Test {
 protected:
  std::unique_ptr<S3BlobStore> Open() {
    return place_.Open(place_.Options(limits_, &clock_));
  }
  static absl::Status Upload(BlobStore& store, const std::string& bytes) {
    auto upload = store.OpenUpload("o", {.uuid = "u", .ref = BlobRefOf(bytes)});
    if (!upload.ok() || upload->already_exists) return upload.status();
    const absl::Status status = upload->writer->Append(0, AsBytes(bytes));
    return status.ok() ? upload->writer->Finish() : status;
  }
  static bool Has(BlobStore& store, const BlobRef& ref) {
    return store.FindMissing("o", std::span(&ref, 1))->empty();
  }

  S3Place place_;
  FakeClock clock_;
  StoreLimits limits_;
};

constexpr size_t kLarge = (20 << 20) + 777;

TEST_F(S3StoreTest, AnUploadBrokenOnOneServerGoesOnOnAnother) {
  const auto a = Open();
  const auto b = Open();
  const std::string bytes = RandomBytes(kLarge, 2);
  const UploadName name{.uuid = "u", .ref = BlobRefOf(bytes)};
  auto first = a->OpenUpload("o", name);
  ASSERT_TRUE(first.ok());
  ASSERT_TRUE(first->writer->Append(0, AsBytes(bytes).first(18 << 20)).ok());
  EXPECT_EQ(b->OpenUpload("o", name).status().code(), StatusCode::kAborted);
  // The first server freezes; what it sent is two parts of 8 MiB, one of which
  // may still be on its way.
  clock_.Advance(absl::Seconds(11));
  auto second = b->OpenUpload("o", name);
  ASSERT_TRUE(second.ok()) << second.status();
  const uint64_t at = second->writer->next_offset();
  EXPECT_TRUE(at == (8u << 20) || at == (16u << 20) || at == 0) << at;
  EXPECT_EQ(first->writer->Append(18 << 20, AsBytes("x")).code(),
            StatusCode::kAborted);
  first->writer.reset();
  ASSERT_TRUE(second->writer->Append(at, AsBytes(bytes).subspan(at)).ok());
  const absl::Status finished = second->writer->Finish();
  ASSERT_TRUE(finished.ok()) << finished;
  EXPECT_EQ(*ReadBlob(a.get(), "o", name.ref, kLarge), bytes);
  a->Sweep();
  EXPECT_THAT(place_.Keys(), SizeIs(1));
  EXPECT_EQ(place_.Multiparts(), 0u);
}

TEST_F(S3StoreTest, WhatOneServerUsesNoOtherEvicts) {
  limits_.max_store_bytes = 100;
  const auto a = Open();
  auto b = Open();
  const BlobRef ref = BlobRefOf(std::string(80, 'a'));
  ASSERT_TRUE(Upload(*a, std::string(80, 'a')).ok());
  auto source = b->OpenRead("o", ref);
  ASSERT_TRUE(source.ok());
  clock_.Advance(absl::Hours(1));
  EXPECT_TRUE(Has(*b, ref));  // as its renewals do
  clock_.Advance(absl::Hours(1));
  EXPECT_TRUE(b->Pin("o", {}).ok());
  EXPECT_EQ(Upload(*a, std::string(80, 'b')).code(),
            StatusCode::kResourceExhausted);
  std::string out(80, '\0');
  EXPECT_TRUE((*source)->ReadAt(0, AsWritableBytes(out)).ok());
  source->reset();
  ASSERT_TRUE(Upload(*a, std::string(80, 'b')).ok());
  EXPECT_FALSE(Has(*b, ref));
  a->Sweep();
  EXPECT_THAT(place_.Keys(), SizeIs(1));
}

TEST_F(S3StoreTest, AServerThatWasFrozenPublishesNothing) {
  const auto frozen = Open();
  const auto other = Open();
  for (const size_t size : {size_t{1000}, kLarge}) {
    const std::string bytes = RandomBytes(size, 3);
    auto output = frozen->CreateOutput("o", size, nullptr);
    ASSERT_TRUE(output.ok());
    ASSERT_TRUE((*output)->WriteAt(0, AsBytes(bytes)).ok());
    clock_.Advance(absl::Minutes(5));
    other->Sweep();
    EXPECT_THAT((*output)->Publish(),
                StatusIs(StatusCode::kAborted, HasSubstr("not ours any more")));
    output->reset();
    EXPECT_FALSE(Has(*other, BlobRefOf(bytes)));
    EXPECT_EQ(other->Stats().reserved_bytes, 0u);
    // It goes on with a new session.
    EXPECT_TRUE(frozen->Pin("o", {}).ok());
    auto published = PublishBytes(frozen.get(), "o", bytes, nullptr);
    ASSERT_TRUE(published.ok()) << published.status();
    EXPECT_TRUE(Has(*other, BlobRefOf(bytes)));
  }
}

TEST_F(S3StoreTest, WhatADeadServerLeftIsRemoved) {
  const std::string bytes = RandomBytes(kLarge, 4);
  {
    auto dead = Open();
    auto output = dead->CreateOutput("o", kLarge, nullptr);
    ASSERT_TRUE(output.ok());
    ASSERT_TRUE((*output)->WriteAt(0, AsBytes(bytes).first(17 << 20)).ok());
    auto upload = dead->OpenUpload("o", {.uuid = "u", .ref = BlobRefOf(bytes)});
    ASSERT_TRUE(upload->writer->Append(0, AsBytes(bytes).first(9 << 20)).ok());
  }
  EXPECT_EQ(place_.Multiparts(), 2u);
  EXPECT_THAT(place_.Keys(), SizeIs(1));  // the upload's tail
  const auto other = Open();
  clock_.Advance(absl::Hours(25));
  other->Sweep();
  EXPECT_EQ(place_.Multiparts(), 0u);
  EXPECT_THAT(place_.Keys(), IsEmpty());
}

TEST_F(S3StoreTest, ObjectsThatNobodyKnowsAreFoundByListing) {
  auto options = place_.Options(limits_, nullptr);
  options.orphan_interval = absl::ZeroDuration();
  options.orphan_age = absl::Seconds(-5);  // also what was made just now
  const auto store = place_.Open(options);
  ASSERT_TRUE(Upload(*store, "known").ok());
  const std::string orphan = "some/prefix/ab/orphan";
  ASSERT_TRUE(
      place_.s3_->Put(place_.bucket_, orphan, {.bytes = AsBytes("x")}).ok());
  ASSERT_TRUE(
      place_.s3_->Put(place_.bucket_, "elsewhere", {.bytes = AsBytes("x")})
          .ok());
  ASSERT_TRUE(place_.s3_->CreateMultipart(place_.bucket_, orphan).ok());
  store->Sweep();
  const std::vector<std::string> keys = place_.Keys();
  EXPECT_THAT(keys, SizeIs(2));
  EXPECT_THAT(keys, ::testing::Not(::testing::Contains(orphan)));
  EXPECT_EQ(place_.Multiparts(), 0u);
  EXPECT_EQ(*ReadBlob(store.get(), "o", BlobRefOf("known"), 10), "known");
}

TEST_F(S3StoreTest, AnotherDatabaseMustTakeAnotherPrefix) {
  const auto mine = Open();
  S3Place other;
  S3BlobStoreOptions options = other.Options(limits_, &clock_);
  options.s3 = place_.s3_.get();
  options.bucket = place_.bucket_;
  EXPECT_THAT(S3BlobStore::Open(options).status(),
              StatusIs(StatusCode::kFailedPrecondition,
                       HasSubstr("belongs to another database")));
  options.prefix = "another/";
  EXPECT_TRUE(S3BlobStore::Open(options).ok());
}

TEST_F(S3StoreTest, SmallWindowsAreFewRequests) {
  const std::string bytes = RandomBytes(kLarge, 5);
  const auto writer = Open();
  ASSERT_TRUE(Upload(*writer, bytes).ok());
  const auto store = Open();
  const uint64_t before = place_.s3_->Stats().gets;
  auto source = store->OpenRead("o", BlobRefOf(bytes));
  ASSERT_TRUE(source.ok());
  for (int pass = 0; pass < 2; ++pass) {
    std::vector<std::thread> threads;
    for (size_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        std::string out(65536, '\0');
        for (size_t at = t * 65536; at + 65536 <= kLarge; at += 4 * 65536) {
          ASSERT_TRUE((*source)->ReadAt(at, AsWritableBytes(out)).ok());
          ASSERT_EQ(out, bytes.substr(at, 65536));
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
  }
  EXPECT_EQ(place_.s3_->Stats().gets - before, 3u);
  EXPECT_EQ(store->CacheStats().bytes, kLarge);
}

TEST_F(S3StoreTest, TheCacheKeepsToItsLimit) {
  const std::string bytes = RandomBytes(kLarge, 6);
  auto options = place_.Options(limits_, &clock_);
  options.cache_bytes = 9 << 20;
  const auto store = place_.Open(options);
  ASSERT_TRUE(Upload(*store, bytes).ok());
  auto source = store->OpenRead("o", BlobRefOf(bytes));
  ASSERT_TRUE(source.ok());
  std::string out(kLarge, '\0');
  for (int pass = 0; pass < 3; ++pass) {
    ASSERT_TRUE((*source)->ReadAt(0, AsWritableBytes(out)).ok());
    ASSERT_EQ(out, bytes);
  }
  source->reset();
  EXPECT_LE(store->CacheStats().bytes, options.cache_bytes);
  EXPECT_TRUE(store->Verify(BlobRefOf(bytes)).ok());
}

TEST_F(S3StoreTest, ModelsAreReadWhereTheyLie) {
  const std::string bytes = RandomBytes(kLarge, 8);
  const auto put = [&](const std::string& content) {
    EXPECT_TRUE(
        place_.s3_
            ->Put(place_.bucket_, "models/a.bin", {.bytes = AsBytes(content)})
            .ok());
  };
  put(bytes);
  const std::string address = "s3://" + place_.bucket_ + "/models/a.bin";
  limits_.max_store_bytes = 1000;  // what lies elsewhere does not count
  auto options = place_.Options(limits_, &clock_);
  options.allowed = {
      *ParseAllowedPrefix("o=s3://" + place_.bucket_ + "/models")};
  options.read_ahead_blocks = 0;  // what was read before may be served
  const auto store = place_.Open(options);
  EXPECT_THAT(store->Refer("other", address),
              StatusIs(StatusCode::kPermissionDenied, HasSubstr(address)));
  for (const std::string& bad :
       {"s3://" + place_.bucket_ + "/modelsx/a.bin",
        "s3://" + place_.bucket_ + "/other", std::string("s3://elsewhere/x")}) {
    EXPECT_THAT(store->Refer("o", bad),
                StatusIs(StatusCode::kPermissionDenied, HasSubstr(bad)));
    EXPECT_THAT(store->CheckExport("o", bad),
                StatusIs(StatusCode::kPermissionDenied, HasSubstr(bad)));
  }
  EXPECT_THAT(
      store->Refer("o", "s3://" + place_.bucket_ + "/models/../secret/a.bin"),
      StatusIs(StatusCode::kInvalidArgument, HasSubstr("segment")));
  EXPECT_EQ(store->Refer("o", address + ".gone").status().code(),
            StatusCode::kNotFound);
  const auto ref = store->Refer("o", address);
  ASSERT_TRUE(ref.ok()) << ref.status();
  EXPECT_EQ(*store->Refer("o", address), *ref);
  EXPECT_EQ(ref->size_bytes, kLarge);
  auto source = store->OpenRead("o", *ref);
  ASSERT_TRUE(source.ok()) << source.status();
  std::string out(1000, '\0');
  ASSERT_TRUE((*source)->ReadAt(100, AsWritableBytes(out)).ok());
  EXPECT_EQ(out, bytes.substr(100, 1000));
  EXPECT_EQ(store->Stats().blob_bytes, 0u);

  put("something else");
  const absl::Status changed = (*source)->ReadAt(9 << 20, AsWritableBytes(out));
  EXPECT_THAT(changed, StatusIs(StatusCode::kFailedPrecondition,
                                HasSubstr("not what it was")));
  const auto again = store->Refer("o", address);
  EXPECT_NE(*again, *ref);
  EXPECT_EQ(*ReadBlob(store.get(), "o", *again, 100), "something else");
  source->reset();
  clock_.Advance(absl::Hours(25));
  store->Sweep();
  EXPECT_FALSE(Has(*store, *again));
  EXPECT_TRUE(place_.s3_->Head(place_.bucket_, "models/a.bin", {}).ok());
}

TEST_F(S3StoreTest, ResultsAreCopiedInsideTheStore) {
  auto options = place_.Options(limits_, &clock_);
  options.allowed = {*ParseAllowedPrefix("s3://" + place_.bucket_)};
  const auto store = place_.Open(options);
  const std::string bytes = RandomBytes(kLarge, 9);
  ASSERT_TRUE(Upload(*store, bytes).ok());
  const uint64_t sent = place_.s3_->Stats().bytes_sent;
  const std::string address = "s3://" + place_.bucket_ + "/out/b.bin";
  EXPECT_EQ(store->Export("other", BlobRefOf(bytes), address).code(),
            StatusCode::kFailedPrecondition);
  const absl::Status exported = store->Export("o", BlobRefOf(bytes), address);
  ASSERT_TRUE(exported.ok()) << exported;
  EXPECT_LT(place_.s3_->Stats().bytes_sent - sent, 1000u);
  std::string out(kLarge, '\0');
  ASSERT_TRUE(
      place_.s3_
          ->GetRange(place_.bucket_, "out/b.bin", 0, AsWritableBytes(out), {})
          .ok());
  EXPECT_EQ(out, bytes);
}

// Writes [range.begin, range.end) of `bytes` in odd pieces, last ones first.
absl::StatusOr<std::string> WriteRange(BlobStore& store,
                                       const std::string& handle,
                                       const BlobStore::OutputRange& range,
                                       const std::string& bytes) {
  auto writer = store.OpenRange(handle);
  if (!writer.ok()) return writer.status();
  constexpr uint64_t kPiece = 1'000'003;
  for (uint64_t end = range.end; end > range.begin;) {
    const uint64_t begin =
        end - range.begin > kPiece ? end - kPiece : range.begin;
    const absl::Status status =
        (*writer)->WriteAt(begin, AsBytes(bytes).subspan(begin, end - begin));
    if (!status.ok()) return status;
    end = begin;
  }
  return (*writer)->Finish();
}

TEST_F(S3StoreTest, SeveralServersWriteRangesOfOneOutput) {
  const auto a = Open();
  const auto b = Open();
  const std::string bytes = RandomBytes(kLarge + (20 << 20), 5);
  // The first is several parts of the upload, the last less than one may be.
  const std::vector<BlobStore::OutputRange> ranges = {
      {0, 19 << 20},
      {19 << 20, 24 << 20},
      {24 << 20, (24 << 20) + (6 << 20)},
      {30 << 20, (40 << 20) - 5},
      {(40 << 20) - 5, bytes.size()}};
  EXPECT_EQ(a->min_shared_range_bytes(), 5u << 20);
  auto space = a->Reserve("o", bytes.size() + 100);
  ASSERT_TRUE(space.ok());
  auto output = a->CreateSharedOutput("o", ranges, space->get());
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ((*space)->bytes_left(), 100u);
  std::vector<std::string> receipts(ranges.size());
  for (size_t i = 0; i < ranges.size(); ++i) {
    const std::string handle = (*output)->RangeHandle(i);
    auto receipt = WriteRange(i % 2 == 0 ? *a : *b, handle, ranges[i], bytes);
    ASSERT_TRUE(receipt.ok()) << receipt.status();
    // Again, by another: the same.
    if (i == 1) {
      EXPECT_EQ(*WriteRange(*a, handle, ranges[i], bytes), *receipt);
    }
    receipts[i] = *receipt;
  }
  EXPECT_THAT(place_.Keys(), IsEmpty());
  auto published = (*output)->Publish(receipts, nullptr);
  ASSERT_TRUE(published.ok()) << published.status();
  EXPECT_EQ(published->ref, BlobRefOf(bytes));
  output->reset();
  a->Sweep();
  EXPECT_THAT(place_.Keys(), SizeIs(1));
  EXPECT_EQ(place_.Multiparts(), 0u);
  // Block by block, against the digests that were made while it was read.
  EXPECT_TRUE(b->Verify(published->ref).ok());
  EXPECT_EQ(*ReadBlob(b.get(), "o", published->ref, bytes.size()), bytes);
  // The same once more: the blob that is there stays.
  const std::string key = place_.KeyOf(published->ref);
  auto again = b->CreateSharedOutput("o", ranges, nullptr);
  ASSERT_TRUE(again.ok());
  for (size_t i = 0; i < ranges.size(); ++i) {
    receipts[i] = *WriteRange(*b, (*again)->RangeHandle(i), ranges[i], bytes);
  }
  published = (*again)->Publish(receipts, nullptr);
  ASSERT_TRUE(published.ok()) << published.status();
  again->reset();
  a->Sweep();
  EXPECT_EQ(place_.KeyOf(BlobRefOf(bytes)), key);
  EXPECT_THAT(place_.Keys(), SizeIs(1));
}

TEST_F(S3StoreTest, ASharedOutputThatFailsLeavesNothing) {
  const auto a = Open();
  const auto b = Open();
  const std::string bytes = RandomBytes(14 << 20, 6);
  const std::vector<BlobStore::OutputRange> ranges = {{0, 7 << 20},
                                                      {7 << 20, 14 << 20}};
  auto output = a->CreateSharedOutput("o", ranges, nullptr);
  ASSERT_TRUE(output.ok());
  const std::string handle = (*output)->RangeHandle(1);
  // A byte is missing, or leaves the range.
  auto writer = b->OpenRange(handle);
  ASSERT_TRUE(writer.ok());
  ASSERT_TRUE(
      (*writer)->WriteAt(7 << 20, AsBytes(bytes).first((7 << 20) - 1)).ok());
  EXPECT_EQ((*writer)->Finish().status().code(), StatusCode::kInternal);
  EXPECT_EQ((*writer)->WriteAt(1, AsBytes("x")).code(), StatusCode::kInternal);
  EXPECT_EQ((*writer)->WriteAt((14 << 20) - 1, AsBytes("xy")).code(),
            StatusCode::kInternal);
  for (const char* text :
       {"", "nonsense", "7 7 1 1 8388608 u k", "0 9 1 0 8388608 u k",
        "0 9 1 2 8388608 u k", "0 9 1 1 0 u k"}) {
    EXPECT_EQ(b->OpenRange(text).status().code(), StatusCode::kInvalidArgument)
        << text;
  }
  const std::string first =
      *WriteRange(*a, (*output)->RangeHandle(0), ranges[0], bytes);
  EXPECT_EQ((*output)->Publish({first}, nullptr).status().code(),
            StatusCode::kDataLoss);
  EXPECT_FALSE((*output)->Publish({first, "\"no such part\""}, nullptr).ok());
  const std::string second = *WriteRange(*b, handle, ranges[1], bytes);
  const std::atomic<bool> stop{true};
  EXPECT_EQ((*output)->Publish({first, second}, &stop).status().code(),
            StatusCode::kCancelled);
  output->reset();
  a->Sweep();
  EXPECT_THAT(place_.Keys(), IsEmpty());
  EXPECT_EQ(place_.Multiparts(), 0u);
  EXPECT_EQ(a->Stats().reserved_bytes, 0u);
  // Who comes now finds it gone.
  EXPECT_EQ(WriteRange(*b, handle, ranges[1], bytes).status().code(),
            StatusCode::kAborted);
}

TEST_F(S3StoreTest, ASharedOutputWhoseCompletionIsRepeatedIsPublished) {
  const auto a = Open();
  const std::string bytes = RandomBytes(38 << 20, 9);
  const std::vector<BlobStore::OutputRange> ranges = {{0, 21 << 20},
                                                      {21 << 20, 38 << 20}};
  for (const bool completed : {false, true}) {
    auto output = a->CreateSharedOutput("o", ranges, nullptr);
    ASSERT_TRUE(output.ok());
    std::vector<std::string> receipts;
    for (size_t i = 0; i < 2; ++i) {
      receipts.push_back(
          *WriteRange(*a, (*output)->RangeHandle(i), ranges[i], bytes));
    }
    if (completed) {
      // As after a first try whose answer was lost: the upload is gone, the
      // object there. (By another upload, for this store answers repetitions.)
      const std::vector<std::string> fields =
          absl::StrSplit((*output)->RangeHandle(0), ' ');
      S3Client::PartOf part{.bucket = place_.bucket_, .key = fields.at(6)};
      part.upload_id = *place_.s3_->CreateMultipart(part.bucket, part.key);
      std::vector<S3Part> parts;
      size_t at = 0;
      for (const size_t size : {8 << 20, 13 << 20, 8 << 20, 9 << 20}) {
        part.number = static_cast<int>(parts.size()) + 1;
        parts.push_back(*place_.s3_->UploadPart(
            part, {.bytes = AsBytes(bytes).subspan(at, size)}));
        at += size;
      }
      ASSERT_TRUE(place_.s3_->CompleteMultipart(part, parts).ok());
      part.upload_id = fields.at(5);
      ASSERT_TRUE(place_.s3_->AbortMultipart(part).ok());
    } else {
      // As if a part had been sent again to a store whose ETags are no sums.
      receipts[0].replace(1, 8, "deadbeef");
    }
    auto published = (*output)->Publish(receipts, nullptr);
    ASSERT_TRUE(published.ok()) << published.status();
    EXPECT_EQ(published->ref, BlobRefOf(bytes));
    output->reset();
    published->pin.reset();
    ASSERT_TRUE(a->Release("o", BlobRefOf(bytes)).ok());
    clock_.Advance(absl::Hours(1));
    a->Sweep();
    EXPECT_THAT(place_.Keys(), IsEmpty());
  }
}

TEST_F(S3StoreTest, AFrozenHolderPublishesNoSharedOutput) {
  const auto a = Open();
  const auto b = Open();
  const std::string bytes = RandomBytes(12 << 20, 7);
  const std::vector<BlobStore::OutputRange> ranges = {{0, 6 << 20},
                                                      {6 << 20, 12 << 20}};
  auto output = a->CreateSharedOutput("o", ranges, nullptr);
  ASSERT_TRUE(output.ok());
  std::vector<std::string> receipts;
  for (size_t i = 0; i < 2; ++i) {
    receipts.push_back(
        *WriteRange(*b, (*output)->RangeHandle(i), ranges[i], bytes));
  }
  clock_.Advance(absl::Minutes(5));
  b->Sweep();
  EXPECT_FALSE((*output)->Publish(receipts, nullptr).ok());
  EXPECT_FALSE(Has(*b, BlobRefOf(bytes)));
  output->reset();
  b->Sweep();
  EXPECT_EQ(place_.Multiparts(), 0u);
  EXPECT_THAT(place_.Keys(), IsEmpty());
}

TEST_F(S3StoreTest, TheStoreMayBeAwayForAWhile) {
  const std::string bytes = RandomBytes(kLarge, 7);
  const auto store = Open();
  auto upload = store->OpenUpload("o", {.uuid = "u", .ref = BlobRefOf(bytes)});
  ASSERT_TRUE(upload.ok());
  ASSERT_TRUE(upload->writer->Append(0, AsBytes(bytes).first(9 << 20)).ok());
  testing::TempSeaweed::Get().Signal(SIGSTOP);
  std::thread back([] {
    absl::SleepFor(absl::Seconds(2));
    testing::TempSeaweed::Get().Signal(SIGCONT);
  });
  const absl::Status appended =
      upload->writer->Append(9 << 20, AsBytes(bytes).subspan(9 << 20));
  back.join();
  ASSERT_TRUE(appended.ok()) << appended;
  const absl::Status finished = upload->writer->Finish();
  ASSERT_TRUE(finished.ok()) << finished;
  EXPECT_EQ(*ReadBlob(store.get(), "o", BlobRefOf(bytes), kLarge), bytes);
}

}  // namespace
}  // namespace ovpress
