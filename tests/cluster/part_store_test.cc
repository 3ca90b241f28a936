// Parts of jobs in PostgreSQL: who gets which, and who comes too late.
#include <algorithm>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/cluster/postgres_job_store.h"
#include "tests/cluster/temp_postgres.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using absl::StatusCode;
using ::ovpress::testing::StatusIs;
using ::ovpress::testing::TempPostgres;
using ::testing::_;
using ::testing::ElementsAre;
using ::testing::HasSubstr;

constexpr absl::Duration kLong = absl::Minutes(5);
constexpr absl::Duration kShort = absl::Milliseconds(200);

class PartStoreTest : public ::testing::Test {
 protected:
  PartStoreTest() : pool_(*PgPool::Create({.conninfo = schema_})) {
    jobs_ = *OpenPostgresJobStore(pool_.get());
    parts_ = jobs_->parts();
  }

  // A running job of server "holder".
  JobHold Run(const std::string& id, int priority = 0, uint64_t memory = 100) {
    JobRecord job;
    job.id = id;
    job.spec.owner = "o";
    job.spec.request_id = id;
    job.spec.priority = priority;
    job.spec.xml = BlobRefOf("xml");
    job.spec.bin = BlobRefOf("bin");
    job.spec.options_json = "{\"mode\":\"nf4\"}";
    job.spec.measure_error = true;
    job.memory_bytes = memory;
    EXPECT_TRUE(jobs_->Insert(job, kLong).ok());
    return Claim(id, "holder");
  }
  JobHold Claim(const std::string& id, const std::string& server,
                absl::Duration lease = kLong) {
    const auto claimed = jobs_->Claim(
        {.offers = {{id, 0}}, .server_id = server, .lease = lease});
    EXPECT_TRUE(claimed.ok() && claimed->has_value());
    return {.id = id, .fencing_token = (*claimed)->lease.fencing_token};
  }
  static PartRound Round(int count) {
    PartRound round{.common = "for all", .tasks = {}};
    for (int i = 0; i < count; ++i) {
      round.tasks.push_back({absl::StrCat("order ", i), 10});
    }
    return round;
  }
  std::optional<TakenPart> Take(const std::string& server,
                                const std::string& job = "",
                                absl::Duration lease = kLong,
                                uint64_t memory = 0, int attempts = 0,
                                const std::string& engine = "e") {
    auto taken = parts_->Take({.server_id = server,
                               .engine = engine,
                               .lease = lease,
                               .job_id = job,
                               .max_memory_bytes = memory,
                               .max_attempts = attempts});
    EXPECT_TRUE(taken.ok()) << taken.status();
    return taken.ok() ? *std::move(taken) : std::nullopt;
  }
  static PartStore::Held HeldOf(const TakenPart& part, uint64_t done = 0) {
    return {.job_id = part.job_id,
            .number = part.number,
            .token = part.token,
            .done_bytes = done};
  }
  bool Open() {
    const auto line = jobs_->GetLine(16);
    EXPECT_TRUE(line.ok()) << line.status();
    return line->open_parts;
  }

  const std::string schema_ = TempPostgres::Get().NewSchema();
  const std::unique_ptr<PgPool> pool_;
  std::unique_ptr<JobStore> jobs_;
  PartStore* parts_ = nullptr;
};

