// What every JobStore does, over SQLite and over PostgreSQL. Two handles stand
// for two servers.
#include <sqlite3.h>
#include <stdlib.h>

#include <algorithm>
#include <atomic>
#include <filesystem>
#include <random>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/cluster/postgres_job_store.h"
#include "server/jobs/errors.h"
#include "server/jobs/sqlite_job_store.h"
#include "tests/cluster/temp_postgres.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

namespace fs = std::filesystem;
using ::ovpress::testing::StatusIs;
using ::ovpress::testing::TempPostgres;
using ::testing::_;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::UnorderedElementsAre;

constexpr absl::Duration kLease = absl::Milliseconds(400);
constexpr absl::Duration kLong = absl::Minutes(5);

class JobStoreConformance : public ::testing::TestWithParam<const char*> {
 protected:
  JobStoreConformance() : postgres_(GetParam() == std::string("PostgreSQL")) {
    if (postgres_) {
      conninfo_ = TempPostgres::Get().NewSchema();
    } else {
      std::string pattern = fs::temp_directory_path() / "job_store_XXXXXX";
      folder_ = ::mkdtemp(pattern.data());
    }
    one_ = Open();
    two_ = Open();
  }
  ~JobStoreConformance() override {
    one_.reset();
    two_.reset();
    if (!folder_.empty()) fs::remove_all(folder_);
  }

  std::unique_ptr<JobStore> Open() {
    if (postgres_) {
      auto pool = PgPool::Create({.conninfo = conninfo_});
      EXPECT_TRUE(pool.ok()) << pool.status();
      pools_.push_back(*std::move(pool));
    }
    auto store = postgres_
                     ? OpenPostgresJobStore(pools_.back().get())
                     : OpenSqliteJobStore({.path = folder_ + "/jobs.sqlite",
                                           .clock = &clock_});
    EXPECT_TRUE(store.ok()) << store.status();
    return *std::move(store);
  }
  // The store's clock goes on.
  void Pass(absl::Duration time) {
    if (postgres_) {
      absl::SleepFor(time);
    } else {
      clock_.Advance(time);
    }
  }
  static JobRecord Job(const std::string& id, const std::string& owner = "o",
                       int priority = 0) {
    JobRecord job;
    job.id = id;
    job.spec.owner = owner;
    job.spec.priority = priority;
    job.spec.xml = BlobRefOf("xml");
    job.spec.bin = BlobRefOf("bin");
    job.spec.options_json = "{}";
    job.cache_key = "key";
    return job;
  }
  void Put(const JobRecord& job) {
    const auto inserted = one_->Insert(job, kLong);
    ASSERT_TRUE(inserted.ok()) << inserted.status();
    ASSERT_FALSE(inserted->existed);
    // Times of creation differ.
    Pass(absl::Milliseconds(1));
  }
  static std::optional<JobRecord> Take(JobStore& store,
                                       const std::vector<std::string>& ids,
                                       const std::string& server,
                                       absl::Duration lease = kLong,
                                       int owner_limit = 0) {
    JobStore::ClaimRequest request{.server_id = server, .lease = lease};
    for (const std::string& id : ids) {
      request.offers.push_back({id, owner_limit});
    }
    auto claimed = store.Claim(request);
    EXPECT_TRUE(claimed.ok()) << claimed.status();
    return claimed.ok() ? *std::move(claimed) : std::nullopt;
  }
  static JobOutcome Succeeded() {
    JobOutcome outcome{.state = JobState::kSucceeded, .ttl = kLong};
    outcome.result.xml = BlobRefOf("out xml");
    outcome.result.bin = BlobRefOf("out bin");
    outcome.result.report = BlobRefOf("report");
    outcome.result.bits_per_weight = 4.5;
    outcome.result.warnings = {"w"};
    return outcome;
  }
  static JobOutcome Failed() {
    return {.error = WithReason(absl::DataLossError("bad"), "WHY"),
            .ttl = kLong};
  }

  const bool postgres_;
  std::string conninfo_;
  std::string folder_;
  FakeClock clock_;
  std::vector<std::unique_ptr<PgPool>> pools_;
  std::unique_ptr<JobStore> one_;
  std::unique_ptr<JobStore> two_;
};

