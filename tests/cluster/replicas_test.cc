// Several job managers on one queue in PostgreSQL, with one store of blobs
// between them: what each tells of the others' jobs, and what happens when one
// of them dies, freezes or drains.
#include <stdlib.h>

#include <atomic>
#include <filesystem>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/cluster/postgres_job_store.h"
#include "server/jobs/errors.h"
#include "server/jobs/fair_executor.h"
#include "server/jobs/job_manager.h"
#include "server/jobs/local_blob_store.h"
#include "server/jobs/options_json.h"
#include "tests/cluster/temp_postgres.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

namespace fs = std::filesystem;
using ::ovpress::testing::StatusIs;
using ::ovpress::testing::TempPostgres;
using ::testing::HasSubstr;

// A server that lost the database, or froze: its calls find nobody, or wait.
class CutStore final : public JobStore {
 public:
  explicit CutStore(JobStore* store) : store_(store) {}
  std::atomic<bool> cut{false};

  bool shared() const override { return true; }
  void OnChange(std::function<void()> callback) override {
    store_->OnChange(std::move(callback));
  }
  absl::StatusOr<Inserted> Insert(const JobRecord& job, absl::Duration ttl,
                                  const QueueLimits& limits) override {
    if (cut) return Gone();
    return store_->Insert(job, ttl, limits);
  }
  absl::StatusOr<Full> FindPlace(const std::string& owner,
                                 const QueueLimits& limits) override {
    if (cut) return Gone();
    return store_->FindPlace(owner, limits);
  }
  absl::StatusOr<JobRecord> Get(absl::string_view id) override {
    if (cut) return Gone();
    return store_->Get(id);
  }
  absl::StatusOr<std::vector<JobRecord>> GetAll(
      const std::vector<std::string>& ids) override {
    if (cut) return Gone();
    return store_->GetAll(ids);
  }
  absl::StatusOr<std::optional<JobRecord>> FindByRequestId(
      absl::string_view owner, absl::string_view request_id) override {
    if (cut) return Gone();
    return store_->FindByRequestId(owner, request_id);
  }
  absl::StatusOr<JobPage> List(const JobFilter& filter, int page_size,
                               absl::string_view page_token) override {
    if (cut) return Gone();
    return store_->List(filter, page_size, page_token);
  }
  absl::StatusOr<std::optional<JobRecord>> FindResult(
      absl::string_view owner, absl::string_view key) override {
    if (cut) return Gone();
    return store_->FindResult(owner, key);
  }
  absl::StatusOr<Line> GetLine(int per_rank) override {
    if (cut) return Gone();
    return store_->GetLine(per_rank);
  }
  absl::StatusOr<std::optional<JobRecord>> Claim(
      const ClaimRequest& request) override {
    if (cut) return Gone();
    return store_->Claim(request);
  }
  absl::StatusOr<std::vector<Renewed>> Renew(const std::vector<Held>& held,
                                             absl::Duration lease) override {
    if (cut) return Gone();
    return store_->Renew(held, lease);
  }
  absl::Status Finish(absl::string_view id, int64_t token,
                      const JobOutcome& outcome) override {
    if (cut) return Gone();
    const absl::Status status = store_->Finish(id, token, outcome);
    refused += absl::IsAborted(status) ? 1 : 0;
    return status;
  }
  absl::Status Requeue(absl::string_view id, int64_t token) override {
    if (cut) return Gone();
    return store_->Requeue(id, token);
  }
  absl::StatusOr<std::vector<JobRecord>> RequeueOf(
      absl::string_view server_id) override {
    if (cut) return Gone();
    return store_->RequeueOf(server_id);
  }
  absl::StatusOr<JobRecord> RequestCancel(absl::string_view id,
                                          absl::Duration ttl) override {
    if (cut) return Gone();
    return store_->RequestCancel(id, ttl);
  }
  absl::Status FailWaiting(absl::string_view id,
                           const JobOutcome& outcome) override {
    if (cut) return Gone();
    return store_->FailWaiting(id, outcome);
  }
  absl::Status Delete(absl::string_view id) override {
    if (cut) return Gone();
    return store_->Delete(id);
  }
  absl::StatusOr<std::vector<JobRecord>> DeleteExpired(int limit) override {
    if (cut) return Gone();
    return store_->DeleteExpired(limit);
  }
  absl::StatusOr<std::vector<JobRecord>> ListHolders() override {
    if (cut) return Gone();
    return store_->ListHolders();
  }
  absl::StatusOr<Counts> Count(std::optional<std::string> owner) override {
    if (cut) return Gone();
    return store_->Count(std::move(owner));
  }