TEST_F(PartStoreTest, APartComesWithAllThatAHelperNeeds) {
  const JobHold job = Run("a", 7, 123);
  EXPECT_FALSE(Open());
  EXPECT_FALSE(Take("helper").has_value());
  ASSERT_TRUE(parts_->Put(job, "e", Round(2)).ok());
  EXPECT_TRUE(Open());
  const auto part = Take("helper");
  ASSERT_TRUE(part.has_value());
  EXPECT_EQ(part->job_id, "a");
  EXPECT_EQ(part->number, 0);
  EXPECT_EQ(part->attempt, 1);
  EXPECT_EQ(part->cost_bytes, 10u);
  EXPECT_EQ(part->common, "for all");
  EXPECT_EQ(part->order, "order 0");
  EXPECT_EQ(part->spec.owner, "o");
  EXPECT_EQ(part->spec.request_id, "a");
  EXPECT_EQ(part->spec.priority, 7);
  EXPECT_EQ(part->spec.bin, BlobRefOf("bin"));
  EXPECT_TRUE(part->spec.measure_error);
  EXPECT_EQ(part->memory_bytes, 123u);
  const auto next = Take("helper");
  ASSERT_TRUE(next.has_value());
  EXPECT_EQ(next->number, 1);
  EXPECT_FALSE(Take("helper").has_value());
  EXPECT_FALSE(Open());
  // How far they are.
  EXPECT_THAT(*parts_->Renew({HeldOf(*part, 4), HeldOf(*next, 99)}, kLong),
              ElementsAre(true, true));
  auto look = parts_->LookAt(job);
  ASSERT_TRUE(look.ok());
  EXPECT_EQ(look->parts, 2);
  EXPECT_EQ(look->taken, 2);
  EXPECT_EQ(look->done, 0);
  EXPECT_EQ(look->done_bytes, 14u);  // never more than a part has
  EXPECT_THAT(parts_->Results(job),
              StatusIs(StatusCode::kFailedPrecondition, HasSubstr("part 0")));
  // In the order of the numbers, whoever is done first.
  ASSERT_TRUE(parts_->Finish(HeldOf(*next), "second").ok());
  ASSERT_TRUE(parts_->Finish(HeldOf(*part), "first").ok());
  // The answer was lost, say.
  EXPECT_TRUE(parts_->Finish(HeldOf(*part), "first").ok());
  look = parts_->LookAt(job);
  EXPECT_EQ(look->done, 2);
  EXPECT_EQ(look->taken, 0);
  EXPECT_EQ(look->done_bytes, 20u);
  EXPECT_THAT(*parts_->Results(job), ElementsAre("first", "second"));
  ASSERT_TRUE(parts_->Drop(job).ok());
  EXPECT_EQ(parts_->LookAt(job)->parts, 0);
}

TEST_F(PartStoreTest, WhoMayHaveWhich) {
  const JobHold low = Run("a", 0, 100);
  const JobHold high = Run("b", 5, 1000);
  ASSERT_TRUE(parts_->Put(low, "e", Round(1)).ok());
  ASSERT_TRUE(parts_->Put(high, "e", Round(2)).ok());
  EXPECT_FALSE(Take("helper", "", kLong, 0, 0, "another").has_value());
  // A holder takes its own by name only: help is for others.
  EXPECT_FALSE(Take("holder").has_value());
  EXPECT_EQ(Take("holder", "b")->number, 0);
  // What fits into the memory; then the more urgent one.
  EXPECT_EQ(Take("helper", "", kLong, 999)->job_id, "a");
  EXPECT_FALSE(Take("helper", "", kLong, 999).has_value());
  EXPECT_EQ(Take("helper", "", kLong, 1000)->job_id, "b");
}

TEST_F(PartStoreTest, APartOfADeadServerIsTakenAgain) {
  const JobHold job = Run("a");
  ASSERT_TRUE(parts_->Put(job, "e", Round(1)).ok());
  const auto first = Take("one", "", kShort);
  ASSERT_TRUE(first.has_value());
  EXPECT_FALSE(Take("two").has_value());
  absl::SleepFor(kShort);
  EXPECT_TRUE(Open());
  EXPECT_EQ(parts_->LookAt(job)->taken, 0);
  // It was slow only: nobody took it, so it is still its own.
  EXPECT_THAT(*parts_->Renew({HeldOf(*first)}, kShort), ElementsAre(true));
  absl::SleepFor(kShort);
  const auto second = Take("two");
  ASSERT_TRUE(second.has_value());
  EXPECT_EQ(second->attempt, 2);
  EXPECT_THAT(*parts_->Renew({HeldOf(*first), HeldOf(*second)}, kLong),
              ElementsAre(false, true));
  EXPECT_THAT(parts_->Finish(HeldOf(*first), "late"),
              StatusIs(StatusCode::kAborted, HasSubstr("part 0 of job a")));
  EXPECT_THAT(parts_->GiveBack(HeldOf(*first), true),
              StatusIs(StatusCode::kAborted, _));
  ASSERT_TRUE(parts_->Finish(HeldOf(*second), "right").ok());
  EXPECT_THAT(parts_->Finish(HeldOf(*first), "late"),
              StatusIs(StatusCode::kAborted, _));
  EXPECT_THAT(*parts_->Results(job), ElementsAre("right"));
}

