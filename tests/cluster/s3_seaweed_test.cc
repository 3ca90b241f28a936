// The client against a real object store that checks signatures.
#include <random>
#include <set>

#include "absl/strings/str_cat.h"
#include "core/base/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/cluster/s3_client.h"
#include "tests/cluster/temp_seaweed.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using absl::StatusCode;
using ::testing::HasSubstr;
using testing::StatusIs;
using testing::TempSeaweed;

std::string RandomBytes(size_t size, uint64_t seed) {
  std::mt19937_64 random(seed);
  std::string bytes(size, '\0');
  for (char& c : bytes) c = static_cast<char>(random());
  return bytes;
}

class SeaweedTest : public ::testing::Test {
 protected:
  std::string Read(absl::string_view key, uint64_t offset, size_t size) {
    std::string out(size, '\0');
    const absl::Status status =
        client_->GetRange(bucket_, key, offset, AsWritableBytes(out), {});
    EXPECT_TRUE(status.ok()) << status;
    return out;
  }
  TempSeaweed& weed_ = TempSeaweed::Get();
  const std::string bucket_ = weed_.NewBucket();
  const std::unique_ptr<S3Client> client_ = *S3Client::Create(weed_.Options());
};

TEST_F(SeaweedTest, ObjectsComeAndGo) {
  const std::string bytes = RandomBytes(3'000'001, 1);
  const std::string key = "a b/c+d$\xc3\xa4(1)=&.bin";
  const auto etag = client_->Put(bucket_, key, {.bytes = AsBytes(bytes)});
  ASSERT_TRUE(etag.ok()) << etag.status();
  const auto head = client_->Head(bucket_, key, {});
  ASSERT_TRUE(head.ok()) << head.status();
  EXPECT_EQ(head->size_bytes, bytes.size());
  EXPECT_EQ(head->etag, *etag);
  EXPECT_EQ(Read(key, 0, bytes.size()), bytes);
  EXPECT_EQ(Read(key, 1'234'567, 7), bytes.substr(1'234'567, 7));
  std::string out(2, '\0');
  EXPECT_THAT(
      client_->GetRange(bucket_, key, bytes.size(), AsWritableBytes(out), {}),
      StatusIs(StatusCode::kOutOfRange, HasSubstr("416")));
  EXPECT_THAT(client_->GetRange(bucket_, key, 0, AsWritableBytes(out),
                                {.if_match = "\"other\""}),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("412")));
  EXPECT_TRUE(
      client_
          ->GetRange(bucket_, key, 0, AsWritableBytes(out), {.if_match = *etag})
          .ok());
  const auto copied =
      client_->Copy(bucket_, "copy", {.bucket = bucket_, .key = key});
  ASSERT_TRUE(copied.ok()) << copied.status();
  EXPECT_EQ(Read("copy", 0, bytes.size()), bytes);
  EXPECT_TRUE(client_->Delete(bucket_, key).ok());
  EXPECT_TRUE(client_->Delete(bucket_, key).ok());
  EXPECT_THAT(client_->Head(bucket_, key, {}),
              StatusIs(StatusCode::kNotFound, HasSubstr("404")));
}

TEST_F(SeaweedTest, WrongKeysAreRefused) {
  S3ClientOptions options = weed_.Options();
  options.credentials = MakeStaticCredentials(
      {.access_key_id = TempSeaweed::kKey, .secret_access_key = "wrong"});
  EXPECT_THAT((*S3Client::Create(options))
                  ->Put(bucket_, "key", {.bytes = AsBytes("x")}),
              StatusIs(StatusCode::kPermissionDenied,
                       HasSubstr("SignatureDoesNotMatch")));
}

TEST_F(SeaweedTest, ListsPageByPage) {
  std::set<std::string> expected;
  for (int i = 0; i < 1'050; ++i) {
    const std::string key = absl::StrCat("p/", i);
    ASSERT_TRUE(client_->Put(bucket_, key, {.bytes = AsBytes("x")}).ok());
    expected.insert(key);
  }
  ASSERT_TRUE(client_->Put(bucket_, "q/other", {}).ok());
  std::set<std::string> found;
  std::string from;
  int pages = 0;
  do {
    const auto page = client_->List(bucket_, "p/", from);
    ASSERT_TRUE(page.ok()) << page.status();
    for (const S3Object& object : page->items) found.insert(object.key);
    from = page->next;
    ++pages;
  } while (!from.empty());
  EXPECT_EQ(found, expected);
  EXPECT_EQ(pages, 2);
}

