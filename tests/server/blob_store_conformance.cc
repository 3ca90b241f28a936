#include "tests/server/blob_store_conformance.h"

#include <algorithm>
#include <random>
#include <thread>

#include "absl/strings/str_cat.h"
#include "gmock/gmock.h"
#include "server/jobs/errors.h"
#include "tests/testing/status_matchers.h"

namespace ovpress::testing {

using absl::StatusCode;
using ::testing::HasSubstr;
using Harm = BlobStoreHarness::Harm;

namespace {

std::string RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(size, '\0');
  for (size_t i = 0; i + 8 <= size; i += 8) {
    const uint64_t word = random();
    std::copy_n(reinterpret_cast<const char*>(&word), 8, bytes.data() + i);
  }
  return bytes;
}

// More than two parts of an object store's upload, and no multiple of anything.
constexpr size_t kLarge = (20 << 20) + 12'345;

}  // namespace

absl::Status BlobStoreConformance::Upload(BlobStore& store,
                                          const std::string& owner,
                                          const std::string& bytes,
                                          const std::string& uuid) {
  auto upload =
      store.OpenUpload(owner, {.uuid = uuid, .ref = BlobRefOf(bytes)});
  if (!upload.ok() || upload->already_exists) return upload.status();
  const uint64_t at = upload->writer->next_offset();
  const absl::Status status =
      upload->writer->Append(at, AsBytes(bytes).subspan(at));
  return status.ok() ? upload->writer->Finish() : status;
}

bool BlobStoreConformance::Has(BlobStore& store, const std::string& owner,
                               const std::string& bytes) {
  const BlobRef ref = BlobRefOf(bytes);
  const auto missing = store.FindMissing(owner, std::span(&ref, 1));
  EXPECT_TRUE(missing.ok()) << missing.status();
  return missing.ok() && missing->empty();
}

TEST_P(BlobStoreConformance, KnowingADigestGivesNothing) {
  const auto store = Open();
  ASSERT_TRUE(Upload(*store, "alice", "secret").ok());
  EXPECT_TRUE(Has(*store, "alice", "secret"));
  EXPECT_FALSE(Has(*store, "bob", "secret"));
  const BlobRef ref = BlobRefOf("secret");
  EXPECT_THAT(store->OpenRead("bob", ref),
              StatusIs(StatusCode::kNotFound, HasSubstr(ref.sha256)));
  EXPECT_EQ(GetMissingBlobs(store->Pin("bob", std::span(&ref, 1)).status()),
            std::vector<BlobRef>{ref});
  ASSERT_TRUE(Upload(*store, "bob", "secret").ok());
  EXPECT_EQ(store->Stats().blob_count, 1u);
  ASSERT_TRUE(store->Release("alice", ref).ok());
  EXPECT_TRUE(Has(*store, "bob", "secret"));
  ASSERT_TRUE(store->Release("bob", ref).ok());
  EXPECT_EQ(store->Stats().blob_bytes, 0u);
}

TEST_P(BlobStoreConformance, EvictsTheLeastRecentlyUsedButNothingPinned) {
  limits_.max_store_bytes = 250;
  const auto store = Open();
  const std::string a(100, 'a');
  const std::string b(100, 'b');
  const std::string c(100, 'c');
  ASSERT_TRUE(Upload(*store, "o", a).ok());
  clock_.Advance(absl::Minutes(1));
  ASSERT_TRUE(Upload(*store, "o", b).ok());
  // Both are young: nothing may go.
  const absl::Status full = Upload(*store, "o", c);
  EXPECT_EQ(full.code(), StatusCode::kResourceExhausted) << full;
  EXPECT_EQ(GetLimitDetails(full)->requested, 300u);
  clock_.Advance(absl::Hours(1));
  const BlobRef ref = BlobRefOf(a);
  auto pin = store->Pin("o", std::span(&ref, 1));
  ASSERT_TRUE(pin.ok());
  ASSERT_TRUE(Upload(*store, "o", c).ok());
  EXPECT_TRUE(Has(*store, "o", a));
  EXPECT_FALSE(Has(*store, "o", b));
  EXPECT_EQ(store->Stats().evicted_bytes_total, 100u);
  const absl::Status never = Upload(*store, "o", std::string(251, 'd'));
  EXPECT_EQ(never.code(), StatusCode::kInvalidArgument) << never;
  EXPECT_EQ(GetLimitDetails(never)->limit, "max_store_bytes");
}