  std::atomic<int> refused{0};

 private:
  static absl::Status Gone() {
    return absl::UnavailableError("the database is far away");
  }
  JobStore* const store_;
};

// Publishes bytes that follow from the request alone, once it is let go.
class FakeRunner final : public JobRunner {
 public:
  std::atomic<bool> hold{false};
  std::atomic<bool> deaf{false};  // frozen: does not see that it should stop
  std::atomic<int> runs{0};

  std::string engine_version() const override { return "fake"; }
  absl::StatusOr<JobEstimate> Estimate(BlobStore*, const JobSpec&) override {
    return JobEstimate{.memory_bytes = 1, .output_bytes = 100};
  }
  absl::StatusOr<RunOutput> Run(const JobSpec& spec,
                                const RunContext& context) override {
    ++runs;
    context.progress({.phase = "compressing",
                      .bytes_done = 30,
                      .bytes_total = 100,
                      .weights_done = 3,
                      .weights_total = 10});
    while (hold && (deaf || !*context.stop)) {
      absl::SleepFor(absl::Milliseconds(2));
    }
    if (!deaf && *context.stop) return absl::CancelledError("stopped");
    RunOutput output;
    auto made =
        PublishBytes(context.blobs, spec.owner,
                     absl::StrCat("of ", spec.xml.sha256), context.space);
    if (!made.ok()) return made.status();
    output.result.xml = output.result.bin = output.result.report = made->ref;
    output.pins.push_back(std::move(made->pin));
    return output;
  }
};

class CountingObserver final : public Observer {
 public:
  std::atomic<int> finished{0};
  std::atomic<int> expired{0};
  void OnJobFinished(const JobRecord&, absl::Duration) override { ++finished; }
  void OnJobExpired(const JobRecord&) override { ++expired; }
};

class ReplicasTest : public ::testing::Test {
 protected:
  struct Replica {
    std::unique_ptr<PgPool> pool;
    std::unique_ptr<JobStore> postgres;
    std::unique_ptr<CutStore> store;
    FakeRunner runner;
    std::unique_ptr<JobManager> manager;
  };

  ReplicasTest() : conninfo_(TempPostgres::Get().NewSchema()) {
    std::string pattern = fs::temp_directory_path() / "replicas_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
    blobs_ = *OpenLocalBlobStore({.directory = folder_ + "/store",
                                  .limits = {.min_free_bytes = 0},
                                  .clock = &clock_});
    executor_ = FairExecutor::Create(
        {.threads = 1, .backend = FairExecutorOptions::Backend::kThreads});
    for (const char* bytes : {"xml", "bin"}) {
      auto upload =
          blobs_->OpenUpload("o", {.uuid = bytes, .ref = BlobRefOf(bytes)});
      EXPECT_TRUE(upload->writer->Append(0, AsBytes(bytes)).ok());
      EXPECT_TRUE(upload->writer->Finish().ok());
    }
    spec_.owner = "o";
    spec_.xml = BlobRefOf("xml");
    spec_.bin = BlobRefOf("bin");
    spec_.ignore_result_cache = true;
    EXPECT_TRUE(SetOptions({}, &spec_).ok());
  }
  ~ReplicasTest() override { fs::remove_all(folder_); }

