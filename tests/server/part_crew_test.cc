// Who works on the parts of a job, over a store in memory.
#include "server/jobs/part_crew.h"

#include <cmath>
#include <limits>
#include <mutex>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/jobs/part_message.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using absl::StatusCode;
using ::ovpress::testing::StatusIs;
using ::testing::_;
using ::testing::HasSubstr;

// One job's parts; their leases end by themselves after `lapse_after`.
class MemoryParts final : public PartStore {
 public:
  absl::Status Put(const JobHold& job, const std::string&,
                   const PartRound& round) override {
    std::lock_guard<std::mutex> lock(mutex_);
    job_ = job;
    common_ = round.common;
    parts_.clear();
    for (const PartTask& task : round.tasks) parts_.push_back({.task = task});
    return absl::OkStatus();
  }
  absl::StatusOr<std::optional<TakenPart>> Take(
      const TakeRequest& request) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (away) return absl::UnavailableError("away");
    for (size_t i = 0; i < parts_.size(); ++i) {
      Part& part = parts_[i];
      if (part.state == 2 && Lapsed(part)) part.state = 1;
      if (part.state != 1 || (!request.job_id.empty() && holder_waits)) {
        continue;
      }
      if (request.max_attempts > 0 && part.attempt >= request.max_attempts) {
        continue;
      }
      part.state = 2;
      part.token = ++tokens_;
      part.renewed = absl::Now();
      TakenPart taken;
      taken.job_id = job_.id;
      taken.number = static_cast<int>(i);
      taken.token = part.token;
      taken.attempt = ++part.attempt;
      taken.cost_bytes = part.task.cost_bytes;
      taken.common = common_;
      taken.order = part.task.order;
      taken.memory_bytes = 50;
      return std::optional<TakenPart>(taken);
    }
    return std::optional<TakenPart>();
  }
  absl::StatusOr<std::vector<bool>> Renew(const std::vector<Held>& held,
                                          absl::Duration) override {
    std::lock_guard<std::mutex> lock(mutex_);
    std::vector<bool> kept;
    for (const Held& one : held) {
      Part* const part = Find(one);
      if (part != nullptr) {
        part->done = one.done_bytes;
        part->renewed = absl::Now();
      }
      kept.push_back(part != nullptr);
    }
    return kept;
  }
  absl::Status Finish(const Held& held, absl::string_view result) override {
    std::lock_guard<std::mutex> lock(mutex_);
    Part* const part = Find(held);
    if (part == nullptr) return absl::AbortedError("lost");
    part->state = 3;
    part->done = part->task.cost_bytes;
    part->result = std::string(result);
    return absl::OkStatus();
  }
  absl::Status GiveBack(const Held& held, bool counts) override {
    std::lock_guard<std::mutex> lock(mutex_);
    Part* const part = Find(held);
    if (part == nullptr) return absl::AbortedError("lost");
    part->state = 1;
    part->done = 0;
    if (!counts) --part->attempt;
    return absl::OkStatus();
  }
  absl::StatusOr<Look> LookAt(const JobHold&) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (away) return absl::UnavailableError("away");
    Look look;
    look.parts = static_cast<int>(parts_.size());
    for (const Part& part : parts_) {
      look.done += part.state == 3;
      look.taken += part.state == 2 && !Lapsed(part);
      look.done_bytes += part.done;
    }
    return look;
  }
  absl::StatusOr<std::vector<std::string>> Results(const JobHold&) override {
    std::lock_guard<std::mutex> lock(mutex_);
    if (results_away-- > 0) return absl::UnavailableError("away");
    std::vector<std::string> results;
    for (const Part& part : parts_) results.push_back(part.result);
    return results;
  }
  absl::Status Drop(const JobHold&) override {
    std::lock_guard<std::mutex> lock(mutex_);
    parts_.clear();
    ++drops;
    return absl::OkStatus();
  }
  // As if its lease had ended and another server had it.
  void Steal(size_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    parts_[number].token = ++tokens_;
  }
  int attempts(size_t number) {
    std::lock_guard<std::mutex> lock(mutex_);
    return parts_.at(number).attempt;
  }
  absl::Duration lapse_after = absl::InfiniteDuration();
  std::atomic<bool> away{false};
  std::atomic<bool> holder_waits{false};
  std::atomic<int> drops{0};
  std::atomic<int> results_away{0};  // so often

 private:
  struct Part {
    PartTask task;
    int state = 1;
    int attempt = 0;
    int64_t token = 0;
    uint64_t done = 0;
    std::string result;
    absl::Time renewed;
  };
  bool Lapsed(const Part& part) const {
    return absl::Now() - part.renewed > lapse_after;
  }
  Part* Find(const Held& held) {
    const auto i = static_cast<size_t>(held.number);
    if (i >= parts_.size() || parts_[i].token != held.token ||
        parts_[i].state != 2) {
      return nullptr;
    }
    return &parts_[i];
  }
  std::mutex mutex_;
  JobHold job_;
  std::string common_;
  std::vector<Part> parts_;
  int64_t tokens_ = 0;
};

