// Blobs, stored jobs, scheduling and the job manager, without any network.
#include <sqlite3.h>
#include <stdlib.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <future>
#include <limits>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_replace.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/jobs/errors.h"
#include "server/jobs/fair_executor.h"
#include "server/jobs/job_manager.h"
#include "server/jobs/local_blob_store.h"
#include "server/jobs/options_json.h"
#include "server/jobs/scheduler.h"
#include "server/jobs/sqlite_job_store.h"

namespace ovpress {
namespace {

namespace fs = std::filesystem;
using testing::HasSubstr;

class FakeQuotas final : public QuotaSource {
 public:
  OwnerQuota QuotaOf(absl::string_view owner) const override {
    const auto it = of.find(std::string(owner));
    return it == of.end() ? OwnerQuota{} : it->second;
  }
  std::map<std::string, OwnerQuota> of;
};

class JobsTest : public testing::Test {
 protected:
  JobsTest() {
    std::string pattern = fs::temp_directory_path() / "jobs_test_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    limits_.min_free_bytes = 0;
  }
  ~JobsTest() override { fs::remove_all(folder_); }

  std::unique_ptr<BlobStore> OpenBlobs() {
    LocalBlobStoreOptions options;
    options.directory = folder_ + "/store";
    options.limits = limits_;
    options.clock = &clock_;
    options.crash_point = crash_point_;
    options.quotas = &quotas_;
    auto store = OpenLocalBlobStore(options, &report_);
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }
  static absl::Status Upload(BlobStore& store, const std::string& owner,
                             const std::string& bytes,
                             const std::string& uuid = "u") {
    auto upload =
        store.OpenUpload(owner, {.uuid = uuid, .ref = BlobRefOf(bytes)});
    if (!upload.ok() || upload->already_exists) return upload.status();
    // After a crash it goes on where the durable bytes end.
    const uint64_t at = upload->writer->next_offset();
    const absl::Status status =
        upload->writer->Append(at, AsBytes(bytes).subspan(at));
    return status.ok() ? upload->writer->Finish() : status;
  }
  static bool Has(BlobStore& store, const std::string& owner,
                  const std::string& bytes) {
    const BlobRef ref = BlobRefOf(bytes);
    return store.FindMissing(owner, std::span(&ref, 1))->empty();
  }