  std::unique_ptr<Replica> Start(const std::string& name, int max_running,
                                 JobLimits limits = {}) {
    auto replica = std::make_unique<Replica>();
    replica->runner.hold = hold_from_start_;
    auto pool = PgPool::Create({.conninfo = conninfo_});
    EXPECT_TRUE(pool.ok()) << pool.status();
    replica->pool = *std::move(pool);
    replica->postgres = *OpenPostgresJobStore(replica->pool.get());
    replica->store = std::make_unique<CutStore>(replica->postgres.get());
    Manage(*replica, name, max_running, limits);
    return replica;
  }
  void Manage(Replica& replica, const std::string& name, int max_running,
              JobLimits limits = {}) {
    limits.max_running = max_running;
    limits.lease = lease_;
    limits.tick_interval = absl::Milliseconds(50);
    auto manager = JobManager::Create({.limits = limits,
                                       .jobs = replica.store.get(),
                                       .blobs = blobs_.get(),
                                       .runner = &replica.runner,
                                       .executor = executor_.get(),
                                       .clock = &clock_,
                                       .observer = &observer_,
                                       .server_id = name});
    EXPECT_TRUE(manager.ok()) << manager.status();
    replica.manager = *std::move(manager);
  }
  std::string Submit(Replica& replica) {
    const auto view = replica.manager->Submit(spec_);
    EXPECT_TRUE(view.ok()) << view.status();
    return view.ok() ? view->record.id : "";
  }
  static JobView Look(Replica& replica, const std::string& id) {
    const auto view = replica.manager->Get("o", id);
    EXPECT_TRUE(view.ok()) << view.status();
    return view.ok() ? *view : JobView{};
  }
  // Whether `condition` comes true within `limit`.
  static bool Until(const std::function<bool()>& condition,
                    absl::Duration limit = absl::Seconds(20)) {
    const absl::Time end = absl::Now() + limit;
    while (!condition()) {
      if (absl::Now() > end) return false;
      absl::SleepFor(absl::Milliseconds(5));
    }
    return true;
  }
  bool Runs(Replica& replica, const std::string& id) {
    return Until(
        [&] { return Look(replica, id).record.state == JobState::kRunning; });
  }

  const std::string conninfo_;
  absl::Duration lease_ = absl::Seconds(30);
  bool hold_from_start_ = false;
  SystemClock clock_;
  std::string folder_;
  CountingObserver observer_;
  JobSpec spec_;
  std::unique_ptr<BlobStore> blobs_;
  std::unique_ptr<FairExecutor> executor_;
};

TEST_F(ReplicasTest, AnyReplicaAnswersForAllJobs) {
  auto front = Start("front", 0);
  auto worker = Start("worker", 1);
  worker->runner.hold = true;
  const std::string first = Submit(*front);
  ASSERT_TRUE(Runs(*front, first));
  const std::string second = Submit(*front);
  // Progress of a job that runs elsewhere.
  ASSERT_TRUE(
      Until([&] { return Look(*front, first).progress.bytes_done == 30; }));
  const JobView view = Look(*front, first);
  EXPECT_EQ(view.progress.phase, "compressing");
  EXPECT_EQ(view.progress.weights_total, 10u);
  ASSERT_TRUE(view.eta.has_value());
  EXPECT_EQ(view.record.lease.server_id, "worker");
  EXPECT_EQ(Look(*front, second).queue_position, 1);
  EXPECT_EQ(front->manager->List("o", {}, 0, "")->jobs.size(), 2u);
  EXPECT_EQ(front->manager->Get("p", first).status().code(),
            absl::StatusCode::kNotFound);
  EXPECT_EQ(front->manager->Delete("o", first).code(),
            absl::StatusCode::kFailedPrecondition);
  // Watched from afar: the states, the progress and the end arrive.
  std::atomic<bool> seen_progress{false};
  std::atomic<bool> seen_end{false};
  const auto watch = front->manager->Subscribe(
      "o", first, [&](const absl::StatusOr<JobView>& told) {
        ASSERT_TRUE(told.ok()) << told.status();
        if (told->progress.bytes_done == 30) seen_progress = true;
        if (told->record.state == JobState::kSucceeded) seen_end = true;
      });
  ASSERT_TRUE(Until([&] { return seen_progress.load(); }));
  worker->runner.hold = false;
  EXPECT_TRUE(Until([&] { return seen_end.load(); }, absl::Seconds(5)));
  EXPECT_EQ(front->manager->Wait("o", second, absl::Seconds(20))->record.state,
            JobState::kSucceeded);
  // Cancelled from afar, running and queued.
  worker->runner.hold = true;
  const std::string third = Submit(*front);
  ASSERT_TRUE(Runs(*front, third));
  const std::string fourth = Submit(*worker);
  ASSERT_TRUE(front->manager->Cancel("o", fourth).ok());
  EXPECT_EQ(Look(*worker, fourth).record.state, JobState::kCancelled);
  ASSERT_TRUE(front->manager->Cancel("o", third).ok());
  EXPECT_TRUE(Until(
      [&] { return Look(*front, third).record.state == JobState::kCancelled; },
      absl::Seconds(3)));
  ASSERT_TRUE(front->manager->Delete("o", first).ok());
  EXPECT_EQ(worker->manager->Get("o", first).status().code(),
            absl::StatusCode::kNotFound);
}