TEST_F(PartStoreTest, APartThatNobodyCanDoIsLeftToTheHolder) {
  const JobHold job = Run("a");
  ASSERT_TRUE(parts_->Put(job, "e", Round(1)).ok());
  for (int attempt = 1; attempt <= 3; ++attempt) {
    // Handed back on a shutdown: counts for nothing.
    auto part = Take("helper", "", kLong, 0, 3);
    ASSERT_TRUE(part.has_value());
    EXPECT_EQ(part->attempt, attempt);
    ASSERT_TRUE(parts_->GiveBack(HeldOf(*part), false).ok());
    part = Take("helper", "", kLong, 0, 3);
    ASSERT_TRUE(part.has_value());
    EXPECT_EQ(part->attempt, attempt);
    ASSERT_TRUE(parts_->GiveBack(HeldOf(*part), true).ok());
  }
  EXPECT_FALSE(Take("helper", "", kLong, 0, 3).has_value());
  EXPECT_EQ(Take("holder", "a")->attempt, 4);
}

TEST_F(PartStoreTest, ANewHolderBeginsAnew) {
  JobHold old = Run("a");
  ASSERT_TRUE(parts_->Put(old, "e", Round(3)).ok());
  const auto part = Take("helper");
  ASSERT_TRUE(part.has_value());
  // The holder's lease ends, and somebody else takes the job.
  ASSERT_TRUE(jobs_
                  ->Renew({{.id = "a", .fencing_token = old.fencing_token}},
                          absl::ZeroDuration())
                  .ok());
  EXPECT_FALSE(Take("helper").has_value()) << "of a holder that is dead";
  const JobHold now = Claim("a", "heir");
  EXPECT_FALSE(Open());
  EXPECT_THAT(*parts_->Renew({HeldOf(*part)}, kLong), ElementsAre(false));
  EXPECT_THAT(parts_->Finish(HeldOf(*part), "late"),
              StatusIs(StatusCode::kAborted, _));
  EXPECT_EQ(parts_->LookAt(old)->parts, 0);
  EXPECT_FALSE(Take("old holder", "a").has_value());
  EXPECT_THAT(parts_->Put(old, "e", Round(1)),
              StatusIs(StatusCode::kAborted, HasSubstr("no longer held")));
  ASSERT_TRUE(parts_->Put(now, "e", Round(1)).ok());
  // A part with the same number in another round is another part.
  const auto again = Take("helper");
  ASSERT_TRUE(again.has_value());
  EXPECT_EQ(again->number, part->number);
  EXPECT_THAT(parts_->Finish(HeldOf(*part), "late"),
              StatusIs(StatusCode::kAborted, _));
  ASSERT_TRUE(parts_->Drop(old).ok());
  EXPECT_EQ(parts_->LookAt(now)->parts, 1) << "dropped by one who lost it";
}

TEST_F(PartStoreTest, ACancelledJobHasNoParts) {
  const JobHold job = Run("a");
  ASSERT_TRUE(parts_->Put(job, "e", Round(2)).ok());
  const auto part = Take("helper");
  ASSERT_TRUE(jobs_->RequestCancel("a", kLong).ok());
  EXPECT_THAT(*parts_->Renew({HeldOf(*part)}, kLong), ElementsAre(false));
  EXPECT_FALSE(Take("helper").has_value());
  // And one that ended and is deleted takes them with it.
  ASSERT_TRUE(jobs_
                  ->Finish("a", job.fencing_token,
                           {.state = JobState::kCancelled,
                            .error = absl::CancelledError("c"),
                            .ttl = kLong})
                  .ok());
  EXPECT_FALSE(Open());
  ASSERT_TRUE(jobs_->Delete("a").ok());
  EXPECT_EQ(pool_->Read("SELECT count(*) FROM job_parts")->Int(0, 0), 0);
}

TEST_F(PartStoreTest, EachPartGoesToOneOfMany) {
  constexpr int kParts = 100;
  const JobHold job = Run("a");
  ASSERT_TRUE(parts_->Put(job, "e", Round(kParts)).ok());
  std::vector<std::vector<int>> taken(6);
  std::vector<std::thread> servers;
  for (size_t i = 0; i < taken.size(); ++i) {
    servers.emplace_back([this, i, &taken] {
      while (const auto part = Take(absl::StrCat("s", i))) {
        taken[i].push_back(part->number);
        EXPECT_TRUE(parts_->Finish(HeldOf(*part), part->order).ok());
      }
    });
  }
  for (std::thread& server : servers) server.join();
  std::multiset<int> all;
  for (const auto& numbers : taken) all.insert(numbers.begin(), numbers.end());
  EXPECT_EQ(all.size(), static_cast<size_t>(kParts));
  EXPECT_EQ(std::set<int>(all.begin(), all.end()).size(), all.size());
  EXPECT_EQ(parts_->LookAt(job)->done, kParts);
  EXPECT_EQ(parts_->Results(job)->at(42), "order 42");
}

}  // namespace
}  // namespace ovpress