TEST_P(BlobStoreConformance, ASecondWriterWaitsAndThenTakesOver) {
  const auto store = Open();
  const std::string bytes = "0123456789";
  const UploadName name{.uuid = "u", .ref = BlobRefOf(bytes)};
  auto first = store->OpenUpload("o", name);
  ASSERT_TRUE(first.ok()) << first.status();
  ASSERT_TRUE(first->writer->Append(0, AsBytes("01234")).ok());
  const auto early = store->OpenUpload("o", name);
  EXPECT_EQ(early.status().code(), StatusCode::kAborted);
  EXPECT_EQ(GetRetryAfter(early.status()), limits_.writer_takeover);
  clock_.Advance(absl::Minutes(1));
  auto second = store->OpenUpload("o", name);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(first->writer->Append(5, AsBytes("56789")).code(),
            StatusCode::kAborted);
  // Nothing was durable yet, so it starts over.
  EXPECT_EQ(second->writer->next_offset(), 0u);
  ASSERT_TRUE(second->writer->Append(0, AsBytes(bytes)).ok());
  ASSERT_TRUE(second->writer->Finish().ok());
  EXPECT_TRUE(Has(*store, "o", bytes));
  first->writer.reset();
  EXPECT_TRUE(Has(*store, "o", bytes));
  EXPECT_EQ(store->Stats().upload_count, 0u);
}

TEST_P(BlobStoreConformance, UploadsGoOnAfterARestart) {
  for (const size_t size : {size_t{1000}, kLarge}) {
    const std::string bytes = RandomBytes(size, size);
    const UploadName name{.uuid = absl::StrCat("u", size),
                          .ref = BlobRefOf(bytes)};
    uint64_t at = 0;
    for (const size_t until : {size / 3, size - 1, size}) {
      const auto store = Open();
      if (at > 0) {
        const auto status = store->QueryUpload("o", name);
        ASSERT_TRUE(status.ok()) << status.status();
        EXPECT_EQ(status->committed_bytes, at);
        EXPECT_FALSE(status->complete);
      }
      auto upload = store->OpenUpload("o", name);
      ASSERT_TRUE(upload.ok()) << upload.status();
      EXPECT_EQ(upload->writer->next_offset(), at);
      while (at < until) {
        const size_t n = std::min<size_t>(1 << 20, until - at);
        ASSERT_TRUE(
            upload->writer->Append(at, AsBytes(bytes).subspan(at, n)).ok());
        at += n;
      }
      if (at == size) {
        const absl::Status finished = upload->writer->Finish();
        ASSERT_TRUE(finished.ok()) << finished;
        EXPECT_TRUE(store->QueryUpload("o", name)->complete);
        EXPECT_EQ(*ReadBlob(store.get(), "o", name.ref, size), bytes);
        EXPECT_EQ(store->Stats().upload_count, 0u);
        EXPECT_EQ(store->Stats().staged_bytes, 0u);
        EXPECT_TRUE(store->Verify(name.ref).ok());
      } else {
        const absl::Status early = upload->writer->Finish();
        EXPECT_THAT(early, StatusIs(StatusCode::kInvalidArgument,
                                    HasSubstr("the upload stays")));
      }
    }
  }
}