TEST_F(ReplicasTest, AStartIsANotificationAwayNotATick) {
  auto front = Start("front", 0);
  auto worker = Start("worker", 1);
  std::vector<absl::Duration> waits;
  for (int i = 0; i < 11; ++i) {
    const std::string id = Submit(*front);
    const auto done = front->manager->Wait("o", id, absl::Seconds(20));
    ASSERT_EQ(done->record.state, JobState::kSucceeded);
    waits.push_back(done->record.started - done->record.created);
  }
  std::sort(waits.begin(), waits.end());
  // Without the notification it would be half a second on the average.
  EXPECT_LT(waits[waits.size() / 2], absl::Milliseconds(250));
}

TEST_F(ReplicasTest, AJobOfALostReplicaIsDoneByAnotherAndOnlyOnce) {
  lease_ = absl::Seconds(1);
  auto lost = Start("lost", 1);
  lost->runner.hold = true;
  lost->runner.deaf = true;
  const std::string id = Submit(*lost);
  ASSERT_TRUE(Runs(*lost, id));
  auto other = Start("other", 1);
  other->runner.hold = true;
  absl::SleepFor(lease_ * 2);
  // Renewed all the time: nobody takes it.
  EXPECT_EQ(other->runner.runs, 0);
  lost->store->cut = true;
  const absl::Time cut = absl::Now();
  ASSERT_TRUE(Until([&] { return other->runner.runs == 1; }));
  EXPECT_LT(absl::Now() - cut, lease_ + absl::Seconds(2));
  EXPECT_EQ(Look(*other, id).record.attempt, 2);
  // The first one comes back before the second one ends, and ends its work.
  lost->store->cut = false;
  lost->runner.hold = false;
  ASSERT_TRUE(Until([&] { return lost->manager->Stats().running == 0; }));
  EXPECT_EQ(Look(*other, id).record.state, JobState::kRunning);
  EXPECT_EQ(observer_.finished, 0);
  other->runner.hold = false;
  const auto done = other->manager->Wait("o", id, absl::Seconds(20));
  EXPECT_EQ(done->record.state, JobState::kSucceeded);
  EXPECT_EQ(done->record.result.xml,
            BlobRefOf(absl::StrCat("of ", spec_.xml.sha256)));
  EXPECT_EQ(observer_.finished, 1);
  EXPECT_EQ(other->runner.runs, 1);
}