  std::string folder_;
  FakeClock clock_;
  StoreLimits limits_;
  RecoveryReport report_;
  FakeQuotas quotas_;
  std::function<absl::Status(absl::string_view)> crash_point_;
};

TEST_F(JobsTest, KnowingADigestGivesNothing) {
  auto store = OpenBlobs();
  ASSERT_TRUE(Upload(*store, "alice", "secret").ok());
  EXPECT_TRUE(Has(*store, "alice", "secret"));
  EXPECT_FALSE(Has(*store, "bob", "secret"));
  EXPECT_EQ(store->OpenRead("bob", BlobRefOf("secret")).status().code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(Upload(*store, "bob", "secret").ok());
  EXPECT_EQ(store->Stats().blob_count, 1u);
  ASSERT_TRUE(store->Release("alice", BlobRefOf("secret")).ok());
  EXPECT_TRUE(Has(*store, "bob", "secret"));
  ASSERT_TRUE(store->Release("bob", BlobRefOf("secret")).ok());
  EXPECT_EQ(store->Stats().blob_bytes, 0u);
}

TEST_F(JobsTest, AnAdminReadsWhoeverOwnsIt) {
  auto store = OpenBlobs();
  ASSERT_TRUE(Upload(*store, "alice", "secret").ok());
  auto source = store->OpenReadAny(BlobRefOf("secret"));
  ASSERT_TRUE(source.ok()) << source.status();
  // Pinned while it is read, and no longer.
  ASSERT_TRUE(store->Release("alice", BlobRefOf("secret")).ok());
  std::string bytes(6, ' ');
  EXPECT_TRUE((*source)->ReadAt(0, AsWritableBytes(bytes)).ok());
  EXPECT_EQ(bytes, "secret");
  source->reset();
  EXPECT_EQ(store->Stats().blob_count, 0u);
  EXPECT_EQ(store->OpenReadAny(BlobRefOf("secret")).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(store->OpenReadAny({.sha256 = "../../x"}).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_F(JobsTest, AShareOfTheStoreCountsAllThatAnOwnerHolds) {
  limits_.max_owner_bytes = 250;
  quotas_.of["rich"] = {.max_bytes = 1000};
  quotas_.of["free"] = {.max_bytes = 0};
  auto store = OpenBlobs();
  const std::string a(100, 'a');
  const std::string b(100, 'b');
  const std::string c(100, 'c');
  ASSERT_TRUE(Upload(*store, "o", a).ok());
  // What is set aside for jobs and streams counts until it is given back, and
  // bytes that are drawn from it count once.
  auto space = store->Reserve("o", 100);
  ASSERT_TRUE(space.ok());
  const absl::Status full = Upload(*store, "o", b);
  EXPECT_EQ(full.code(), absl::StatusCode::kResourceExhausted) << full;
  EXPECT_EQ(GetLimitDetails(full)->limit, "max_owner_bytes");
  EXPECT_EQ(GetLimitDetails(full)->subject, "client:o");
  EXPECT_EQ(GetLimitDetails(full)->requested, 300u);
  auto writer = store->CreateOutput("o", 100, space->get());
  ASSERT_TRUE(writer.ok());
  EXPECT_TRUE(store->CreateScratch("o", 50).ok());
  EXPECT_FALSE(store->CreateScratch("o", 51).ok());
  writer->reset();
  space->reset();
  auto scratch = store->CreateScratch("o", 150);
  ASSERT_TRUE(scratch.ok());
  EXPECT_FALSE(store->Reserve("o", 1).ok());
  scratch->reset();
  ASSERT_TRUE(Upload(*store, "o", b).ok());
  // Others have their own; 0 is no limit.
  for (const char* owner : {"rich", "free"}) {
    EXPECT_TRUE(Upload(*store, owner, std::string(900, 'x')).ok());
  }
  EXPECT_FALSE(Upload(*store, "rich", std::string(101, 'y')).ok());
  EXPECT_TRUE(Upload(*store, "free", std::string(1000, 'z')).ok());
  // Too large for the share whatever goes.
  EXPECT_EQ(Upload(*store, "o", std::string(251, 'd')).code(),
            absl::StatusCode::kInvalidArgument);
  // What the owner no longer uses makes room for what it wants now; what
  // another one has as well stays there for that one.
  ASSERT_TRUE(Upload(*store, "rich", a).ok());
  clock_.Advance(absl::Hours(1));
  ASSERT_TRUE(Has(*store, "o", b));  // used now
  ASSERT_TRUE(Upload(*store, "o", c).ok());
  EXPECT_FALSE(Has(*store, "o", a));
  EXPECT_TRUE(Has(*store, "o", b));
  EXPECT_TRUE(Has(*store, "rich", a));
  // Nothing of others is taken for it.
  EXPECT_FALSE(Upload(*store, "o", std::string(100, 'e')).ok());
}

TEST_F(JobsTest, UnfinishedUploadsOfAnOwnerHaveALimit) {
  quotas_.of["o"] = {.max_uploads = 1};
  auto store = OpenBlobs();
  const auto open = [&](const std::string& owner, const std::string& bytes) {
    return store->OpenUpload(owner, {.uuid = bytes, .ref = BlobRefOf(bytes)})
        .status();
  };
  EXPECT_TRUE(open("o", "a").ok());
  EXPECT_EQ(GetLimitDetails(open("o", "b"))->limit, "max_owner_uploads");
  EXPECT_TRUE(open("p", "a").ok());
  EXPECT_TRUE(open("p", "b").ok());
}

TEST_F(JobsTest, EvictsTheLeastRecentlyUsedButNothingPinned) {
  limits_.max_store_bytes = 250;
  auto store = OpenBlobs();
  const std::string a(100, 'a');
  const std::string b(100, 'b');
  const std::string c(100, 'c');
  ASSERT_TRUE(Upload(*store, "o", a).ok());
  clock_.Advance(absl::Minutes(1));
  ASSERT_TRUE(Upload(*store, "o", b).ok());
  // Both are young: nothing may go.
  EXPECT_EQ(Upload(*store, "o", c).code(),
            absl::StatusCode::kResourceExhausted);
  clock_.Advance(absl::Hours(1));
  const BlobRef ref = BlobRefOf(a);
  auto pin = store->Pin("o", std::span(&ref, 1));
  ASSERT_TRUE(pin.ok());
  ASSERT_TRUE(Upload(*store, "o", c).ok());
  EXPECT_TRUE(Has(*store, "o", a));
  EXPECT_FALSE(Has(*store, "o", b));
  const absl::Status never = Upload(*store, "o", std::string(251, 'd'));
  EXPECT_EQ(never.code(), absl::StatusCode::kInvalidArgument) << never;
  EXPECT_EQ(GetLimitDetails(never)->limit, "max_store_bytes");
}

TEST_F(JobsTest, ACrashAtAnyStepLosesNothingAcknowledged) {
  const std::string bytes(1000, 'x');
  for (const std::string step : {"upload_synced", "blob_renamed", "blob_synced",
                                 "marker_made", "marker_synced"}) {
    const std::string uuid = absl::StrReplaceAll(step, {{"_", "-"}});
    crash_point_ = [&step](absl::string_view at) {
      return at == step ? absl::AbortedError("crash") : absl::OkStatus();
    };
    {
      auto store = OpenBlobs();
      EXPECT_FALSE(Upload(*store, "o", bytes, uuid).ok()) << step;
    }
    crash_point_ = nullptr;
    auto store = OpenBlobs();
    // Not a byte has to be sent again.
    const auto status =
        store->QueryUpload("o", {.uuid = uuid, .ref = BlobRefOf(bytes)});
    ASSERT_TRUE(status.ok()) << step << ": " << status.status();
    EXPECT_EQ(status->committed_bytes, bytes.size()) << step;
    ASSERT_TRUE(Upload(*store, "o", bytes, uuid).ok()) << step;
    auto source = store->OpenRead("o", BlobRefOf(bytes));
    ASSERT_TRUE(source.ok());
    source->reset();
    ASSERT_TRUE(store->Release("o", BlobRefOf(bytes)).ok());
    EXPECT_EQ(store->Stats().blob_count, 0u) << step;
    EXPECT_EQ(store->Stats().upload_count, 0u) << step;
  }
}

// A disk whose syncs take long: publications stop at `step` until it is let go.
class SlowDisk {
 public:
  explicit SlowDisk(std::string step) : step_(std::move(step)) {}
  std::function<absl::Status(absl::string_view)> hook() {
    return [this](absl::string_view at) {
      if (at == step_ && armed_.exchange(false)) {
        reached_.set_value();
        // Not for ever: a store that waits shall fail the test, not hang it.
        released_.get_future().wait_for(std::chrono::seconds(20));
        done_ = true;
      }
      return absl::OkStatus();
    };
  }
  void AwaitStop() { reached_.get_future().wait(); }
  void Release() { released_.set_value(); }
  // The calls so far did not wait for the disk.
  bool still_waits() const { return !done_; }

 private:
  const std::string step_;
  std::atomic<bool> armed_{true};
  std::atomic<bool> done_{false};
  std::promise<void> reached_, released_;
};

TEST_F(JobsTest, ASlowDiskDelaysNoOtherCall) {
  const std::string bytes(1000, 'x');
  for (const std::string step : {"upload_synced", "blob_renamed", "blob_synced",
                                 "marker_made", "marker_synced"}) {
    SlowDisk disk(step);
    crash_point_ = disk.hook();
    auto store = OpenBlobs();
    ASSERT_TRUE(
        store->OpenUpload("o", {.uuid = "half", .ref = BlobRefOf("h")}).ok());
    absl::Status uploaded;
    std::thread slow([&] { uploaded = Upload(*store, "o", bytes, "slow"); });
    disk.AwaitStop();
    EXPECT_FALSE(Has(*store, "o", bytes)) << step;
    EXPECT_TRUE(
        store->QueryUpload("o", {.uuid = "half", .ref = BlobRefOf("h")}).ok());
    EXPECT_TRUE(
        store->OpenUpload("p", {.uuid = "new", .ref = BlobRefOf("n")}).ok());
    EXPECT_TRUE(Upload(*store, "o", "other" + step, "other").ok());
    EXPECT_TRUE(store->OpenRead("o", BlobRefOf("other" + step)).ok());
    EXPECT_EQ(store->Stats().blob_count, 1u);
    EXPECT_TRUE(disk.still_waits()) << step;
    disk.Release();
    slow.join();
    EXPECT_TRUE(uploaded.ok()) << step << ": " << uploaded;
    EXPECT_TRUE(Has(*store, "o", bytes)) << step;
    ASSERT_TRUE(store->Release("o", BlobRefOf(bytes)).ok());
    ASSERT_TRUE(store->Release("o", BlobRefOf("other" + step)).ok());
    EXPECT_EQ(store->Stats().blob_bytes, 0u) << step;
  }
}

TEST_F(JobsTest, WhoMeetsAPublicationOfTheSameBlobWaitsForIt) {
  const std::string bytes(1000, 'x');
  for (const std::string step :
       {"blob_renamed", "blob_synced", "marker_made", "marker_synced"}) {
    crash_point_ = nullptr;
    {
      // Alice has it, unverified since the start of this process.
      auto store = OpenBlobs();
      ASSERT_TRUE(Upload(*store, "alice", bytes).ok());
    }
    SlowDisk disk(step);
    crash_point_ = disk.hook();
    {
      auto store = OpenBlobs();
      absl::Status uploaded, again;
      std::thread slow([&] { uploaded = Upload(*store, "bob", bytes, "b"); });
      disk.AwaitStop();
      // What bob's publication names must not go with alice's claim.
      std::thread second([&] { again = Upload(*store, "carol", bytes, "c"); });
      std::thread release([&] {
        EXPECT_TRUE(store->Release("alice", BlobRefOf(bytes)).ok());
        EXPECT_TRUE(store->Release("bob", BlobRefOf(bytes)).ok());
      });
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      EXPECT_TRUE(Has(*store, "alice", bytes)) << step;
      EXPECT_FALSE(Has(*store, "carol", bytes)) << step;
      disk.Release();
      for (std::thread* thread : {&slow, &second, &release}) thread->join();
      EXPECT_TRUE(uploaded.ok() && again.ok()) << uploaded << again;
      EXPECT_FALSE(Has(*store, "bob", bytes)) << step;
      EXPECT_EQ(store->Stats().blob_count, 1u) << step;
      EXPECT_EQ(store->Stats().blob_bytes, bytes.size()) << step;
    }
    crash_point_ = nullptr;
    auto store = OpenBlobs();
    EXPECT_FALSE(Has(*store, "alice", bytes) || Has(*store, "bob", bytes));
    EXPECT_TRUE(store->OpenRead("carol", BlobRefOf(bytes)).ok()) << step;
    ASSERT_TRUE(store->Release("carol", BlobRefOf(bytes)).ok());
    EXPECT_EQ(store->Stats().blob_count, 0u) << step;
  }
}

TEST_F(JobsTest, StagedBytesOfABlobThatCameAnotherWayGo) {
  auto store = OpenBlobs();
  const std::string bytes(1000, 'x');
  const UploadName name{.uuid = "slow", .ref = BlobRefOf(bytes)};
  {
    auto slow = store->OpenUpload("o", name);
    ASSERT_TRUE(slow->writer->Append(0, AsBytes("xxx")).ok());
    ASSERT_TRUE(Upload(*store, "o", bytes, "quick").ok());
    store->Sweep();
    // Its writer is alive and may end.
    EXPECT_EQ(store->Stats().upload_count, 1u);
  }
  store->Sweep();
  EXPECT_EQ(store->Stats().upload_count, 0u);
  EXPECT_EQ(store->Stats().staged_bytes, 0u);
  EXPECT_TRUE(store->QueryUpload("o", name)->complete);
}

TEST_F(JobsTest, ASecondWriterWaitsAndThenTakesOver) {
  auto store = OpenBlobs();
  const std::string bytes = "0123456789";
  const UploadName name{.uuid = "u", .ref = BlobRefOf(bytes)};
  auto first = store->OpenUpload("o", name);
  ASSERT_TRUE(first->writer->Append(0, AsBytes("01234")).ok());
  EXPECT_EQ(store->OpenUpload("o", name).status().code(),
            absl::StatusCode::kAborted);
  clock_.Advance(absl::Minutes(1));
  auto second = store->OpenUpload("o", name);
  ASSERT_TRUE(second.ok());
  EXPECT_EQ(first->writer->Append(5, AsBytes("56789")).code(),
            absl::StatusCode::kAborted);
  // Nothing was durable yet, so it starts over.
  EXPECT_EQ(second->writer->next_offset(), 0u);
  ASSERT_TRUE(second->writer->Append(0, AsBytes(bytes)).ok());
  ASSERT_TRUE(second->writer->Finish().ok());
  EXPECT_TRUE(Has(*store, "o", bytes));
}

TEST_F(JobsTest, SilentUploadsExpireAndDamagedBlobsAreSetAside) {
  auto store = OpenBlobs();
  const UploadName name{.uuid = "u", .ref = BlobRefOf("never finished")};
  ASSERT_TRUE(store->OpenUpload("o", name).ok());
  EXPECT_GT(store->Stats().staged_bytes, 0u);
  clock_.Advance(absl::Hours(25));
  store->Sweep();
  EXPECT_EQ(store->Stats().staged_bytes, 0u);
  EXPECT_EQ(store->QueryUpload("o", name).status().code(),
            absl::StatusCode::kNotFound);
  ASSERT_TRUE(Upload(*store, "o", "fine").ok());
  const BlobRef ref = BlobRefOf("fine");
  std::ofstream(folder_ + "/store/blobs/" + ref.sha256.substr(0, 2) + "/" +
                ref.sha256 + "-4")
      << "evil";
  EXPECT_EQ(store->Verify(ref).code(), absl::StatusCode::kDataLoss);
  EXPECT_FALSE(Has(*store, "o", "fine"));
  // A second process must keep out.
  LocalBlobStoreOptions options;
  options.directory = folder_ + "/store";
  options.clock = &clock_;
  EXPECT_EQ(OpenLocalBlobStore(options).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST_F(JobsTest, WhatChangedOnTheDiskIsNotServed) {
  const BlobRef ref = BlobRefOf("fine");
  const std::string path = folder_ + "/store/blobs/" + ref.sha256.substr(0, 2) +
                           "/" + ref.sha256 + "-4";
  for (const bool restarted : {false, true}) {
    for (const std::string now : {"evil", "fin", "fine and more", ""}) {
      auto store = OpenBlobs();
      ASSERT_TRUE(Upload(*store, "o", "fine").ok());
      EXPECT_TRUE(store->OpenRead("o", ref).ok());
      if (restarted) store.reset();
      // The clock of changed files has steps of a few milliseconds.
      std::this_thread::sleep_for(std::chrono::milliseconds(20));
      std::ofstream(path) << now;
      if (restarted) store = OpenBlobs();
      const auto read = store->OpenRead("o", ref);
      // A wrong size is seen at the start already.
      EXPECT_EQ(read.status().code(), restarted && now.size() != 4
                                          ? absl::StatusCode::kNotFound
                                          : absl::StatusCode::kDataLoss)
          << now << ": " << read.status();
      EXPECT_FALSE(Has(*store, "o", "fine"));
      // Uploading it again mends it.
      ASSERT_TRUE(Upload(*store, "o", "fine").ok());
      EXPECT_EQ(*ReadBlob(store.get(), "o", ref, 100), "fine");
    }
  }
}

TEST_F(JobsTest, DamagedBlobsDoNotPileUp) {
  limits_.max_damaged_bytes = 10;
  limits_.damaged_ttl = absl::Hours(48);
  limits_.min_blob_age = absl::ZeroDuration();
  auto store = OpenBlobs();
  const auto damage = [&](const std::string& bytes) {
    ASSERT_TRUE(Upload(*store, "o", bytes).ok());
    const BlobRef ref = BlobRefOf(bytes);
    std::ofstream(absl::StrCat(folder_, "/store/blobs/",
                               ref.sha256.substr(0, 2), "/", ref.sha256, "-",
                               bytes.size()))
        << std::string(bytes.size(), '?');
    ASSERT_EQ(store->Verify(ref).code(), absl::StatusCode::kDataLoss);
  };
  const auto kept = [&] {
    std::set<std::string> names;
    for (const auto& file :
         fs::directory_iterator(folder_ + "/store/corrupt")) {
      names.insert(file.path().filename().string());
    }
    EXPECT_EQ(store->Stats().damaged_count, names.size());
    return names;
  };
  const auto name = [](const std::string& bytes) {
    return absl::StrCat(BlobRefOf(bytes).sha256, "-", bytes.size());
  };
  damage("first");
  clock_.Advance(absl::Hours(1));
  damage("other");
  EXPECT_EQ(kept(), (std::set{name("first"), name("other")}));
  EXPECT_EQ(store->Stats().damaged_bytes, 10u);
  // The same blob again replaces its file, and counts once.
  clock_.Advance(absl::Hours(1));
  damage("first");
  EXPECT_EQ(store->Stats().damaged_bytes, 10u);
  // One more than fits: the oldest goes.
  damage("third");
  EXPECT_EQ(kept(), (std::set{name("first"), name("third")}));
  // What never fits is not kept, and does not push out the rest for nothing.
  damage("much larger than all");
  EXPECT_EQ(kept(), (std::set{name("first"), name("third")}));
  // Known after a restart, with their age.
  clock_.Advance(absl::Hours(24));
  store.reset();
  store = OpenBlobs();
  EXPECT_EQ(store->Stats().damaged_bytes, 10u);
  store->Sweep();
  EXPECT_EQ(kept().size(), 2u);
  // Before a good blob they make room.
  ASSERT_TRUE(Upload(*store, "o", "good").ok());
  store.reset();
  limits_.max_store_bytes = 16;
  store = OpenBlobs();
  ASSERT_TRUE(Upload(*store, "o", "1234567").ok());
  EXPECT_TRUE(Has(*store, "o", "good"));
  EXPECT_EQ(kept().size(), 1u);
  clock_.Advance(absl::Hours(25));
  store->Sweep();
  EXPECT_EQ(kept().size(), 0u);
  EXPECT_EQ(store->Stats().damaged_bytes, 0u);
  EXPECT_TRUE(Has(*store, "o", "good"));
}

TEST_F(JobsTest, AWrongSizeFoundAtTheStartIsSetAsideAndCounted) {
  { ASSERT_TRUE(Upload(*OpenBlobs(), "o", "fine").ok()); }
  const BlobRef ref = BlobRefOf("fine");
  std::ofstream(folder_ + "/store/blobs/" + ref.sha256.substr(0, 2) + "/" +
                ref.sha256 + "-4")
      << "longer";
  const auto store = OpenBlobs();
  EXPECT_EQ(report_.corrupt_blobs, 1u);
  EXPECT_EQ(store->Stats().damaged_bytes, 6u);
  EXPECT_EQ(store->Stats().blob_bytes, 0u);
}

TEST_F(JobsTest, AVanishedBlobIsMissingNotAnEndlessError) {
  auto store = OpenBlobs();
  ASSERT_TRUE(Upload(*store, "o", "fine").ok());
  const BlobRef ref = BlobRefOf("fine");
  fs::remove(folder_ + "/store/blobs/" + ref.sha256.substr(0, 2) + "/" +
             ref.sha256 + "-4");
  EXPECT_EQ(store->OpenRead("o", ref).status().code(),
            absl::StatusCode::kDataLoss);
  EXPECT_FALSE(Has(*store, "o", "fine"));
  EXPECT_TRUE(Upload(*store, "o", "fine").ok());
}

TEST_F(JobsTest, ADamagedCopyDoesNotOutliveAGoodOne) {
  { ASSERT_TRUE(Upload(*OpenBlobs(), "a", "fine").ok()); }
  const BlobRef ref = BlobRefOf("fine");
  std::ofstream(folder_ + "/store/blobs/" + ref.sha256.substr(0, 2) + "/" +
                ref.sha256 + "-4")
      << "evil";
  auto store = OpenBlobs();
  // The bytes of another owner were thrown away for those that were there.
  ASSERT_TRUE(Upload(*store, "b", "fine").ok());
  EXPECT_EQ(*ReadBlob(store.get(), "b", ref, 100), "fine");
  EXPECT_EQ(*ReadBlob(store.get(), "a", ref, 100), "fine");
}

TEST_F(JobsTest, APinOfADamagedBlobDoesNotUnpinTheNextOne) {
  auto store = OpenBlobs();
  ASSERT_TRUE(Upload(*store, "o", "fine").ok());
  const BlobRef ref = BlobRefOf("fine");
  auto old_pin = store->Pin("o", std::span(&ref, 1));
  ASSERT_TRUE(old_pin.ok());
  std::ofstream(folder_ + "/store/blobs/" + ref.sha256.substr(0, 2) + "/" +
                ref.sha256 + "-4")
      << "evil";
  ASSERT_EQ(store->Verify(ref).code(), absl::StatusCode::kDataLoss);
  ASSERT_TRUE(Upload(*store, "o", "fine").ok());
  auto pin = store->Pin("o", std::span(&ref, 1));
  ASSERT_TRUE(pin.ok());
  EXPECT_EQ(store->Stats().pinned_bytes, 4u);
  old_pin->reset();
  EXPECT_EQ(store->Stats().pinned_bytes, 4u);
}

TEST_F(JobsTest, AnUploadThatCannotBePublishedNowIsNotSentAgain) {
  auto store = OpenBlobs();
  // A file in the way of the blob's folder: it cannot be placed.
  const BlobRef ref = BlobRefOf("fine");
  const std::string folder =
      folder_ + "/store/blobs/" + ref.sha256.substr(0, 2);
  std::ofstream(folder) << "in the way";
  EXPECT_FALSE(Upload(*store, "o", "fine").ok());
  const auto status = store->QueryUpload("o", {.uuid = "u", .ref = ref});
  ASSERT_TRUE(status.ok()) << status.status();
  EXPECT_EQ(status->committed_bytes, 4u);
  fs::remove(folder);
  EXPECT_TRUE(Upload(*store, "o", "fine").ok());
  EXPECT_TRUE(Has(*store, "o", "fine"));
}

JobRecord Job(const std::string& id, const std::string& owner = "o") {
  JobRecord job;
  job.id = id;
  job.spec.owner = owner;
  job.spec.xml = BlobRefOf("xml");
  job.spec.bin = BlobRefOf("bin");
  job.created = absl::FromUnixSeconds(1);
  return job;
}

// What the version before wrote is read.
TEST_F(JobsTest, JobsOfTheFirstSchemaSurvive) {
  const std::string path = folder_ + "/jobs.sqlite";
  sqlite3* db = nullptr;
  ASSERT_EQ(sqlite3_open(path.c_str(), &db), SQLITE_OK);
  const char* never = "-9223372036854775808";
  const std::string spec =
      R"("spec":{"xml":["aa",3],"bin":["bb",4],"options":"{}","canonical":"c",)"
      R"("mode":"int8_asym","memory":5,"measure":true,"labels":{"team":"x"},)"
      R"("ttl_us":7,"max_run_us":8,"no_cache":false})";
  const std::string queued = absl::StrCat(
      "{", spec, R"(,"cancel":false,"attempt":0,"started":)", never,
      R"(,"finished":)", never, R"(,"memory":11,"disk":12,"code":0,)",
      R"("message":"","payloads":{},"token":0})");
  const std::string failed = absl::StrCat(
      "{", spec, R"(,"cancel":true,"attempt":2,"started":5000000,)",
      R"("finished":6000000,"memory":11,"disk":12,"code":15,)",
      R"("message":"bad","payloads":{"ovpress/reason":"V0hZ"},"token":2})");
  const std::string row = absl::StrCat(
      "INSERT INTO jobs(id,owner,request_id,state,cache_key,priority,created,"
      "expires,server_id,lease_expires,record) VALUES(");
  const std::string sql = absl::StrCat(
      "CREATE TABLE jobs(seq INTEGER PRIMARY KEY AUTOINCREMENT,"
      " id TEXT NOT NULL UNIQUE, owner TEXT NOT NULL,"
      " request_id TEXT NOT NULL, state INTEGER NOT NULL,"
      " cache_key TEXT NOT NULL, priority INTEGER NOT NULL,"
      " created INTEGER NOT NULL, expires INTEGER NOT NULL,"
      " server_id TEXT NOT NULL, lease_expires INTEGER NOT NULL,"
      " record TEXT NOT NULL);"
      "CREATE INDEX jobs_state ON jobs(state, priority, created);"
      "PRAGMA user_version=1;",
      row, "'q','o','r',1,'k',3,1000000,9223372036854775807,'',", never, ",'",
      queued, "');", row, "'f','o','',4,'k',3,1000000,99000000,'',", never,
      ",'", failed, "');");
  char* error = nullptr;
  ASSERT_EQ(sqlite3_exec(db, sql.c_str(), nullptr, nullptr, &error), SQLITE_OK)
      << error;
  sqlite3_close(db);
  auto store = OpenSqliteJobStore({.path = path, .clock = &clock_});
  ASSERT_TRUE(store.ok()) << store.status();
  const auto waits = (*store)->Get("q");
  ASSERT_TRUE(waits.ok()) << waits.status();
  EXPECT_EQ(waits->state, JobState::kQueued);
  EXPECT_EQ(waits->started, absl::InfinitePast());
  EXPECT_EQ(waits->finished, absl::InfinitePast());
  EXPECT_EQ(waits->expires, absl::InfiniteFuture());
  EXPECT_EQ(waits->memory_bytes, 11u);
  EXPECT_EQ(waits->disk_bytes, 12u);
  EXPECT_EQ(waits->spec.labels.at("team"), "x");
  EXPECT_EQ(waits->spec.bin.size_bytes, 4u);
  EXPECT_TRUE(waits->spec.measure_error);
  const auto ended = (*store)->Get("f");
  ASSERT_TRUE(ended.ok()) << ended.status();
  EXPECT_EQ(ended->attempt, 2);
  EXPECT_TRUE(ended->cancel_requested);
  EXPECT_EQ(ended->lease.fencing_token, 2);
  EXPECT_EQ(ended->started, absl::FromUnixSeconds(5));
  EXPECT_EQ(ended->finished, absl::FromUnixSeconds(6));
  EXPECT_EQ(ended->error.code(), absl::StatusCode::kDataLoss);
  EXPECT_EQ(GetReason(ended->error), "WHY");
  const auto claimed = (*store)->Claim(
      {.offers = {{"q"}}, .server_id = "s", .lease = absl::Seconds(1)});
  ASSERT_TRUE(claimed.ok()) << claimed.status();
  EXPECT_EQ((*claimed)->attempt, 1);
}

TEST_F(JobsTest, DamagedAndNewerDatabasesAreLeftAlone) {
  const std::string path = folder_ + "/jobs.sqlite";
  std::ofstream(path) << std::string(5000, 'z');
  const absl::Status damaged = OpenSqliteJobStore({.path = path}).status();
  EXPECT_EQ(damaged.code(), absl::StatusCode::kDataLoss) << damaged;
  EXPECT_EQ(fs::file_size(path), 5000u);
  const std::string newer = folder_ + "/newer.sqlite";
  sqlite3* db = nullptr;
  sqlite3_open(newer.c_str(), &db);
  sqlite3_exec(db, "PRAGMA user_version=99", nullptr, nullptr, nullptr);
  sqlite3_close(db);
  EXPECT_EQ(OpenSqliteJobStore({.path = newer}).status().code(),
            absl::StatusCode::kFailedPrecondition);
}

TEST(SchedulerTest, AJobThatLacksMemoryStillWaits) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  JobLimits limits;
  limits.total_memory_bytes = 100;
  const std::vector<WaitingJob> waiting = {{"big", "a", 0, 100, now}};
  SchedulerState state{.free_memory_bytes = 10};
  EXPECT_TRUE(PickNext(waiting, state, now, limits, 9).empty());
  EXPECT_TRUE(JobsWait(waiting, state, now, limits));
  EXPECT_FALSE(JobsWait({}, state, now, limits));
  // Not for this server, or not now.
  state.owners["a"] = {.running = 1, .max_running = 1};
  EXPECT_FALSE(JobsWait(waiting, state, now, limits));
  state.owners.clear();
  limits.total_memory_bytes = 99;
  EXPECT_FALSE(JobsWait(waiting, state, now, limits));
}

TEST(SchedulerTest, OwnersAlternateAndOldJobsRise) {
  const absl::Time now = absl::FromUnixSeconds(1000);
  JobLimits limits;
  std::vector<WaitingJob> waiting = {{"a1", "a", 0, 1, now - absl::Seconds(9)},
                                     {"a2", "a", 0, 1, now - absl::Seconds(8)},
                                     {"b1", "b", 0, 1, now - absl::Seconds(7)}};
  const auto order = QueueOrder(waiting, {}, now, limits);
  EXPECT_EQ(order, (std::vector<size_t>{0, 2, 1}));
  waiting.push_back({"c1", "c", 5, 1, now});
  EXPECT_EQ(QueueOrder(waiting, {}, now, limits)[0], 3u);
  waiting[2].created = now - absl::Minutes(6);
  EXPECT_EQ(QueueOrder(waiting, {}, now, limits)[0], 2u);
  // Memory lacks for the first: others pass only while it is young.
  waiting = {{"big", "a", 0, 100, now}, {"small", "b", -1, 1, now}};
  SchedulerState state{.free_memory_bytes = 10};
  using Indices = std::vector<size_t>;
  EXPECT_EQ(PickNext(waiting, state, now, limits, 9), Indices{1});
  waiting[0].created = now - absl::Minutes(2);
  EXPECT_EQ(PickNext(waiting, state, now, limits, 9), Indices{});
  // What can never run here holds up nobody.
  limits.total_memory_bytes = 99;
  EXPECT_EQ(PickNext(waiting, state, now, limits, 9), Indices{1});
  // An owner's own limit stands before the one for all; 0 is none.
  limits.max_running = 10;
  limits.max_running_per_owner = 2;
  waiting = {{"x", "a", 0, 1, now}};
  state.owners["a"] = {.running = 2};
  EXPECT_EQ(PickNext(waiting, state, now, limits, 9), Indices{});
  for (const auto& [most, starts] :
       {std::pair(0, true), {1, false}, {2, false}, {3, true}}) {
    state.owners["a"].max_running = most;
    EXPECT_EQ(!PickNext(waiting, state, now, limits, 9).empty(), starts)
        << most;
  }
  // Several are offered, best first, without owners at their limit.
  waiting = {{"a1", "a", 0, 1, now - absl::Seconds(9)},
             {"a2", "a", 0, 1, now - absl::Seconds(8)},
             {"b1", "b", 0, 1, now - absl::Seconds(7)}};
  state.owners["a"] = {};
  EXPECT_EQ(PickNext(waiting, state, now, limits, 2), (Indices{0, 2}));
  limits.max_running_per_owner = 1;
  state.owners["a"].running = 1;
  EXPECT_EQ(PickNext(waiting, state, now, limits, 9), Indices{2});
}

TEST(FairExecutorTest, ASmallLoopIsNotHeldUpByAHugeOne) {
  const auto pool = FairExecutor::Create(
      {.threads = 2, .backend = FairExecutorOptions::Backend::kThreads});
  const auto big = pool->MakeView(1);
  const auto small = pool->MakeView(1);
  std::atomic<bool> stop{false};
  std::atomic<size_t> ran{0};
  std::thread huge([&] {
    const absl::Status status =
        big->ParallelFor(std::numeric_limits<int>::max(), [&](size_t) {
          ++ran;
          std::this_thread::sleep_for(std::chrono::milliseconds(1));
          return stop ? absl::CancelledError() : absl::OkStatus();
        });
    EXPECT_TRUE(absl::IsCancelled(status));
  });
  while (ran < 4) std::this_thread::yield();
  std::atomic<int> sum{0};
  EXPECT_TRUE(small
                  ->ParallelFor(10,
                                [&](size_t i) {
                                  sum += static_cast<int>(i);
                                  return small->ParallelFor(2, [](size_t) {
                                    return absl::OkStatus();
                                  });
                                })
                  .ok());
  EXPECT_EQ(sum, 45);
  stop = true;
  huge.join();
}

TEST(OptionsJsonTest, KeepsEveryOptionAndRefusesUnknownOnes) {
  CompressionOptions options;
  options.mode = Mode::kInt4Sym;
  options.ratio = 0.3;
  options.group_size = 64;
  options.backup_mode = BackupMode::kInt8Sym;
  options.ignored.names = {"a", "b"};
  options.awq = true;
  const auto back = OptionsFromJson(OptionsToJson(options));
  ASSERT_TRUE(back.ok()) << back.status();
  EXPECT_EQ(CanonicalOptions(*back), CanonicalOptions(options));
  EXPECT_EQ(OptionsToJson(*back), OptionsToJson(options));
  EXPECT_THAT(
      OptionsFromJson(R"({"mode":"int8_asym","new":1})").status().message(),
      HasSubstr("new"));
  // Numbers that an integer cannot hold: the conversion was undefined.
  for (const char* number :
       {"1e300", "-9.3e18", "18446744073709551615", "1.5", "true", "\"1\""}) {
    for (const char* key : {"group_size", "min_adjusted_group_size"}) {
      EXPECT_FALSE(OptionsFromJson(absl::StrCat(R"({"mode":"int4_sym",")", key,
                                                "\":", number, "}"))
                       .ok())
          << key << " " << number;
    }
  }
  EXPECT_FALSE(OptionsFromJson("{").ok());
}

// Publishes the .xml's bytes as the result once it is let go.
class FakeRunner final : public JobRunner {
 public:
  std::string engine_version() const override { return "fake"; }
  absl::StatusOr<JobEstimate> Estimate(BlobStore*, const JobSpec&) override {
    return JobEstimate{.memory_bytes = 1, .output_bytes = 100};
  }
  absl::StatusOr<RunOutput> Run(const JobSpec& spec,
                                const RunContext& context) override {
    while (hold && !*context.stop) std::this_thread::yield();
    if (*context.stop) return absl::CancelledError("stopped");
    RunOutput output;
    auto made = PublishBytes(context.blobs, spec.owner, "out", context.space);
    if (!made.ok()) return made.status();
    output.result.xml = output.result.bin = output.result.report = made->ref;
    output.pins.push_back(std::move(made->pin));
    return output;
  }
  std::atomic<bool> hold{false};
};

TEST_F(JobsTest, ManagerRunsCancelsRequeuesAndAnswersFromTheCache) {
  auto blobs = OpenBlobs();
  auto store =
      *OpenSqliteJobStore({.path = folder_ + "/jobs.sqlite", .clock = &clock_});
  const auto executor = FairExecutor::Create(
      {.threads = 1, .backend = FairExecutorOptions::Backend::kThreads});
  FakeRunner runner;
  ASSERT_TRUE(Upload(*blobs, "o", "xml").ok());
  ASSERT_TRUE(Upload(*blobs, "o", "bin").ok());
  JobManagerOptions options{.limits = {.max_running = 1},
                            .jobs = store.get(),
                            .blobs = blobs.get(),
                            .runner = &runner,
                            .executor = executor.get(),
                            .clock = &clock_};
  JobSpec spec = Job("").spec;
  ASSERT_TRUE(SetOptions({}, &spec).ok());
  const JobManager::Owner owner = "o";
  std::string held;
  {
    auto manager = *JobManager::Create(options);
    const auto first = manager->Submit(spec);
    ASSERT_TRUE(first.ok()) << first.status();
    const auto done = manager->Wait(owner, first->record.id, absl::Seconds(30));
    EXPECT_EQ(done->record.state, JobState::kSucceeded) << done->record.error;
    EXPECT_EQ(manager->Get("someone else", first->record.id).status().code(),
              absl::StatusCode::kNotFound);
    EXPECT_TRUE(manager->Submit(spec)->record.result.cache_hit);
    runner.hold = true;
    spec.ignore_result_cache = true;
    const auto running = manager->Submit(spec);
    clock_.Advance(absl::Milliseconds(1));  // else the ids decide who is next
    const auto queued = manager->Submit(spec);
    ASSERT_TRUE(manager->Cancel(owner, queued->record.id).ok());
    EXPECT_EQ(manager->Get(owner, queued->record.id)->record.state,
              JobState::kCancelled);
    while (manager->Get(owner, running->record.id)->record.state !=
           JobState::kRunning) {
      std::this_thread::yield();
    }
    ASSERT_TRUE(manager->Cancel(owner, running->record.id).ok());
    EXPECT_EQ(manager->Wait(owner, running->record.id, absl::Seconds(30))
                  ->record.state,
              JobState::kCancelled);
    held = manager->Submit(spec)->record.id;
    while (manager->Get(owner, held)->record.state != JobState::kRunning) {
      std::this_thread::yield();
    }
    EXPECT_EQ(manager->Drain(absl::ZeroDuration()).requeued, 1);
    EXPECT_EQ(manager->Submit(spec).status().code(),
              absl::StatusCode::kUnavailable);
  }
  EXPECT_EQ(store->Get(held)->state, JobState::kQueued);
  runner.hold = false;
  auto manager = *JobManager::Create(options);
  EXPECT_EQ(manager->Wait(owner, held, absl::Seconds(30))->record.state,
            JobState::kSucceeded);
  spec.xml = BlobRefOf("not there");
  EXPECT_EQ(GetMissingBlobs(manager->Submit(spec).status()).size(), 1u);
}

TEST_F(JobsTest, AJobWhoseEndCannotBeStoredRunsAgainFromItsInputs) {
  limits_.max_store_bytes = 1000;
  limits_.min_blob_age = absl::Seconds(1);
  auto blobs = OpenBlobs();
  auto store = *OpenSqliteJobStore({.path = folder_ + "/jobs.sqlite",
                                    .busy_timeout = absl::Milliseconds(1)});
  const auto executor = FairExecutor::Create(
      {.threads = 1, .backend = FairExecutorOptions::Backend::kThreads});
  FakeRunner runner;
  runner.hold = true;
  ASSERT_TRUE(Upload(*blobs, "o", "xml").ok());
  ASSERT_TRUE(Upload(*blobs, "o", "bin").ok());
  auto manager = *JobManager::Create({.limits = {.max_running = 1},
                                      .jobs = store.get(),
                                      .blobs = blobs.get(),
                                      .runner = &runner,
                                      .executor = executor.get(),
                                      .clock = &clock_});
  JobSpec spec = Job("").spec;
  ASSERT_TRUE(SetOptions({}, &spec).ok());
  const std::string id = manager->Submit(spec)->record.id;
  while (manager->Get("o", id)->record.state != JobState::kRunning) {
    std::this_thread::yield();
  }
  // Somebody else keeps the database to himself while the job ends.
  sqlite3* other = nullptr;
  ASSERT_EQ(sqlite3_open((folder_ + "/jobs.sqlite").c_str(), &other),
            SQLITE_OK);
  sqlite3_busy_timeout(other, 10000);
  ASSERT_EQ(sqlite3_exec(other, "BEGIN EXCLUSIVE", nullptr, nullptr, nullptr),
            SQLITE_OK);
  runner.hold = false;
  while (manager->Stats().running > 0) std::this_thread::yield();
  ASSERT_EQ(sqlite3_close(other), SQLITE_OK);
  // Old and unused but for the job: a full store would evict the inputs.
  clock_.Advance(absl::Minutes(1));
  EXPECT_EQ(Upload(*blobs, "p", std::string(1000, 'x')).code(),
            absl::StatusCode::kResourceExhausted);
  EXPECT_TRUE(Has(*blobs, "o", "xml") && Has(*blobs, "o", "bin"));
  EXPECT_EQ(manager->Wait("o", id, absl::Seconds(30))->record.state,
            JobState::kSucceeded);
}

TEST_F(JobsTest, OwnersQueuesAndResultsAreApart) {
  quotas_.of["o"] = {.max_queued = 3};
  auto blobs = OpenBlobs();
  auto store = *OpenSqliteJobStore({.path = folder_ + "/jobs.sqlite"});
  const auto executor = FairExecutor::Create(
      {.threads = 1, .backend = FairExecutorOptions::Backend::kThreads});
  FakeRunner runner;
  JobManagerOptions options{.limits = {.max_queued_per_owner = 1},
                            .jobs = store.get(),
                            .blobs = blobs.get(),
                            .runner = &runner,
                            .executor = executor.get(),
                            .clock = &clock_,
                            .quotas = &quotas_};
  JobSpec spec = Job("").spec;
  ASSERT_TRUE(SetOptions({}, &spec).ok());
  const auto as = [&](const std::string& owner) {
    JobSpec other = spec;
    other.owner = owner;
    return other;
  };
  for (const char* owner : {"o", "p"}) {
    ASSERT_TRUE(Upload(*blobs, owner, "xml").ok());
    ASSERT_TRUE(Upload(*blobs, owner, "bin").ok());
  }
  {
    auto manager = *JobManager::Create(options);
    const auto first = manager->Submit(as("o"));
    ASSERT_TRUE(first.ok()) << first.status();
    ASSERT_EQ(
        manager->Wait("o", first->record.id, absl::Seconds(30))->record.state,
        JobState::kSucceeded);
    EXPECT_TRUE(manager->Submit(as("o"))->record.result.cache_hit);
    // The same model and options of somebody else: no word of the result.
    const auto other = manager->Submit(as("p"));
    ASSERT_TRUE(other.ok()) << other.status();
    EXPECT_FALSE(other->record.result.cache_hit);
    manager->Wait("p", other->record.id, absl::Seconds(30)).IgnoreError();
    EXPECT_EQ(manager->List("p", {}, 10, "")->jobs.size(), 1u);
    EXPECT_EQ(manager->List(std::nullopt, {}, 10, "")->jobs.size(), 3u);
    EXPECT_EQ(manager->Cancel("p", first->record.id).code(),
              absl::StatusCode::kNotFound);
    EXPECT_EQ(manager->Delete("p", first->record.id).code(),
              absl::StatusCode::kNotFound);
    EXPECT_FALSE(
        manager->Subscribe("p", first->record.id, [](const auto&) {}).ok());
    EXPECT_TRUE(manager->Delete(std::nullopt, first->record.id).ok());
  }
  // Nothing starts, so what is taken waits; calls at the same time cannot
  // pass the limit together.
  options.limits.max_running = 0;
  auto manager = *JobManager::Create(options);
  spec.ignore_result_cache = true;
  std::atomic<int> taken{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&] {
      const auto job = manager->Submit(as("o"));
      taken += job.ok();
      if (!job.ok()) {
        EXPECT_EQ(GetLimitDetails(job.status())->limit, "max_queued_per_owner");
        EXPECT_EQ(GetLimitDetails(job.status())->limit_value, 3u);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(taken, 3);
  EXPECT_TRUE(manager->Submit(as("p")).ok());
  EXPECT_FALSE(manager->Submit(as("p")).ok());
}

}  // namespace
}  // namespace ovpress