TEST_P(JobStoreConformance, EveryFieldComesBack) {
  JobRecord job = Job("a", "an owner's \"name\" \xc3\xa4");
  job.spec.request_id = "r-1.2_3";
  job.spec.options_json = R"({"mode":"int4_sym"})";
  job.spec.canonical_options = "canonical";
  job.spec.mode = "int4_sym";
  job.spec.memory_budget_bytes = 1ull << 40;
  job.spec.measure_error = true;
  job.spec.priority = -7;
  job.spec.labels = {{"team", "x"}, {"odd", std::string("a\0b\"{},\\", 8)}};
  job.spec.ttl = absl::Hours(3);
  job.spec.max_run_time = absl::Minutes(9);
  job.spec.ignore_result_cache = true;
  job.spec.output_xml_address = "s3://bucket/out.xml";
  job.spec.output_bin_address = "s3://bucket/out.bin";
  job.memory_bytes = 123;
  job.disk_bytes = 456;
  ASSERT_TRUE(one_->Insert(job, kLong).ok());
  auto read = two_->Get("a");
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->spec, job.spec);
  EXPECT_EQ(read->cache_key, "key");
  EXPECT_EQ(read->state, JobState::kQueued);
  EXPECT_EQ(read->memory_bytes, 123u);
  EXPECT_EQ(read->disk_bytes, 456u);
  EXPECT_GT(read->created, absl::UnixEpoch());
  EXPECT_EQ(read->started, absl::InfinitePast());
  EXPECT_EQ(read->finished, absl::InfinitePast());
  EXPECT_EQ(read->expires, absl::InfiniteFuture());
  EXPECT_EQ(read->lease, Lease{});
  Pass(absl::Milliseconds(5));
  const auto claimed = Take(*two_, {"a"}, "s");
  ASSERT_TRUE(claimed.has_value());
  EXPECT_EQ(claimed->spec, job.spec);
  EXPECT_EQ(claimed->attempt, 1);
  EXPECT_GT(claimed->started, read->created);
  EXPECT_EQ(claimed->lease.server_id, "s");
  EXPECT_EQ(claimed->lease.expires, claimed->started + kLong);
  Pass(absl::Milliseconds(5));
  ASSERT_TRUE(
      two_->Finish("a", claimed->lease.fencing_token, Succeeded()).ok());
  read = one_->Get("a");
  EXPECT_EQ(read->state, JobState::kSucceeded);
  EXPECT_EQ(read->result, Succeeded().result);
  EXPECT_GT(read->finished, claimed->started);
  EXPECT_EQ(read->expires, read->finished + kLong);
  EXPECT_EQ(read->lease.server_id, "");
  // From the result cache: final at once.
  job = Job("b");
  job.state = JobState::kSucceeded;
  job.result = Succeeded().result;
  const auto hit = one_->Insert(job, kLong);
  EXPECT_EQ(hit->job.started, hit->job.created);
  EXPECT_EQ(hit->job.finished, hit->job.created);
  EXPECT_EQ(hit->job.expires, hit->job.created + kLong);
  EXPECT_EQ(two_->Get("b")->result, job.result);
  EXPECT_THAT(two_->Get("c"), StatusIs(absl::StatusCode::kNotFound, _));
  EXPECT_EQ(two_->GetAll({"b", "x", "a"})->size(), 2u);
  EXPECT_TRUE(two_->GetAll({})->empty());
  // Errors keep their details.
  Put(Job("f"));
  const auto failing = Take(*one_, {"f"}, "s");
  ASSERT_TRUE(one_->Finish("f", failing->lease.fencing_token, Failed()).ok());
  EXPECT_EQ(two_->Get("f")->error, Failed().error);
}