class PartRunner final : public JobRunner {
 public:
  explicit PartRunner(std::string name) : name_(std::move(name)) {}
  std::string engine_version() const override { return "fake"; }
  absl::StatusOr<JobEstimate> Estimate(BlobStore*, const JobSpec&) override {
    return JobEstimate{};
  }
  absl::StatusOr<RunOutput> Run(const JobSpec&, const RunContext&) override {
    return absl::InternalError("not here");
  }
  absl::StatusOr<std::string> RunPart(const JobSpec&, absl::string_view common,
                                      absl::string_view order,
                                      const RunContext& context) override {
    ++begun;
    context.progress({.phase = "p", .bytes_done = 3});
    while (hold && !*context.stop) absl::SleepFor(absl::Milliseconds(1));
    if (*context.stop) return absl::CancelledError("stopped");
    // Uninterruptible, as a read from a disk that hangs.
    while (hang) absl::SleepFor(absl::Milliseconds(1));
    if (fail.code() != StatusCode::kOk) return fail;
    ++done;
    return absl::StrCat(common, "/", order, "/", name_);
  }
  const std::string name_;
  std::atomic<bool> hold{false};
  std::atomic<bool> hang{false};
  std::atomic<int> begun{0};
  std::atomic<int> done{0};
  absl::Status fail;
};

class PartCrewTest : public ::testing::Test {
 protected:
  struct Server {
    explicit Server(std::string name) : runner(std::move(name)) {}
    PartRunner runner;
    std::atomic<int64_t> memory{0};
    std::unique_ptr<PartCrew> crew;
    bool Help() {
      const auto begun =
          crew->Help(1000, [this](int64_t bytes) { memory += bytes; });
      EXPECT_TRUE(begun.ok()) << begun.status();
      return begun.ok() && *begun;
    }
  };
  PartCrewTest() : executor_(FairExecutor::Create({.threads = 1})) {
    job_.id = "j";
    job_.lease.fencing_token = 1;
    job_.spec.bin.size_bytes = 100;
    context_.stop = &stop_;
  }
  std::unique_ptr<Server> Start(const std::string& name,
                                absl::Duration rest = absl::ZeroDuration()) {
    auto server = std::make_unique<Server>(name);
    server->crew = PartCrew::Create({.parts = &parts_,
                                     .runner = &server->runner,
                                     .executor = executor_.get(),
                                     .server_id = name,
                                     .lease = absl::Milliseconds(60),
                                     .part_bytes = part_bytes_,
                                     .rest = rest,
                                     .standstill = standstill_});
    return server;
  }
  static PartRound Round(int count) {
    PartRound round{.common = "c", .tasks = {}};
    for (int i = 0; i < count; ++i) {
      round.tasks.push_back({absl::StrCat("o", i), 10});
    }
    return round;
  }
  static bool Until(const std::function<bool()>& condition) {
    for (int i = 0; i < 4000; ++i) {
      if (condition()) return true;
      absl::SleepFor(absl::Milliseconds(5));
    }
    return false;
  }

  std::unique_ptr<FairExecutor> executor_;
  MemoryParts parts_;
  uint64_t part_bytes_ = 10;
  absl::Duration standstill_ = absl::Minutes(10);
  JobRecord job_;
  std::atomic<bool> stop_{false};
  RunContext context_;
};