TEST_F(ReplicasTest, AFrozenReplicaPublishesNothing) {
  lease_ = absl::Seconds(1);
  auto frozen = Start("frozen", 1);
  frozen->runner.hold = true;
  frozen->runner.deaf = true;
  const std::string id = Submit(*frozen);
  ASSERT_TRUE(Runs(*frozen, id));
  frozen->store->cut = true;
  auto other = Start("other", 1);
  const auto done = other->manager->Wait("o", id, absl::Seconds(20));
  ASSERT_EQ(done->record.state, JobState::kSucceeded);
  ASSERT_EQ(other->runner.runs, 1);
  // It wakes up with a finished result and the next thing it does is to
  // publish it.
  frozen->runner.hold = false;
  absl::SleepFor(absl::Milliseconds(300));
  frozen->store->cut = false;
  ASSERT_TRUE(Until([&] { return frozen->manager->Stats().running == 0; }));
  EXPECT_EQ(frozen->store->refused, 1);
  EXPECT_EQ(observer_.finished, 1);
  EXPECT_EQ(Look(*frozen, id).record.finished, done->record.finished);
}

TEST_F(ReplicasTest, ARestartedReplicaTakesBackItsOwnJobsOnly) {
  auto one = Start("one", 1);
  auto two = Start("two", 1);
  one->runner.hold = two->runner.hold = true;
  const std::string a = Submit(*one);
  const std::string b = Submit(*one);
  ASSERT_TRUE(Runs(*one, a) && Runs(*one, b));
  const bool a_is_mine = Look(*two, a).record.lease.server_id == "one";
  const std::string mine = a_is_mine ? a : b;
  const std::string others = a_is_mine ? b : a;
  // As after a crash: the jobs stay as they are.
  one->store->cut = true;
  one->manager.reset();
  one->store->cut = false;
  EXPECT_EQ(Look(*two, mine).record.state, JobState::kRunning);
  one->runner.hold = false;
  Manage(*one, "one", 1);
  // Long before the lease of half a minute ends.
  EXPECT_EQ(one->manager->Wait("o", mine, absl::Seconds(10))->record.state,
            JobState::kSucceeded);
  EXPECT_EQ(Look(*one, others).record.attempt, 1);
  EXPECT_EQ(Look(*one, others).record.state, JobState::kRunning);
  two->runner.hold = false;
  EXPECT_EQ(two->manager->Wait("o", others, absl::Seconds(10))->record.state,
            JobState::kSucceeded);
}

TEST_F(ReplicasTest, WhatADrainingReplicaHandsBackRunsElsewhereAtOnce) {
  auto leaving = Start("leaving", 1);
  leaving->runner.hold = true;
  const std::string id = Submit(*leaving);
  ASSERT_TRUE(Runs(*leaving, id));
  auto staying = Start("staying", 1);
  EXPECT_EQ(leaving->manager->Drain(absl::ZeroDuration()).requeued, 1);
  const auto done = staying->manager->Wait("o", id, absl::Seconds(10));
  EXPECT_EQ(done->record.state, JobState::kSucceeded);
  EXPECT_EQ(done->record.attempt, 1);
  EXPECT_EQ(leaving->manager->Submit(spec_).status().code(),
            absl::StatusCode::kUnavailable);
}

TEST_F(ReplicasTest, LimitsRequestIdsAndResultsAreShared) {
  JobLimits limits;
  limits.max_queued = 3;
  limits.max_queued_per_owner = 2;
  auto one = Start("one", 0, limits);
  auto two = Start("two", 0, limits);
  spec_.request_id = "r";
  const std::string id = Submit(*one);
  EXPECT_EQ(Submit(*two), id);
  spec_.priority = 1;
  EXPECT_EQ(two->manager->Submit(spec_).status().code(),
            absl::StatusCode::kAlreadyExists);
  spec_.priority = 0;
  spec_.request_id = "";
  Submit(*two);
  EXPECT_EQ(GetLimitDetails(one->manager->Submit(spec_).status())->limit,
            "max_queued_per_owner");
  spec_.request_id = "r";
  auto worker = Start("worker", 1);
  ASSERT_EQ(two->manager->Wait("o", id, absl::Seconds(20))->record.state,
            JobState::kSucceeded);
  ASSERT_TRUE(Until([&] { return worker->manager->Stats().queued == 0; }));
  spec_.request_id = "";
  spec_.ignore_result_cache = false;
  EXPECT_TRUE(two->manager->Submit(spec_)->record.result.cache_hit);
}