TEST_F(SeaweedTest, MultipartUploadsAreAssembledInOrderOfTheirNumbers) {
  const std::string bytes = RandomBytes(12'000'000, 2);
  const auto id = client_->CreateMultipart(bucket_, "big");
  ASSERT_TRUE(id.ok()) << id.status();
  S3Client::PartOf part{.bucket = bucket_, .key = "big", .upload_id = *id};
  std::vector<S3Part> parts(3);
  const std::unique_ptr<ByteSource> source = MakeMemorySource(AsBytes(bytes));
  for (const int i : {2, 0, 1}) {
    part.number = i + 1;
    const uint64_t offset = static_cast<uint64_t>(i) * kS3MinPartBytes;
    const auto made = client_->UploadPart(
        part, {.source = source.get(),
               .offset = offset,
               .size = std::min(kS3MinPartBytes, bytes.size() - offset)});
    ASSERT_TRUE(made.ok()) << made.status();
    parts[static_cast<size_t>(i)] = *made;
  }
  const auto listed = client_->ListParts(part, 0);
  ASSERT_TRUE(listed.ok()) << listed.status();
  ASSERT_EQ(listed->items.size(), 3);
  EXPECT_EQ(listed->items[1].etag, parts[1].etag);
  const auto uploads = client_->ListMultiparts(bucket_, "", "");
  ASSERT_TRUE(uploads.ok()) << uploads.status();
  ASSERT_EQ(uploads->items.size(), 1);
  EXPECT_EQ(uploads->items[0].id, *id);
  EXPECT_EQ(uploads->items[0].key, "big");
  const auto etag = client_->CompleteMultipart(part, parts);
  ASSERT_TRUE(etag.ok()) << etag.status();
  EXPECT_EQ(Sha256Hex(Read("big", 0, bytes.size())), Sha256Hex(bytes));
  EXPECT_EQ(client_->Head(bucket_, "big", {})->etag, *etag);
}

TEST_F(SeaweedTest, AnAbortedUploadLeavesNothing) {
  const auto id = client_->CreateMultipart(bucket_, "gone");
  ASSERT_TRUE(id.ok());
  const S3Client::PartOf part{
      .bucket = bucket_, .key = "gone", .upload_id = *id, .number = 1};
  ASSERT_TRUE(client_->UploadPart(part, {.bytes = AsBytes("x")}).ok());
  EXPECT_TRUE(client_->AbortMultipart(part).ok());
  EXPECT_TRUE(client_->AbortMultipart(part).ok());
  EXPECT_TRUE(client_->ListMultiparts(bucket_, "", "")->items.empty());
  EXPECT_FALSE(client_
                   ->CompleteMultipart(
                       part, {{.number = 1, .etag = "\"e\"", .size_bytes = 1}})
                   .ok());
  EXPECT_TRUE(absl::IsNotFound(client_->Head(bucket_, "gone", {}).status()));
}

TEST_F(SeaweedTest, PartsCanBeCopiedInsideTheStore) {
  const std::string bytes = RandomBytes(6'000'000, 3);
  ASSERT_TRUE(client_->Put(bucket_, "from", {.bytes = AsBytes(bytes)}).ok());
  const auto id = client_->CreateMultipart(bucket_, "to");
  const S3Client::PartOf part{
      .bucket = bucket_, .key = "to", .upload_id = *id, .number = 1};
  const auto copied = client_->CopyPart(
      part, {.bucket = bucket_, .key = "from"}, 1'000'000, 5'000'000);
  ASSERT_TRUE(copied.ok()) << copied.status();
  const auto etag = client_->CompleteMultipart(part, {*copied});
  ASSERT_TRUE(etag.ok()) << etag.status();
  EXPECT_EQ(Read("to", 0, 5'000'000), bytes.substr(1'000'000));
}

}  // namespace
}  // namespace ovpress