TEST_F(PartCrewTest, TheHolderAloneDoesAll) {
  auto holder = Start("h");
  {
    const auto board = holder->crew->MakeBoard(job_, context_);
    EXPECT_EQ(board->part_bytes(), 10u);
    const auto results = board->Run(Round(3), [](uint64_t) {});
    ASSERT_TRUE(results.ok()) << results.status();
    EXPECT_THAT(*results, ::testing::ElementsAre("c/o0/h", "c/o1/h", "c/o2/h"));
    // A second round, as scoring and writing are.
    EXPECT_EQ(board->Run(Round(1), [](uint64_t) {})->size(), 1u);
    EXPECT_EQ(parts_.drops, 0);
  }
  EXPECT_EQ(parts_.drops, 1);
}

TEST_F(PartCrewTest, HelpersTakeTheirShareAndTellHowFarTheyAre) {
  auto holder = Start("h");
  auto helper = Start("x");
  parts_.holder_waits = true;
  helper->runner.hold = true;
  std::atomic<uint64_t> seen{0};
  std::thread run([&] {
    const auto board = holder->crew->MakeBoard(job_, context_);
    const auto results =
        board->Run(Round(2), [&](uint64_t bytes) { seen = bytes; });
    ASSERT_TRUE(results.ok()) << results.status();
    EXPECT_EQ(results->at(0), "c/o0/x");
  });
  ASSERT_TRUE(Until([&] { return helper->Help(); }));
  // One at a time.
  EXPECT_FALSE(helper->Help());
  EXPECT_EQ(helper->memory, 50);
  EXPECT_TRUE(Until([&] { return seen == 3; })) << seen;
  helper->runner.hold = false;
  ASSERT_TRUE(Until([&] { return helper->memory == 0; }));
  EXPECT_TRUE(Until([&] { return seen == 10; })) << seen;
  parts_.holder_waits = false;
  run.join();
  EXPECT_EQ(holder->runner.done, 1);
  EXPECT_FALSE(helper->Help());
}

TEST_F(PartCrewTest, AHelperThatCannotNeverFailsTheJob) {
  auto holder = Start("h");
  auto helper = Start("x");
  helper->runner.fail = absl::ResourceExhaustedError("its disk is full");
  parts_.holder_waits = true;
  std::thread run([&] {
    const auto board = holder->crew->MakeBoard(job_, context_);
    const auto results = board->Run(Round(1), [](uint64_t) {});
    ASSERT_TRUE(results.ok()) << results.status();
    EXPECT_EQ(results->at(0), "c/o0/h");
  });
  for (int i = 0; i < PartCrew::kMaxHelpers; ++i) {
    ASSERT_TRUE(Until([&] { return helper->Help(); }));
    ASSERT_TRUE(Until([&] { return helper->memory == 0; }));
  }
  EXPECT_FALSE(helper->Help());
  EXPECT_EQ(parts_.attempts(0), PartCrew::kMaxHelpers);
  parts_.holder_waits = false;
  run.join();
}

TEST_F(PartCrewTest, TheHoldersErrorIsTheJobs) {
  auto holder = Start("h");
  holder->runner.fail = absl::DataLossError("bad weights");
  const auto board = holder->crew->MakeBoard(job_, context_);
  EXPECT_THAT(board->Run(Round(2), [](uint64_t) {}),
              StatusIs(StatusCode::kDataLoss, HasSubstr("bad weights")));
  // What passes is tried again.
  holder->runner.begun = 0;
  holder->runner.fail = absl::UnavailableError("no store");
  EXPECT_THAT(board->Run(Round(1), [](uint64_t) {}),
              StatusIs(StatusCode::kUnavailable, HasSubstr("no store")));
  EXPECT_EQ(holder->runner.begun, PartCrew::kMaxHelpers + 4);
}