TEST_P(BlobStoreConformance, WhatAWriterSendsIsChecked) {
  limits_.max_blob_bytes = 64 << 20;
  const auto store = Open();
  const std::string bytes = "0123456789";
  const UploadName name{.uuid = "u", .ref = BlobRefOf(bytes)};
  auto upload = store->OpenUpload("o", name);
  ASSERT_TRUE(upload.ok());
  EXPECT_THAT(upload->writer->Append(1, AsBytes("1")),
              StatusIs(StatusCode::kOutOfRange, HasSubstr("must be 0")));
  EXPECT_THAT(upload->writer->Append(0, AsBytes("0123456789A")),
              StatusIs(StatusCode::kInvalidArgument, HasSubstr("10")));
  EXPECT_TRUE(upload->writer->Append(0, {}).ok());
  ASSERT_TRUE(upload->writer->Append(0, AsBytes("012345678A")).ok());
  EXPECT_THAT(upload->writer->Finish(),
              StatusIs(StatusCode::kInvalidArgument,
                       HasSubstr("the upload was dropped")));
  upload->writer.reset();
  EXPECT_EQ(store->QueryUpload("o", name).status().code(),
            StatusCode::kNotFound);
  EXPECT_FALSE(Has(*store, "o", bytes));
  EXPECT_EQ(store->Stats().staged_bytes, 0u);

  auto other = store->OpenUpload("o", name);
  ASSERT_TRUE(other.ok());
  EXPECT_EQ(store->OpenUpload("o", {.uuid = "u", .ref = BlobRefOf("else")})
                .status()
                .code(),
            StatusCode::kAlreadyExists);
  BlobRef huge = name.ref;
  huge.size_bytes = limits_.max_blob_bytes + 1;
  const auto refused = store->OpenUpload("o", {.uuid = "v", .ref = huge});
  EXPECT_EQ(refused.status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(GetLimitDetails(refused.status())->limit, "max_blob_bytes");
  EXPECT_EQ(
      store->OpenUpload("o", {.uuid = "a/b", .ref = name.ref}).status().code(),
      StatusCode::kInvalidArgument);
}

TEST_P(BlobStoreConformance, UploadsAreLimitedByNumberAndByOwner) {
  limits_.max_owner_uploads = 2;
  limits_.max_uploads = 3;
  limits_.max_owner_bytes = 1000;
  const auto store = Open();
  std::vector<std::unique_ptr<BlobUpload>> open;
  const auto start = [&](const std::string& owner, const std::string& uuid) {
    auto upload =
        store->OpenUpload(owner, {.uuid = uuid, .ref = BlobRefOf(uuid)});
    if (upload.ok()) open.push_back(std::move(upload->writer));
    return upload.status();
  };
  EXPECT_TRUE(start("a", "1").ok());
  EXPECT_TRUE(start("a", "2").ok());
  const absl::Status mine = start("a", "3");
  EXPECT_EQ(mine.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(GetLimitDetails(mine)->limit, "max_owner_uploads");
  EXPECT_EQ(GetLimitDetails(mine)->subject, "client:a");
  EXPECT_TRUE(start("b", "4").ok());
  EXPECT_EQ(GetLimitDetails(start("c", "5"))->limit, "max_uploads");
  open.clear();
  // They stay to be resumed.
  EXPECT_EQ(store->Stats().upload_count, 3u);
  const absl::Status large = Upload(*store, "d", std::string(1001, 'x'));
  EXPECT_EQ(large.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(GetLimitDetails(large)->limit, "max_uploads");
  clock_.Advance(absl::Hours(25));
  store->Sweep();
  EXPECT_EQ(store->Stats().upload_count, 0u);
  const absl::Status never = Upload(*store, "d", std::string(1001, 'x'));
  EXPECT_EQ(never.code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(GetLimitDetails(never)->limit, "max_owner_bytes");
  ASSERT_TRUE(Upload(*store, "d", std::string(600, 'x')).ok());
  const absl::Status second = Upload(*store, "d", std::string(600, 'y'));
  EXPECT_EQ(second.code(), StatusCode::kResourceExhausted);
  EXPECT_EQ(GetLimitDetails(second)->requested, 1200u);
  EXPECT_TRUE(Upload(*store, "e", std::string(600, 'y')).ok());
}

TEST_P(BlobStoreConformance, AShareCountsAllThatAnOwnerHoldsAndGetsFreeAgain) {
  limits_.max_owner_bytes = 250;
  const auto store = Open();
  const std::string a(100, 'a');
  const std::string b(100, 'b');
  const std::string c(100, 'c');
  ASSERT_TRUE(Upload(*store, "o", a).ok());
  auto space = store->Reserve("o", 100);
  ASSERT_TRUE(space.ok());
  const absl::Status full = Upload(*store, "o", b);
  EXPECT_EQ(full.code(), StatusCode::kResourceExhausted) << full;
  EXPECT_EQ(GetLimitDetails(full)->requested, 300u);
  auto writer = store->CreateOutput("o", 100, space->get());
  ASSERT_TRUE(writer.ok());
  EXPECT_TRUE(store->CreateScratch("o", 50).ok());
  EXPECT_FALSE(store->CreateScratch("o", 51).ok());
  writer->reset();
  space->reset();
  ASSERT_TRUE(Upload(*store, "o", b).ok());
  // What another one has as well stays there for that one.
  ASSERT_TRUE(Upload(*store, "other", a).ok());
  clock_.Advance(absl::Hours(1));
  ASSERT_TRUE(Has(*store, "o", b));  // used now
  ASSERT_TRUE(Upload(*store, "o", c).ok());
  EXPECT_FALSE(Has(*store, "o", a));
  EXPECT_TRUE(Has(*store, "o", b));
  EXPECT_TRUE(Has(*store, "other", a));
}

TEST_P(BlobStoreConformance, AnAdminReadsWhoeverOwnsIt) {
  const auto store = Open();
  ASSERT_TRUE(Upload(*store, "alice", "secret").ok());
  auto source = store->OpenReadAny(BlobRefOf("secret"));
  ASSERT_TRUE(source.ok()) << source.status();
  ASSERT_TRUE(store->Release("alice", BlobRefOf("secret")).ok());
  std::string bytes(6, ' ');
  EXPECT_TRUE((*source)->ReadAt(0, AsWritableBytes(bytes)).ok());
  EXPECT_EQ(bytes, "secret");
  source->reset();
  EXPECT_EQ(store->Stats().blob_count, 0u);
  EXPECT_EQ(store->OpenReadAny(BlobRefOf("secret")).status().code(),
            StatusCode::kNotFound);
}

TEST_P(BlobStoreConformance, SilentUploadsExpire) {
  const auto store = Open();
  const UploadName name{.uuid = "u", .ref = BlobRefOf("never finished")};
  ASSERT_TRUE(store->OpenUpload("o", name).ok());
  EXPECT_GT(store->Stats().staged_bytes, 0u);
  clock_.Advance(absl::Hours(23));
  store->Sweep();
  EXPECT_GT(store->Stats().staged_bytes, 0u);
  clock_.Advance(absl::Hours(2));
  store->Sweep();
  EXPECT_EQ(store->Stats().staged_bytes, 0u);
  EXPECT_EQ(store->QueryUpload("o", name).status().code(),
            StatusCode::kNotFound);
}

TEST_P(BlobStoreConformance, OutputsMayBeWrittenInAnyOrder) {
  const auto store = Open();
  const std::string bytes = RandomBytes(kLarge, 7);
  auto space = store->Reserve("o", kLarge + 1000);
  ASSERT_TRUE(space.ok()) << space.status();
  auto output = store->CreateOutput("o", kLarge, space->get());
  ASSERT_TRUE(output.ok()) << output.status();
  EXPECT_EQ((*space)->bytes_left(), 1000u);
  EXPECT_EQ(store->Stats().reserved_bytes, kLarge + 1000);
  constexpr size_t kWindow = 100'003;
  std::vector<size_t> windows;
  for (size_t at = 0; at < kLarge; at += kWindow) windows.push_back(at);
  std::shuffle(windows.begin(), windows.end(), std::mt19937_64(3));
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < windows.size(); i += 3) {
        const size_t n = std::min(kWindow, kLarge - windows[i]);
        EXPECT_TRUE(
            (*output)
                ->WriteAt(windows[i], AsBytes(bytes).subspan(windows[i], n))
                .ok());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_FALSE(Has(*store, "o", bytes));
  auto published = (*output)->Publish();
  ASSERT_TRUE(published.ok()) << published.status();
  EXPECT_EQ(published->ref, BlobRefOf(bytes));
  output->reset();
  space->reset();
  EXPECT_EQ(store->Stats().reserved_bytes, 0u);
  EXPECT_EQ(store->Stats().pinned_bytes, kLarge);
  EXPECT_TRUE(Has(*store, "o", bytes));
  EXPECT_FALSE(Has(*store, "other", bytes));
  auto source = store->OpenRead("o", published->ref);
  ASSERT_TRUE(source.ok()) << source.status();
  EXPECT_EQ((*source)->size_bytes(), kLarge);
  std::mt19937_64 random(5);
  for (int i = 0; i < 50; ++i) {
    const size_t at = random() % kLarge;
    std::string out(random() % std::min<size_t>(kLarge - at, 3 << 20), '\0');
    ASSERT_TRUE((*source)->ReadAt(at, AsWritableBytes(out)).ok());
    ASSERT_EQ(out, bytes.substr(at, out.size())) << at;
  }
  std::string out(2, '\0');
  EXPECT_EQ((*source)->ReadAt(kLarge - 1, AsWritableBytes(out)).code(),
            StatusCode::kDataLoss);
}

TEST_P(BlobStoreConformance, AnOutputThatIsNotPublishedLeavesNothing) {
  const auto store = Open();
  for (const size_t size : {size_t{1000}, kLarge}) {
    const std::string bytes = RandomBytes(size, 8);
    auto output = store->CreateOutput("o", size, nullptr);
    ASSERT_TRUE(output.ok());
    ASSERT_TRUE((*output)->WriteAt(0, AsBytes(bytes).first(size - 1)).ok());
    EXPECT_THAT((*output)->Publish(),
                StatusIs(StatusCode::kInternal,
                         HasSubstr(absl::StrCat(size - 1, " of ", size))));
    EXPECT_EQ((*output)->WriteAt(size, AsBytes("x")).code(),
              StatusCode::kInternal);
    output->reset();
    EXPECT_EQ(store->Stats().reserved_bytes, 0u);
    EXPECT_EQ(store->Stats().blob_count, 0u);
  }
}

TEST_P(BlobStoreConformance, EqualOutputsAreOneBlob) {
  const auto store = Open();
  const std::string bytes = RandomBytes(kLarge, 9);
  ASSERT_TRUE(Upload(*store, "a", bytes).ok());
  auto published = PublishBytes(store.get(), "b", bytes, nullptr);
  ASSERT_TRUE(published.ok()) << published.status();
  EXPECT_EQ(store->Stats().blob_count, 1u);
  ASSERT_TRUE(store->Release("a", published->ref).ok());
  EXPECT_EQ(*ReadBlob(store.get(), "b", published->ref, kLarge), bytes);
}

TEST_P(BlobStoreConformance, TheEmptyBlobAlwaysExists) {
  const auto store = Open();
  const BlobRef empty = BlobRefOf("");
  EXPECT_TRUE(Has(*store, "o", ""));
  EXPECT_TRUE(
      store->OpenUpload("o", {.uuid = "u", .ref = empty})->already_exists);
  EXPECT_TRUE(store->QueryUpload("o", {.uuid = "u", .ref = empty})->complete);
  EXPECT_EQ(*ReadBlob(store.get(), "o", empty, 10), "");
  const auto published = PublishBytes(store.get(), "o", "", nullptr);
  ASSERT_TRUE(published.ok()) << published.status();
  EXPECT_EQ(published->ref, empty);
  EXPECT_TRUE(store->Verify(empty).ok());
}

TEST_P(BlobStoreConformance, ReleasedBytesGoWhenTheLastPinGoes) {
  const auto store = Open();
  ASSERT_TRUE(Upload(*store, "o", "bytes").ok());
  const BlobRef ref = BlobRefOf("bytes");
  auto first = store->Pin("o", std::span(&ref, 1));
  auto source = store->OpenRead("o", ref);
  ASSERT_TRUE(first.ok() && source.ok());
  EXPECT_EQ(store->Stats().pinned_bytes, 5u);
  ASSERT_TRUE(store->Release("o", ref).ok());
  EXPECT_FALSE(Has(*store, "o", "bytes"));
  first->reset();
  std::string out(5, '\0');
  EXPECT_TRUE((*source)->ReadAt(0, AsWritableBytes(out)).ok());
  EXPECT_EQ(out, "bytes");
  EXPECT_EQ(store->Stats().blob_count, 1u);
  source->reset();
  EXPECT_EQ(store->Stats().blob_count, 0u);
}

TEST_P(BlobStoreConformance, SpaceIsSetAsideAndGivenBack) {
  limits_.max_store_bytes = 1000;
  const auto store = Open();
  auto space = store->Reserve("o", 600);
  ASSERT_TRUE(space.ok());
  EXPECT_EQ(store->Reserve("o", 401).status().code(),
            StatusCode::kResourceExhausted);
  EXPECT_EQ(store->Reserve("o", 1001).status().code(),
            StatusCode::kInvalidArgument);
  {
    // 600 of the reservation and 100 more.
    auto output = store->CreateOutput("o", 700, space->get());
    ASSERT_TRUE(output.ok()) << output.status();
    EXPECT_EQ((*space)->bytes_left(), 0u);
    EXPECT_EQ(store->Stats().reserved_bytes, 700u);
    EXPECT_EQ(store->CreateScratch("o", 301).status().code(),
              StatusCode::kResourceExhausted);
    auto scratch = store->CreateScratch("o", 300);
    ASSERT_TRUE(scratch.ok());
    ASSERT_TRUE((*scratch)->WriteAt(100, AsBytes("scratch")).ok());
    std::string out(7, '\0');
    ASSERT_TRUE((*scratch)->ReadAt(100, AsWritableBytes(out)).ok());
    EXPECT_EQ(out, "scratch");
  }
  space->reset();
  EXPECT_EQ(store->Stats().reserved_bytes, 0u);
}

TEST_P(BlobStoreConformance, DamagedBytesAreNotServedAndCanBeSentAgain) {
  for (const Harm harm : {Harm::kOtherBytes, Harm::kShorter, Harm::kGone}) {
    const BlobRef ref = BlobRefOf("fine");
    ASSERT_TRUE(Upload(*Open(), "o", "fine").ok());
    harness_->Damage(ref, harm);
    const auto store = Open();
    const auto read = ReadBlob(store.get(), "o", ref, 100);
    // A store that looks at its files when it starts knows already.
    EXPECT_TRUE(absl::IsDataLoss(read.status()) ||
                (absl::IsNotFound(read.status()) && harm != Harm::kOtherBytes))
        << read.status();
    EXPECT_FALSE(Has(*store, "o", "fine"));
    ASSERT_TRUE(Upload(*store, "o", "fine").ok());
    EXPECT_EQ(*ReadBlob(store.get(), "o", ref, 100), "fine");
    EXPECT_TRUE(store->Verify(ref).ok());
  }
}

TEST_P(BlobStoreConformance, DamageBehindTheFirstBytesIsSeen) {
  const std::string bytes = RandomBytes(kLarge, 10);
  const BlobRef ref = BlobRefOf(bytes);
  ASSERT_TRUE(Upload(*Open(), "o", bytes).ok());
  harness_->Damage(ref, Harm::kOtherBytes);
  const auto store = Open();
  EXPECT_EQ(store->Verify(ref).code(), StatusCode::kDataLoss);
  EXPECT_FALSE(Has(*store, "o", bytes));
}

TEST_P(BlobStoreConformance, ADamagedCopyDoesNotOutliveAGoodOne) {
  for (const Harm harm : {Harm::kOtherBytes, Harm::kGone}) {
    const std::string bytes = harm == Harm::kGone ? "gone soon" : "others soon";
    ASSERT_TRUE(Upload(*Open(), "a", bytes).ok());
    const BlobRef ref = BlobRefOf(bytes);
    harness_->Damage(ref, harm);
    const auto store = Open();
    // The bytes of another owner were thrown away for those that were there.
    ASSERT_TRUE(Upload(*store, "b", bytes).ok());
    const auto read = ReadBlob(store.get(), "b", ref, 100);
    ASSERT_TRUE(read.ok()) << read.status();
    EXPECT_EQ(*read, bytes);
    ASSERT_TRUE(Upload(*store, "a", bytes).ok());
    EXPECT_EQ(*ReadBlob(store.get(), "a", ref, 100), bytes);
  }
}

TEST_P(BlobStoreConformance, NamesFromOutsideAreChecked) {
  const auto store = Open();
  const BlobRef bad{.sha256 = "../../etc/passwd", .size_bytes = 1};
  EXPECT_EQ(store->FindMissing("o", std::span(&bad, 1)).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(store->OpenRead("o", bad).status().code(),
            StatusCode::kInvalidArgument);
  EXPECT_EQ(store->OpenUpload("o", {.uuid = "u", .ref = bad}).status().code(),
            StatusCode::kInvalidArgument);
}

}  // namespace ovpress::testing