TEST_P(JobStoreConformance, ARequestIdIsOneJobWhoeverAsks) {
  std::atomic<int> fresh{0};
  std::vector<std::string> answers(8);
  std::vector<std::thread> threads;
  for (int i = 0; i < 8; ++i) {
    threads.emplace_back([&, i] {
      JobRecord job = Job(absl::StrCat("id", i));
      job.spec.request_id = "r";
      const auto inserted = (i % 2 ? one_ : two_)->Insert(job, kLong);
      ASSERT_TRUE(inserted.ok()) << inserted.status();
      fresh += inserted->existed ? 0 : 1;
      answers[static_cast<size_t>(i)] = inserted->job.id;
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(fresh, 1);
  for (const std::string& id : answers) EXPECT_EQ(id, answers[0]);
  EXPECT_EQ((*two_->FindByRequestId("o", "r"))->id, answers[0]);
  // Of another owner it is another job, and "" is none.
  JobRecord job = Job("other", "p");
  job.spec.request_id = "r";
  EXPECT_FALSE(one_->Insert(job, kLong)->existed);
  EXPECT_FALSE(one_->Insert(Job("e1"), kLong)->existed);
  EXPECT_FALSE(two_->Insert(Job("e2"), kLong)->existed);
  EXPECT_FALSE(two_->FindByRequestId("o", "")->has_value() && postgres_);
  EXPECT_FALSE(two_->FindByRequestId("o", "other")->has_value());
}

TEST_P(JobStoreConformance, NoMoreJobsWaitThanMayHoweverManyAreInserted) {
  constexpr int kThreads = 8;
  constexpr int kEach = 60;
  for (const JobStore::QueueLimits limits :
       {JobStore::QueueLimits{.all = 25, .owner = 10},
        JobStore::QueueLimits{.all = 340, .owner = 320}}) {
    const int before = one_->Count(std::nullopt)->queued;
    std::atomic<int> inserted{0}, refused{0};
    std::vector<std::thread> threads;
    for (int i = 0; i < kThreads; ++i) {
      threads.emplace_back([&, i] {
        for (int j = 0; j < kEach; ++j) {
          // Most are of one owner, who alone would fill the line.
          const std::string owner = j % 4 ? "greedy" : absl::StrCat("o", i);
          const auto answer =
              (i % 2 ? one_ : two_)
                  ->Insert(Job(absl::StrCat(limits.all, "-", i, "-", j), owner),
                           kLong, limits);
          ASSERT_TRUE(answer.ok()) << answer.status();
          ASSERT_FALSE(answer->existed);
          if (answer->full == JobStore::Full::kOwner) {
            EXPECT_EQ(owner, "greedy");
          }
          ++(answer->full == JobStore::Full::kNo ? inserted : refused);
        }
      });
    }
    for (std::thread& thread : threads) thread.join();
    EXPECT_EQ(before + inserted, limits.all);
    EXPECT_EQ(inserted + refused, kThreads * kEach);
    EXPECT_EQ(one_->Count(std::nullopt)->queued, limits.all);
    EXPECT_LE(two_->Count("greedy")->queued, limits.owner);
  }
}

TEST_P(JobStoreConformance, AFullLineTakesWhatNeedsNoPlace) {
  const JobStore::QueueLimits limits{.all = 2, .owner = 1};
  JobRecord first = Job("a");
  first.spec.request_id = "r";
  ASSERT_EQ(one_->Insert(first, kLong, limits)->full, JobStore::Full::kNo);
  EXPECT_EQ(two_->Insert(Job("b"), kLong, limits)->full,
            JobStore::Full::kOwner);
  EXPECT_EQ(two_->Insert(Job("b", "p"), kLong, limits)->full,
            JobStore::Full::kNo);
  EXPECT_EQ(one_->Insert(Job("c", "q"), kLong, limits)->full,
            JobStore::Full::kAll);
  EXPECT_EQ(one_->Get("c").status().code(), absl::StatusCode::kNotFound);
  // The same request again is the job that it made.
  first.id = "again";
  const auto again = two_->Insert(first, kLong, limits);
  ASSERT_TRUE(again.ok()) << again.status();
  EXPECT_TRUE(again->existed);
  EXPECT_EQ(again->job.id, "a");
  EXPECT_EQ(again->full, JobStore::Full::kNo);
  // What is done already does not wait.
  JobRecord done = Job("done");
  done.state = JobState::kSucceeded;
  EXPECT_EQ(one_->Insert(done, kLong, limits)->full, JobStore::Full::kNo);
  // A place is free once a job runs.
  EXPECT_EQ(*two_->FindPlace("q", limits), JobStore::Full::kAll);
  const auto taken = Take(*one_, {"a"}, "s");
  ASSERT_TRUE(taken.has_value());
  EXPECT_EQ(*two_->FindPlace("o", limits), JobStore::Full::kNo);
  EXPECT_EQ(two_->Insert(Job("d"), kLong, limits)->full, JobStore::Full::kNo);
  EXPECT_EQ(*two_->FindPlace("o", {.all = 9, .owner = 1}),
            JobStore::Full::kOwner);
  // Jobs that are handed back wait, too.
  const JobStore::QueueLimits wider{.all = 4, .owner = 4};
  ASSERT_EQ(one_->Insert(Job("f", "q"), kLong, wider)->full,
            JobStore::Full::kNo);
  ASSERT_TRUE(one_->Requeue("a", taken->lease.fencing_token).ok());
  EXPECT_EQ(*two_->FindPlace("q", wider), JobStore::Full::kAll);
  EXPECT_EQ(one_->Insert(Job("g", "q"), kLong, wider)->full,
            JobStore::Full::kAll);
  // So do those of a server that starts again.
  ASSERT_TRUE(Take(*one_, {"a"}, "s").has_value());
  ASSERT_TRUE(Take(*one_, {"b"}, "s").has_value());
  ASSERT_EQ(one_->Insert(Job("h", "q"), kLong, wider)->full,
            JobStore::Full::kNo);
  ASSERT_EQ(one_->RequeueOf("s")->size(), 2);
  EXPECT_EQ(two_->Insert(Job("i", "q"), kLong, wider)->full,
            JobStore::Full::kAll);
  // Sweeping forgets no place that is taken.
  ASSERT_TRUE(one_->DeleteExpired(10).ok());
  EXPECT_EQ(two_->Insert(Job("i", "q"), kLong, {.all = 9, .owner = 2})->full,
            JobStore::Full::kOwner);
  EXPECT_EQ(one_->Insert(Job("e", "q"), kLong, limits)->full,
            JobStore::Full::kAll);
}

TEST_P(JobStoreConformance, TheTokenDecidesWhoEndsAJob) {
  Put(Job("a"));
  Put(Job("b"));
  const auto first = Take(*one_, {"x", "a", "b"}, "s1", kLease);
  ASSERT_EQ(first->id, "a");
  // Taken is taken.
  EXPECT_EQ(Take(*two_, {"a"}, "s2"), std::nullopt);
  EXPECT_EQ(Take(*two_, {"a", "b"}, "s2")->id, "b");
  EXPECT_EQ(Take(*two_, {}, "s2"), std::nullopt);
  // Renewed, the lease goes on.
  const JobStore::Held held{.id = "a",
                            .fencing_token = first->lease.fencing_token};
  Pass(kLease * 0.75);
  auto renewed = one_->Renew({held, {.id = "x", .fencing_token = 1}}, kLease);
  ASSERT_TRUE(renewed.ok()) << renewed.status();
  EXPECT_FALSE((*renewed)[0].lost);
  EXPECT_TRUE((*renewed)[1].lost);
  Pass(kLease * 0.75);
  EXPECT_EQ(Take(*two_, {"a"}, "s2"), std::nullopt);
  Pass(kLease * 0.5);
  // The lease is over: another one takes it, the first has lost it for good.
  const auto second = Take(*two_, {"a"}, "s2");
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->attempt, 2);
  EXPECT_GT(second->lease.fencing_token, first->lease.fencing_token);
  EXPECT_TRUE((*one_->Renew({held}, kLease))[0].lost);
  EXPECT_THAT(one_->Finish("a", first->lease.fencing_token, Succeeded()),
              StatusIs(absl::StatusCode::kAborted, HasSubstr("no longer")));
  EXPECT_THAT(one_->Requeue("a", first->lease.fencing_token),
              StatusIs(absl::StatusCode::kAborted, _));
  EXPECT_EQ(two_->Get("a")->state, JobState::kRunning);
  ASSERT_TRUE(two_->Finish("a", second->lease.fencing_token, Failed()).ok());
  // The same answer again is fine (the first one may have been lost), another
  // one, or of another token, is not.
  EXPECT_TRUE(two_->Finish("a", second->lease.fencing_token, Failed()).ok());
  EXPECT_EQ(two_->Finish("a", second->lease.fencing_token, Succeeded()).code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(one_->Finish("a", first->lease.fencing_token, Failed()).code(),
            absl::StatusCode::kAborted);
  EXPECT_EQ(one_->Finish("x", 1, Failed()).code(), absl::StatusCode::kNotFound);
  // A lease that is over but that nobody else took is still good.
  Put(Job("c"));
  const auto late = Take(*one_, {"c"}, "s1", kLease);
  Pass(kLease * 2);
  EXPECT_TRUE(one_->Finish("c", late->lease.fencing_token, Succeeded()).ok());
}

TEST_P(JobStoreConformance, WhatIsHandedBackDoesNotCountAndEndsTheToken) {
  Put(Job("a"));
  const auto first = Take(*one_, {"a"}, "s1");
  ASSERT_TRUE(one_->Requeue("a", first->lease.fencing_token).ok());
  EXPECT_EQ(two_->Get("a")->state, JobState::kQueued);
  EXPECT_EQ(two_->Get("a")->attempt, 0);
  EXPECT_EQ(one_->Requeue("a", first->lease.fencing_token).code(),
            absl::StatusCode::kAborted);
  // Cancelled meanwhile: the old token must not find "its" end.
  ASSERT_TRUE(two_->RequestCancel("a", kLong).ok());
  EXPECT_EQ(one_->Finish("a", first->lease.fencing_token,
                         {.state = JobState::kCancelled, .ttl = kLong})
                .code(),
            absl::StatusCode::kAborted);
  // After a crash a server takes back its own jobs only; these count.
  Put(Job("b"));
  Put(Job("c"));
  const auto mine = Take(*one_, {"b"}, "s1");
  Take(*two_, {"c"}, "s2");
  const auto back = one_->RequeueOf("s1");
  ASSERT_EQ(back->size(), 1u);
  EXPECT_EQ((*back)[0].id, "b");
  EXPECT_EQ((*back)[0].attempt, 1);
  EXPECT_EQ(one_->Get("c")->state, JobState::kRunning);
  EXPECT_EQ(one_->Finish("b", mine->lease.fencing_token, Succeeded()).code(),
            absl::StatusCode::kAborted);
  EXPECT_TRUE(one_->RequeueOf("s1")->empty());
}

TEST_P(JobStoreConformance, EveryJobIsTakenOnce) {
  constexpr int kJobs = 60;
  std::vector<std::string> ids;
  for (int i = 0; i < kJobs; ++i) {
    ids.push_back(absl::StrCat("job", i));
    ASSERT_TRUE(one_->Insert(Job(ids.back()), kLong).ok());
  }
  std::vector<std::vector<std::string>> taken(6);
  std::vector<std::thread> threads;
  for (size_t i = 0; i < taken.size(); ++i) {
    threads.emplace_back([&, i] {
      while (true) {
        const auto job = Take(i % 2 ? *one_ : *two_, ids, absl::StrCat("s", i));
        if (!job.has_value()) {
          // Passed over while another one was taking it, or all gone.
          const auto line = one_->GetLine(1);
          ASSERT_TRUE(line.ok()) << line.status();
          if (line->waiting.empty()) return;
          continue;
        }
        taken[i].push_back(job->id);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::multiset<std::string> all;
  for (const auto& some : taken) all.insert(some.begin(), some.end());
  EXPECT_EQ(all.size(), ids.size());
  EXPECT_EQ(std::set<std::string>(all.begin(), all.end()).size(), ids.size());
}

TEST_P(JobStoreConformance, AnOwnersLimitHoldsOverAllServers) {
  std::vector<std::string> ids;
  for (int i = 0; i < 12; ++i) {
    ids.push_back(absl::StrCat("job", i));
    Put(Job(ids.back(), i < 10 ? "greedy" : "other"));
  }
  std::atomic<int> greedy{0};
  std::atomic<int> other{0};
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 4; ++k) {
        const auto job =
            Take(i % 2 ? *one_ : *two_, ids, absl::StrCat("s", i), kLong, 3);
        if (job.has_value()) {
          ++(job->spec.owner == "greedy" ? greedy : other);
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(greedy, 3);
  EXPECT_EQ(other, 2);
}

TEST_P(JobStoreConformance, CancelsReachWhoeverHasTheJob) {
  Put(Job("queued"));
  Put(Job("running"));
  Put(Job("orphan"));
  Put(Job("done"));
  const auto running = Take(*one_, {"running"}, "s1");
  Take(*one_, {"orphan"}, "s1", absl::Milliseconds(1));
  const auto done = Take(*one_, {"done"}, "s1");
  ASSERT_TRUE(
      one_->Finish("done", done->lease.fencing_token, Succeeded()).ok());
  Pass(absl::Milliseconds(20));
  for (const char* id : {"queued", "orphan"}) {
    const auto job = two_->RequestCancel(id, kLong);
    ASSERT_TRUE(job.ok()) << job.status();
    EXPECT_EQ(job->state, JobState::kCancelled);
    EXPECT_EQ(job->error.code(), absl::StatusCode::kCancelled);
    EXPECT_EQ(job->expires, job->finished + kLong);
    EXPECT_EQ(one_->Get(id)->state, JobState::kCancelled);
  }
  EXPECT_EQ(two_->RequestCancel("running", kLong)->state, JobState::kRunning);
  EXPECT_TRUE((*one_->Renew(
      {{.id = "running", .fencing_token = running->lease.fencing_token}},
      kLong))[0]
                  .cancel_requested);
  EXPECT_EQ(two_->RequestCancel("done", kLong)->state, JobState::kSucceeded);
  EXPECT_FALSE(two_->Get("done")->cancel_requested);
  EXPECT_EQ(two_->RequestCancel("x", kLong).status().code(),
            absl::StatusCode::kNotFound);
  // Without a run: what waits, and only that.
  Put(Job("hopeless"));
  EXPECT_TRUE(two_->FailWaiting("hopeless", Failed()).ok());
  EXPECT_EQ(one_->Get("hopeless")->error, Failed().error);
  for (const char* id : {"hopeless", "running", "done"}) {
    EXPECT_EQ(two_->FailWaiting(id, Failed()).code(),
              absl::StatusCode::kAborted)
        << id;
  }
}

TEST_P(JobStoreConformance, TheLineTellsOfAllServers) {
  EXPECT_TRUE(one_->GetLine(0)->waiting.empty());
  for (int i = 0; i < 5; ++i) Put(Job(absl::StrCat("a", i), "a", i % 2));
  Put(Job("b0", "b"));
  Put(Job("c0", "c"));
  Take(*one_, {"a0"}, "s1");
  Pass(absl::Milliseconds(5));
  Take(*two_, {"c0"}, "s2", absl::Milliseconds(1));
  Pass(absl::Milliseconds(20));
  auto line = two_->GetLine(0);
  ASSERT_TRUE(line.ok()) << line.status();
  std::vector<std::string> ids;
  for (const WaitingJob& job : line->waiting) ids.push_back(job.id);
  EXPECT_THAT(ids, UnorderedElementsAre("a1", "a2", "a3", "a4", "b0", "c0"));
  EXPECT_EQ(line->owners["a"].running, 1);
  EXPECT_EQ(line->owners["b"].running, 0);
  EXPECT_LE(line->owners["b"].last_start, 0);
  EXPECT_EQ(line->owners["c"].running, 0);  // its lease is over
  EXPECT_GT(line->owners["c"].last_start, line->owners["a"].last_start);
  for (const WaitingJob& job : line->waiting) {
    EXPECT_LT(job.created, line->now);
    EXPECT_EQ(job.attempt, job.id == "c0" ? 1 : 0);
  }
  line = two_->GetLine(1);
  ids.clear();
  for (const WaitingJob& job : line->waiting) ids.push_back(job.id);
  EXPECT_THAT(ids, UnorderedElementsAre("a1", "a2", "b0", "c0"));
}

TEST_P(JobStoreConformance, ThePartOfTheLineIsEnoughToChoose) {
  std::mt19937 random(7);
  JobLimits limits;
  limits.aging_step = absl::Milliseconds(20);  // priorities mix
  for (int i = 0; i < 60; ++i) {
    Put(Job(absl::StrCat("job", i), std::string(1, "abc"[random() % 3]),
            static_cast<int>(random() % 3)));
  }
  for (int i = 0; i < 40; ++i) {
    const auto whole = one_->GetLine(0);
    const auto part = two_->GetLine(4);
    ASSERT_LE(part->waiting.size(), 36u);
    const auto best = [&](const JobStore::Line& line) -> std::string {
      const SchedulerState state{.free_memory_bytes = 1, .owners = line.owners};
      // At one moment: the two looks are not.
      const auto picked = PickNext(line.waiting, state, whole->now, limits, 1);
      return picked.empty() ? "" : line.waiting[picked[0]].id;
    };
    ASSERT_EQ(best(*whole), best(*part));
    ASSERT_TRUE(Take(*one_, {best(*whole)}, "s").has_value());
  }
}

TEST_P(JobStoreConformance, ListsGoByPagesAndFilters) {
  for (int i = 0; i < 7; ++i) {
    JobRecord job = Job(absl::StrCat("j", i), i % 2 ? "odd" : "even");
    job.spec.labels = {{"n", absl::StrCat(i % 3)}, {"x", "y"}};
    Put(job);
  }
  Take(*one_, {"j3"}, "s");
  const auto ids = [](const JobPage& page) {
    std::vector<std::string> some;
    for (const JobRecord& job : page.jobs) some.push_back(job.id);
    return some;
  };
  auto page = two_->List({}, 3, "");
  EXPECT_THAT(ids(*page), ElementsAre("j6", "j5", "j4"));
  Put(Job("new"));
  page = one_->List({}, 3, page->next_page_token);  // on another server
  EXPECT_THAT(ids(*page), ElementsAre("j3", "j2", "j1"));
  const std::string token = page->next_page_token;
  page = two_->List({}, 3, token);
  EXPECT_THAT(ids(*page), ElementsAre("j0"));
  EXPECT_EQ(page->next_page_token, "");
  EXPECT_THAT(ids(*two_->List({.owner = "odd"}, 9, "")),
              ElementsAre("j5", "j3", "j1"));
  EXPECT_THAT(ids(*two_->List({.states = {JobState::kRunning}}, 9, "")),
              ElementsAre("j3"));
  EXPECT_THAT(
      ids(*two_->List({.owner = "even", .labels = {{"n", "0"}, {"x", "y"}}}, 9,
                      "")),
      ElementsAre("j6", "j0"));
  EXPECT_TRUE(ids(*two_->List({.labels = {{"n", "9"}}}, 9, "")).empty());
  for (const std::string& bad :
       {std::string("nonsense"), "1-" + token.substr(2), token + "x"}) {
    EXPECT_EQ(two_->List({.owner = "odd"}, 3, bad).status().code(),
              absl::StatusCode::kInvalidArgument);
  }
  EXPECT_EQ(two_->List({.owner = "odd"}, 3, token).status().code(),
            absl::StatusCode::kInvalidArgument);
}

TEST_P(JobStoreConformance, ResultsAreFoundUntilTheyExpire) {
  for (const char* id : {"a", "b", "c"}) Put(Job(id));
  for (const char* id : {"a", "b"}) {
    const auto job = Take(*one_, {id}, "s");
    JobOutcome outcome = Succeeded();
    outcome.ttl = id[0] == 'a' ? kLong : kLease;
    ASSERT_TRUE(one_->Finish(id, job->lease.fencing_token, outcome).ok());
  }
  EXPECT_EQ((*two_->FindResult("o", "key"))->id, "b");
  EXPECT_FALSE(two_->FindResult("p", "key")->has_value());
  EXPECT_FALSE(two_->FindResult("o", "other")->has_value());
  Pass(kLease * 1.5);
  EXPECT_EQ((*two_->FindResult("o", "key"))->id, "a");
  EXPECT_EQ(two_->Delete("c").code(), absl::StatusCode::kFailedPrecondition);
  EXPECT_TRUE(two_->Delete("a").ok());
  EXPECT_EQ(one_->Delete("a").code(), absl::StatusCode::kNotFound);
  const auto expired = two_->DeleteExpired(10);
  ASSERT_EQ(expired->size(), 1u);
  EXPECT_EQ((*expired)[0].id, "b");
  EXPECT_EQ((*expired)[0].result, Succeeded().result);
  EXPECT_EQ(one_->Get("b").status().code(), absl::StatusCode::kNotFound);
}

TEST_P(JobStoreConformance, ExpiredJobsGoToOneOfTheSweepers) {
  for (int i = 0; i < 40; ++i) {
    JobRecord job = Job(absl::StrCat("j", i));
    job.state = JobState::kSucceeded;
    ASSERT_TRUE(one_->Insert(job, absl::Milliseconds(1)).ok());
  }
  Pass(absl::Milliseconds(20));
  EXPECT_EQ(one_->DeleteExpired(7)->size(), 7u);
  std::atomic<size_t> swept{7};
  std::vector<std::thread> threads;
  for (int i = 0; i < 4; ++i) {
    threads.emplace_back([&, i] {
      for (int k = 0; k < 8; ++k) {
        const auto some = (i % 2 ? one_ : two_)->DeleteExpired(3);
        ASSERT_TRUE(some.ok()) << some.status();
        swept += some->size();
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  swept += one_->DeleteExpired(100)->size();
  EXPECT_EQ(swept, 40u);
}

TEST_P(JobStoreConformance, ProgressIsSeenElsewhere) {
  Put(Job("a"));
  const auto job = Take(*one_, {"a"}, "s1");
  EXPECT_EQ(two_->Get("a")->progress, JobProgress{});
  JobProgress progress{.phase = "compressing",
                       .phase_elapsed = absl::Milliseconds(1500),
                       .bytes_done = 7,
                       .bytes_total = 1ull << 40,
                       .weights_done = 2,
                       .weights_total = 3,
                       .warnings = {"odd \"one\"", "\xc3\xa4"}};
  const int64_t token = job->lease.fencing_token;
  ASSERT_TRUE(one_->Renew({{"a", token, progress}}, kLong).ok());
  EXPECT_EQ(two_->Get("a")->progress, progress);
  ASSERT_TRUE(one_->Renew({{"a", token, std::nullopt}}, kLong).ok());
  EXPECT_EQ(two_->Get("a")->progress, progress);
  ASSERT_TRUE(one_->Requeue("a", token).ok());
  EXPECT_EQ(two_->Get("a")->progress, JobProgress{});
}

TEST_P(JobStoreConformance, CountsAndHolders) {
  for (const char* id : {"a", "b", "c", "d", "e"}) {
    Put(Job(id, id[0] < 'c' ? "p" : "q"));
  }
  Take(*one_, {"a"}, "s");
  const auto done = Take(*one_, {"c"}, "s");
  ASSERT_TRUE(one_->Finish("c", done->lease.fencing_token, Succeeded()).ok());
  ASSERT_TRUE(one_->RequestCancel("d", kLong).ok());
  EXPECT_EQ(two_->Count(std::nullopt)->queued, 2);
  EXPECT_EQ(two_->Count(std::nullopt)->running, 1);
  EXPECT_EQ(two_->Count("p")->queued, 1);
  EXPECT_EQ(two_->Count("p")->running, 1);
  EXPECT_EQ(two_->Count("nobody")->queued, 0);
  std::vector<std::string> holders;
  const auto held = two_->ListHolders();
  ASSERT_TRUE(held.ok()) << held.status();
  for (const JobRecord& job : *held) holders.push_back(job.id);
  EXPECT_THAT(holders, ElementsAre("a", "b", "c", "e"));
}

INSTANTIATE_TEST_SUITE_P(Stores, JobStoreConformance,
                         ::testing::Values("SQLite", "PostgreSQL"),
                         [](const auto& backend) { return backend.param; });

// --- what PostgreSQL has beyond that ---

class PostgresJobStoreTest : public ::testing::Test {
 protected:
  PostgresJobStoreTest() : conninfo_(TempPostgres::Get().NewSchema()) {}
  struct Opened {
    std::unique_ptr<PgPool> pool;
    std::unique_ptr<JobStore> store;
    JobStore* operator->() { return store.get(); }
  };
  Opened Open() {
    auto pool = PgPool::Create({.conninfo = conninfo_});
    EXPECT_TRUE(pool.ok()) << pool.status();
    auto store = OpenPostgresJobStore(pool->get());
    EXPECT_TRUE(store.ok()) << store.status();
    return {*std::move(pool), *std::move(store)};
  }
  static JobRecord Job(const std::string& id) {
    JobRecord job;
    job.id = id;
    job.spec.owner = "o";
    job.spec.xml = BlobRefOf("xml");
    job.spec.bin = BlobRefOf("bin");
    return job;
  }
  const std::string conninfo_;
};

TEST_F(PostgresJobStoreTest, ServersMayStartOnAnEmptyDatabaseTogether) {
  std::vector<std::thread> threads;
  for (int i = 0; i < 5; ++i) {
    threads.emplace_back([&, i] {
      EXPECT_TRUE(
          Open()->Insert(Job(absl::StrCat("j", i)), absl::Hours(1)).ok());
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(Open()->Count(std::nullopt)->queued, 5);
}

TEST_F(PostgresJobStoreTest, TheDatabaseKnowsWhichBlobsAreHeld) {
  auto store = Open();
  auto pool = *PgPool::Create({.conninfo = conninfo_});
  const auto held = [&] {
    const auto rows = pool->Read(
        "SELECT b.sha256 FROM job_blobs b JOIN jobs USING (seq) WHERE"
        " b.owner = 'o' AND b.size_bytes > 0 ORDER BY 1");
    EXPECT_TRUE(rows.ok()) << rows.status();
    std::vector<std::string> blobs;
    for (int i = 0; i < rows->size(); ++i) {
      blobs.emplace_back(rows->Text(i, 0));
    }
    return blobs;
  };
  const std::vector<std::string> inputs = {BlobRefOf("bin").sha256,
                                           BlobRefOf("xml").sha256};
  ASSERT_TRUE(store->Insert(Job("a"), absl::Hours(1)).ok());
  EXPECT_THAT(held(), ::testing::UnorderedElementsAreArray(inputs));
  const auto claimed = *store->Claim(
      {.offers = {{"a"}}, .server_id = "s", .lease = absl::Minutes(1)});
  EXPECT_THAT(held(), ::testing::UnorderedElementsAreArray(inputs));
  JobOutcome outcome{.state = JobState::kSucceeded, .ttl = absl::Hours(1)};
  // One of the outputs is an input: it must not get lost in the exchange.
  outcome.result = {.xml = BlobRefOf("xml"),
                    .bin = BlobRefOf("out"),
                    .report = BlobRefOf("report")};
  EXPECT_EQ(
      store->Finish("a", claimed->lease.fencing_token + 1, outcome).code(),
      absl::StatusCode::kAborted);
  EXPECT_THAT(held(), ::testing::UnorderedElementsAreArray(inputs));
  ASSERT_TRUE(store->Finish("a", claimed->lease.fencing_token, outcome).ok());
  EXPECT_THAT(held(), UnorderedElementsAre(BlobRefOf("xml").sha256,
                                           BlobRefOf("out").sha256,
                                           BlobRefOf("report").sha256));
  ASSERT_TRUE(store->Delete("a").ok());
  EXPECT_THAT(held(), ElementsAre());
  for (const char* id : {"b", "c"}) {
    ASSERT_TRUE(store->Insert(Job(id), absl::Hours(1)).ok());
  }
  ASSERT_TRUE(store->RequestCancel("b", absl::Hours(1)).ok());
  EXPECT_EQ(held().size(), 2u);
  ASSERT_TRUE(store
                  ->FailWaiting("c", {.error = absl::InternalError("x"),
                                      .ttl = absl::Hours(1)})
                  .ok());
  EXPECT_THAT(held(), ElementsAre());
}

TEST_F(PostgresJobStoreTest, OthersHearOfChangesSoon) {
  auto one = Open();
  auto two = Open();
  std::atomic<int> heard{0};
  std::atomic<int> own{0};
  two->OnChange([&] { ++heard; });
  one->OnChange([&] { ++own; });
  const auto waits_for = [&](int least) {
    for (int i = 0; i < 2000 && heard < least; ++i) {
      absl::SleepFor(absl::Milliseconds(5));
    }
    return heard >= least;
  };
  // The first call comes from the connection itself.
  ASSERT_TRUE(waits_for(1));
  absl::SleepFor(absl::Milliseconds(200));
  const int before = heard;
  const int own_before = own;
  ASSERT_TRUE(one->Insert(Job("a"), absl::Hours(1)).ok());
  EXPECT_TRUE(waits_for(before + 1));
  EXPECT_EQ(own, own_before);
  two->OnChange(nullptr);
}

TEST_F(PostgresJobStoreTest, ARestartOfTheDatabaseLosesNothing) {
  auto store = Open();
  ASSERT_TRUE(store->Insert(Job("a"), absl::Hours(1)).ok());
  const auto claimed = *store->Claim(
      {.offers = {{"a"}}, .server_id = "s", .lease = absl::Minutes(1)});
  for (const char* how : {"stop", "kill"}) {
    TempPostgres::Get().Do(how);
    std::thread later([] {
      absl::SleepFor(absl::Milliseconds(500));
      TempPostgres::Get().Do("start");
    });
    const auto renewed = store->Renew(
        {{.id = "a", .fencing_token = claimed->lease.fencing_token}},
        absl::Minutes(1));
    later.join();
    ASSERT_TRUE(renewed.ok()) << renewed.status();
    EXPECT_FALSE((*renewed)[0].lost);
  }
  EXPECT_TRUE(store
                  ->Finish("a", claimed->lease.fencing_token,
                           {.state = JobState::kFailed,
                            .error = absl::InternalError("x"),
                            .ttl = absl::Hours(1)})
                  .ok());
  EXPECT_EQ(store->Get("a")->state, JobState::kFailed);
}

TEST(PostgresJobStoreStartTest, AnAbsentDatabaseIsOneClearError) {
  const auto pool = PgPool::Create({.conninfo = "host=127.0.0.1 port=1 user=x",
                                    .wait_limit = absl::Milliseconds(200)});
  EXPECT_THAT(pool.status(),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("127.0.0.1")));
}

}  // namespace
}  // namespace ovpress