TEST_F(ReplicasTest, OwnersShareAllServersFairly) {
  auto one = Start("one", 0);
  std::vector<std::string> greedy;
  for (int i = 0; i < 8; ++i) greedy.push_back(Submit(*one));
  for (const char* bytes : {"xml", "bin"}) {
    auto upload =
        blobs_->OpenUpload("late", {.uuid = bytes, .ref = BlobRefOf(bytes)});
    ASSERT_TRUE(upload->writer->Append(0, AsBytes(bytes)).ok());
    ASSERT_TRUE(upload->writer->Finish().ok());
  }
  spec_.owner = "late";
  const auto late = one->manager->Submit(spec_);
  ASSERT_TRUE(late.ok()) << late.status();
  hold_from_start_ = true;
  auto two = Start("two", 1);
  auto three = Start("three", 1);
  // Nine wait and two run: one of the two is of the owner who came last, with
  // one job only.
  ASSERT_TRUE(
      Until([&] { return two->runner.runs + three->runner.runs == 2; }));
  EXPECT_EQ(one->manager->Get("late", late->record.id)->record.state,
            JobState::kRunning);
  two->runner.hold = three->runner.hold = false;
  for (const std::string& id : greedy) {
    EXPECT_EQ(one->manager->Wait("o", id, absl::Seconds(20))->record.state,
              JobState::kSucceeded);
  }
  EXPECT_EQ(two->runner.runs + three->runner.runs, 9);
}

TEST_F(ReplicasTest, JobsOutliveARestartOfTheDatabase) {
  lease_ = absl::Seconds(5);
  auto one = Start("one", 1);
  auto two = Start("two", 1);
  one->runner.hold = two->runner.hold = true;
  const std::string id = Submit(*one);
  ASSERT_TRUE(Runs(*two, id));
  std::atomic<bool> ended{false};
  const auto watch = two->manager->Subscribe(
      "o", id, [&](const absl::StatusOr<JobView>& told) {
        // Watchers wait for the database as well.
        EXPECT_TRUE(told.ok()) << told.status();
        ended = told.ok() && IsFinal(told->record.state);
      });
  for (const char* how : {"stop", "kill"}) {
    TempPostgres::Get().Do(how);
    absl::SleepFor(absl::Milliseconds(500));
    if (how == std::string("kill")) {
      one->runner.hold = two->runner.hold = false;  // ends while it is away
      absl::SleepFor(absl::Milliseconds(300));
    }
    TempPostgres::Get().Do("start");
    absl::SleepFor(absl::Milliseconds(500));
  }
  EXPECT_TRUE(Until([&] { return ended.load(); }));
  const JobView view = Look(*one, id);
  EXPECT_EQ(view.record.state, JobState::kSucceeded);
  EXPECT_EQ(view.record.attempt, 1);
  EXPECT_EQ(observer_.finished, 1);
}

TEST_F(ReplicasTest, EachExpiredJobIsSweptOnce) {
  JobLimits limits;
  limits.sweep_interval = absl::Milliseconds(50);
  auto one = Start("one", 2, limits);
  auto two = Start("two", 2, limits);
  spec_.ttl = absl::Milliseconds(50);
  for (int i = 0; i < 10; ++i) Submit(i % 2 ? *one : *two);
  EXPECT_TRUE(Until([&] { return observer_.expired >= 10; }));
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_EQ(observer_.expired, 10);
  EXPECT_EQ(observer_.finished, 10);
  EXPECT_TRUE(one->manager->List("o", {}, 0, "")->jobs.empty());
}

}  // namespace
}  // namespace ovpress