TEST_F(PartCrewTest, AStopEndsTheRunAndAShutdownGivesHelpBack) {
  auto holder = Start("h");
  auto helper = Start("x");
  helper->runner.hold = true;
  parts_.holder_waits = true;
  std::atomic<uint64_t> seen{0};
  std::atomic<int> told{0};
  std::thread run([&] {
    const auto board = holder->crew->MakeBoard(job_, context_);
    EXPECT_THAT(board->Run(Round(2),
                           [&](uint64_t bytes) {
                             EXPECT_GE(bytes, seen) << "it went back";
                             seen = bytes;
                             ++told;
                           }),
                StatusIs(StatusCode::kCancelled, _));
  });
  ASSERT_TRUE(Until([&] { return helper->Help(); }));
  ASSERT_TRUE(Until([&] { return seen == 3; }));
  helper->crew->StopHelping();
  ASSERT_TRUE(Until([&] { return helper->memory == 0; }));
  EXPECT_EQ(parts_.attempts(0), 0) << "a shutdown is no failure";
  EXPECT_FALSE(helper->Help()) << "no more help";
  const int before = told;
  ASSERT_TRUE(Until([&] { return told > before + 1; }));
  EXPECT_EQ(seen, 3u);
  stop_ = true;
  run.join();
}

TEST_F(PartCrewTest, AStolenPartIsGivenUp) {
  auto holder = Start("h");
  auto helper = Start("x");
  helper->runner.hold = true;
  parts_.holder_waits = true;
  std::thread run([&] {
    const auto board = holder->crew->MakeBoard(job_, context_);
    EXPECT_THAT(board->Run(Round(1), [](uint64_t) {}),
                StatusIs(StatusCode::kCancelled, _));
  });
  ASSERT_TRUE(Until([&] { return helper->Help(); }));
  parts_.Steal(0);
  // The next renewal tells.
  ASSERT_TRUE(Until([&] { return helper->memory == 0; }));
  EXPECT_EQ(helper->runner.done, 0);
  EXPECT_EQ(parts_.attempts(0), 1);
  stop_ = true;
  run.join();
}

TEST_F(PartCrewTest, ADatabaseThatIsAwayIsWaitedFor) {
  auto holder = Start("h");
  parts_.away = true;
  std::thread run([&] {
    const auto board = holder->crew->MakeBoard(job_, context_);
    EXPECT_TRUE(board->Run(Round(2), [](uint64_t) {}).ok());
  });
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_EQ(holder->runner.begun, 0);
  parts_.away = false;
  run.join();
  EXPECT_EQ(holder->runner.done, 2);
}

TEST_F(PartCrewTest, ADatabaseThatIsAwayAtTheEndCostsNoPart) {
  auto holder = Start("h");
  parts_.results_away = 2;
  const auto board = holder->crew->MakeBoard(job_, context_);
  const auto results = board->Run(Round(2), [](uint64_t) {});
  ASSERT_TRUE(results.ok()) << results.status();
  EXPECT_EQ(results->size(), 2u);
  EXPECT_EQ(holder->runner.done, 2);
}

TEST_F(PartCrewTest, PartsOfTheSmallestModelsHaveASize) {
  part_bytes_ = 0;  // as --share-jobs-above=1 has it
  auto holder = Start("h");
  job_.spec.bin.size_bytes = 255;
  EXPECT_EQ(holder->crew->MakeBoard(job_, context_)->part_bytes(), 1u);
}

TEST_F(PartCrewTest, AServerThatAlwaysFailsLeavesPartsToOthers) {
  auto holder = Start("h");
  auto sick = Start("s", absl::Hours(1));
  auto helper = Start("x");
  sick->runner.fail = absl::ResourceExhaustedError("its disk is full");
  parts_.holder_waits = true;
  std::thread run([&] {
    const auto board = holder->crew->MakeBoard(job_, context_);
    const auto results = board->Run(Round(2), [](uint64_t) {});
    ASSERT_TRUE(results.ok()) << results.status();
    EXPECT_THAT(*results, ::testing::ElementsAre("c/o0/x", "c/o1/x"));
  });
  ASSERT_TRUE(Until([&] { return sick->Help(); }));
  ASSERT_TRUE(Until([&] { return sick->memory == 0; }));
  EXPECT_FALSE(sick->Help());
  EXPECT_EQ(parts_.attempts(0), 1);
  for (int i = 0; i < 2; ++i) {
    ASSERT_TRUE(Until([&] { return helper->Help(); }));
    ASSERT_TRUE(Until([&] { return helper->memory == 0; }));
  }
  run.join();
}

TEST_F(PartCrewTest, HelpThatHangsIsLeftToOthers) {
  standstill_ = absl::Milliseconds(100);
  auto holder = Start("h");
  auto helper = Start("x");
  helper->runner.hang = true;
  parts_.lapse_after = absl::Milliseconds(100);
  parts_.holder_waits = true;
  std::thread run([&] {
    const auto board = holder->crew->MakeBoard(job_, context_);
    const auto results = board->Run(Round(1), [](uint64_t) {});
    ASSERT_TRUE(results.ok()) << results.status();
    EXPECT_EQ(results->at(0), "c/o0/h");
  });
  ASSERT_TRUE(Until([&] { return helper->Help(); }));
  parts_.holder_waits = false;
  run.join();
  // It wakes up and finds that it came too late.
  helper->runner.hang = false;
  ASSERT_TRUE(Until([&] { return helper->memory == 0; }));
}

TEST_F(PartCrewTest, AnOutputThatIsGoneNeedsAnotherRun) {
  auto holder = Start("h");
  holder->runner.fail = absl::AbortedError("the output is gone");
  const auto board = holder->crew->MakeBoard(job_, context_);
  // Which JobManager tries again, unlike kAborted.
  EXPECT_THAT(board->Run(Round(2), [](uint64_t) {}),
              StatusIs(StatusCode::kUnavailable, HasSubstr("gone")));
  EXPECT_EQ(holder->runner.begun, 1);
}

TEST(PartMessageTest, AllOfItComesBack) {
  const PartOrder score{.score = PartOrder::Score{3, 5}};
  auto order = PartOrderFromText(ToText(score));
  ASSERT_TRUE(order.ok()) << order.status();
  EXPECT_EQ(order->score->begin, 3u);
  EXPECT_EQ(order->score->end, 5u);
  EXPECT_FALSE(order->write.has_value());
  const Part part{1, 2, 1ull << 60, ~0ull, 5};
  order = PartOrderFromText(
      ToText(PartOrder{.write = PartOrder::Write{part, "0 9 \"k\" \xc3\xa4"}}));
  ASSERT_TRUE(order.ok()) << order.status();
  EXPECT_EQ(order->write->part, part);
  EXPECT_EQ(order->write->range_handle, "0 9 \"k\" \xc3\xa4");

  const double inf = std::numeric_limits<double>::infinity();
  const double nan = std::numeric_limits<double>::quiet_NaN();
  WrittenPart written;
  written.result.part = part;
  written.result.errors.push_back({.error = 0.1, .signal = -0.0});
  written.result.errors.push_back({.error = inf, .signal = nan});
  written.receipt = "\"etag\"";
  const auto read = WrittenPartFromText(ToText(written));
  ASSERT_TRUE(read.ok()) << read.status();
  EXPECT_EQ(read->result.part, part);
  EXPECT_EQ(read->receipt, written.receipt);
  ASSERT_EQ(read->result.errors.size(), 2u);
  EXPECT_EQ(read->result.errors[0].error, 0.1);
  EXPECT_TRUE(std::signbit(read->result.errors[0].signal));
  EXPECT_EQ(read->result.errors[1].error, inf);
  EXPECT_TRUE(std::isnan(read->result.errors[1].signal));
  EXPECT_EQ(ScoresToText({}), "");
  EXPECT_TRUE(ScoresFromText("")->empty());
}

TEST(PartMessageTest, WhatIsNoneIsRefused) {
  for (const char* text :
       {"", "{}", "[]", "{\"score\":[1]}", "{\"score\":[1,\"x\"]}",
        "{\"part\":[1,2,3,4]}", "{\"part\":[1,2,3,4,5]}"}) {
    EXPECT_THAT(PartOrderFromText(text), StatusIs(StatusCode::kDataLoss, _))
        << text;
    EXPECT_THAT(WrittenPartFromText(text), StatusIs(StatusCode::kDataLoss, _))
        << text;
  }
  EXPECT_THAT(WrittenPartFromText("{\"part\":[1,2,3,4,5],\"receipt\":\"\","
                                  "\"errors\":\"0000000000000000\"}"),
              StatusIs(StatusCode::kDataLoss, HasSubstr("odd")));
  EXPECT_THAT(ScoresFromText("123"), StatusIs(StatusCode::kDataLoss, _));
  EXPECT_THAT(ScoresFromText("000000000000000g"),
              StatusIs(StatusCode::kDataLoss, _));
}

}  // namespace
}  // namespace ovpress
