// The pool against a real PostgreSQL that is stopped, killed and frozen.
#include "server/cluster/pg.h"

#include <atomic>
#include <condition_variable>
#include <mutex>
#include <set>
#include <thread>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/base/patience.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cluster/temp_postgres.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using ::ovpress::testing::StatusIs;
using ::ovpress::testing::TempPostgres;
using ::testing::AnyOf;
using ::testing::HasSubstr;
using ::testing::Not;

class PgTest : public ::testing::Test {
 protected:
  PgTest() { options_.conninfo = TempPostgres::Get().NewSchema(); }
  std::unique_ptr<PgPool> Open() {
    auto pool = PgPool::Create(options_);
    EXPECT_TRUE(pool.ok()) << pool.status();
    return *std::move(pool);
  }
  PgOptions options_;
};

TEST_F(PgTest, ValuesComeBackAsTheyWere) {
  auto pool = Open();
  std::string bytes;
  for (int i = 0; i < 256; ++i) bytes.push_back(static_cast<char>(i));
  const std::string text = "'; DROP TABLE x; -- \\ \" {a,b} \xc3\xa4";
  const auto rows = pool->Read(
      "SELECT $1::bigint, $2::text, $3::bytea, $4::bool, $5::float8, $6::text,"
      " ($7::text[])[2], $8::bigint = ANY($9::bigint[])",
      {INT64_MIN, text, PgValue::Bytes(bytes), true, 0.1, PgValue::Null(),
       PgValue::Array(std::vector<std::string>{"", text}), 7,
       PgValue::Array(std::vector<int64_t>{-1, 7})});
  ASSERT_TRUE(rows.ok()) << rows.status();
  EXPECT_EQ(rows->Int(0, 0), INT64_MIN);
  EXPECT_EQ(rows->Text(0, 1), text);
  EXPECT_EQ(rows->Bytes(0, 2), bytes);
  EXPECT_TRUE(rows->Bool(0, 3));
  EXPECT_EQ(rows->Double(0, 4), 0.1);
  EXPECT_TRUE(rows->IsNull(0, 5));
  EXPECT_EQ(rows->Text(0, 6), text);
  EXPECT_TRUE(rows->Bool(0, 7));
}

TEST_F(PgTest, ErrorsHaveCodesAndDoNotHarmTheConnection) {
  auto pool = Open();
  ASSERT_TRUE(
      pool->Query("CREATE TABLE t(id int PRIMARY KEY, name text)", {}).ok());
  ASSERT_TRUE(pool->Query("INSERT INTO t VALUES(1, 'secret')", {}).ok());
  const auto twice = pool->Query("INSERT INTO t VALUES($1, 'x')", {1});
  EXPECT_THAT(twice, StatusIs(absl::StatusCode::kAlreadyExists,
                              Not(HasSubstr("secret"))));
  EXPECT_EQ(PgSqlState(twice.status()), "23505");
  EXPECT_FALSE(PgOutcomeUnknown(twice.status()));
  EXPECT_THAT(pool->Read("SELECT nonsense", {}),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("42703")));
  EXPECT_THAT(pool->Read("SELECT $1::text", {std::string("a\0b", 3)}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("NUL")));
  EXPECT_THAT(pool->Read("SELECT $1::text", {"\xff"}),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("22021")));
  EXPECT_EQ(pool->Stats().open, 1);
  EXPECT_EQ(pool->Stats().reconnects, 0u);
  EXPECT_EQ(PgCode("53100"), absl::StatusCode::kResourceExhausted);
  EXPECT_EQ(PgCode("53300"), absl::StatusCode::kUnavailable);
  EXPECT_EQ(PgCode("57P01"), absl::StatusCode::kUnavailable);
  EXPECT_EQ(PgCode("28P01"), absl::StatusCode::kPermissionDenied);
  EXPECT_EQ(PgCode("XX001"), absl::StatusCode::kDataLoss);
}

TEST_F(PgTest, AddressesAreCheckedAndNeverQuoted) {
  for (const char* bad :
       {"postgresql://u:hunter2@h:port/db", "host=h hunter2",
        "password='hunter2", "postgresql://u:ab@cd:hunter2@h/db",
        "postgresql://u:ab@hunter2@h/db"}) {
    options_.conninfo = bad;
    EXPECT_THAT(PgPool::Create(options_).status(),
                StatusIs(absl::StatusCode::kInvalidArgument,
                         Not(HasSubstr("hunter2"))));
  }
  EXPECT_TRUE(PgHasPassword("postgresql://u:hunter2@h:77/d"));
  EXPECT_TRUE(PgHasPassword("host=h password=x"));
  EXPECT_FALSE(PgHasPassword("postgresql://u@h:77/d"));
  EXPECT_EQ(PgDescribe("postgresql://u:hunter2@h:77/d"),
            "user=u dbname=d host=h port=77");
  options_.conninfo = "host=127.0.0.1 port=1 user=x password=hunter2";
  options_.wait_limit = absl::Milliseconds(300);
  EXPECT_THAT(
      PgPool::Create(options_).status(),
      StatusIs(absl::StatusCode::kUnavailable, Not(HasSubstr("hunter2"))));
}

TEST_F(PgTest, TransactionsAreWholeAndConflictsAreRetried) {
  auto pool = Open();
  ASSERT_TRUE(
      pool->Query("CREATE TABLE t(id int PRIMARY KEY, n bigint)", {}).ok());
  ASSERT_TRUE(pool->Query("INSERT INTO t VALUES(1,0),(2,0)", {}).ok());
  // The caller's error rolls back and comes back.
  EXPECT_THAT(pool->Transaction([](PgSession& session) -> absl::Status {
    EXPECT_TRUE(session.Query("UPDATE t SET n=99").ok());
    return absl::AbortedError("mine");
  }),
              StatusIs(absl::StatusCode::kAborted, "mine"));
  // An error that the caller overlooked must not look like success.
  EXPECT_THAT(pool->Transaction([](PgSession& session) -> absl::Status {
    session.Query("SELECT nonsense").status().IgnoreError();
    return absl::OkStatus();
  }),
              StatusIs(absl::StatusCode::kInternal, HasSubstr("went on")));
  // Two orders of locking: deadlocks, each resolved by another go.
  std::vector<std::thread> threads;
  std::atomic<int> done{0};
  for (int worker = 0; worker < 4; ++worker) {
    threads.emplace_back([&, worker] {
      for (int i = 0; i < 10; ++i) {
        const absl::Status status =
            pool->Transaction([&](PgSession& session) -> absl::Status {
              for (int k = 0; k < 2; ++k) {
                const auto rows =
                    session.Query("UPDATE t SET n=n+1 WHERE id=$1",
                                  {worker % 2 == 0 ? 1 + k : 2 - k});
                if (!rows.ok()) return rows.status();
                if (k == 0) absl::SleepFor(absl::Milliseconds(5));
              }
              return absl::OkStatus();
            });
        EXPECT_TRUE(status.ok()) << status;
        ++done;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(done, 40);
  EXPECT_EQ(pool->Read("SELECT min(n) FROM t")->Int(0, 0), 40);
  EXPECT_EQ(pool->Read("SELECT max(n) FROM t")->Int(0, 0), 40);
  EXPECT_GT(pool->Stats().retries, 0u);
}

TEST_F(PgTest, ARestartIsAWaitNotAnError) {
  auto pool = Open();
  ASSERT_TRUE(pool->Query("CREATE TABLE t(n int)", {}).ok());
  for (const char* how : {"stop", "kill"}) {
    TempPostgres::Get().Do(how);
    std::thread later([] {
      absl::SleepFor(absl::Milliseconds(300));
      TempPostgres::Get().Do("start");
    });
    // The lost connection is seen before anything is sent, so this happens
    // exactly once.
    const auto rows = pool->Query("INSERT INTO t VALUES(1)", {});
    EXPECT_TRUE(rows.ok()) << rows.status();
    later.join();
  }
  EXPECT_EQ(pool->Read("SELECT count(*) FROM t")->Int(0, 0), 2);
}

TEST_F(PgTest, AConnectionLostInATransactionBeginsItAnew) {
  auto pool = Open();
  ASSERT_TRUE(pool->Query("CREATE TABLE t(n int)", {}).ok());
  int runs = 0;
  const absl::Status status =
      pool->Transaction([&](PgSession& session) -> absl::Status {
        ++runs;
        EXPECT_TRUE(session.Query("INSERT INTO t VALUES(1)").ok() || runs == 1);
        if (runs == 1) {
          session.Query("SELECT pg_terminate_backend(pg_backend_pid())")
              .status()
              .IgnoreError();
        }
        const auto rows = session.Query("INSERT INTO t VALUES(2)");
        return rows.status();
      });
  EXPECT_TRUE(status.ok()) << status;
  EXPECT_EQ(runs, 2);
  EXPECT_EQ(pool->Read("SELECT count(*) FROM t")->Int(0, 0), 2);
  // A single statement may have happened; that is said.
  const auto ended =
      pool->Query("SELECT pg_terminate_backend(pg_backend_pid())", {});
  EXPECT_EQ(ended.status().code(), absl::StatusCode::kUnavailable);
  EXPECT_TRUE(PgOutcomeUnknown(ended.status()));
}

TEST_F(PgTest, LimitsOfTimeHold) {
  options_.statement_timeout = absl::Milliseconds(200);
  options_.idle_in_transaction_timeout = absl::Milliseconds(200);
  options_.max_connections = 2;
  options_.wait_limit = absl::Seconds(2);
  auto pool = Open();
  EXPECT_THAT(pool->Query("SELECT pg_sleep(5)", {}),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("57014")));
  // Who dreams in a transaction loses its locks.
  ASSERT_TRUE(pool->Query("CREATE TABLE t(id int PRIMARY KEY)", {}).ok());
  std::atomic<int> runs{0};
  EXPECT_TRUE(pool->Transaction([&](PgSession& session) -> absl::Status {
                    const auto rows = session.Query("INSERT INTO t VALUES(1)");
                    if (++runs == 1) {
                      absl::SleepFor(absl::Milliseconds(600));
                      EXPECT_TRUE(
                          pool->Query("INSERT INTO t VALUES(1)", {}).ok());
                      EXPECT_TRUE(pool->Query("DELETE FROM t", {}).ok());
                      return session.Query("SELECT 1").status();
                    }
                    return rows.status();
                  })
                  .ok());
  EXPECT_EQ(runs, 2);
  // All connections taken.
  std::vector<std::thread> threads;
  for (int i = 0; i < 2; ++i) {
    threads.emplace_back([&] {
      pool->Transaction([](PgSession& session) -> absl::Status {
            for (int k = 0; k < 30; ++k) {
              const auto rows = session.Query("SELECT pg_sleep(0.1)");
              if (!rows.ok()) return rows.status();
            }
            return absl::OkStatus();
          })
          .IgnoreError();
    });
  }
  absl::SleepFor(absl::Milliseconds(300));
  EXPECT_THAT(pool->Read("SELECT 1"),
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("busy")));
  for (std::thread& thread : threads) thread.join();
}

TEST_F(PgTest, AFrozenDatabaseDoesNotFreezeCallers) {
  options_.statement_timeout = absl::Milliseconds(500);
  options_.wait_limit = absl::Seconds(1);
  auto pool = Open();
  TempPostgres::Get().Do("pause");
  const absl::Time start = absl::Now();
  const auto rows = pool->Query("SELECT 1", {});
  TempPostgres::Get().Do("resume");
  EXPECT_THAT(rows,
              StatusIs(absl::StatusCode::kUnavailable, HasSubstr("no answer")));
  EXPECT_TRUE(PgOutcomeUnknown(rows.status()));
  EXPECT_LT(absl::Now() - start, absl::Seconds(9));
  EXPECT_TRUE(pool->Read("SELECT 1").ok());
}

TEST_F(PgTest, ACallThatIsNotWantedAnyMoreEndsSoon) {
  auto pool = Open();
  std::atomic<bool> stop{false};
  const auto after_a_moment = [&stop] {
    stop = false;
    return std::thread([&stop] {
      std::this_thread::sleep_for(std::chrono::milliseconds(200));
      stop = true;
    });
  };
  const auto ends_soon = [&](const absl::Status& status, absl::Time start) {
    EXPECT_THAT(status, StatusIs(absl::StatusCode::kCancelled,
                                 HasSubstr("not wanted")));
    EXPECT_LT(absl::Now() - start, absl::Seconds(3));  // the machine is busy
    EXPECT_GE(absl::Now() - start, absl::Milliseconds(200));
  };
  // A statement that is not answered, alone and in a transaction.
  TempPostgres::Get().Do("pause");
  {
    const Patience patience(&stop);
    std::thread stopper = after_a_moment();
    absl::Time start = absl::Now();
    ends_soon(pool->Read("SELECT 1").status(), start);
    stopper.join();
  }
  TempPostgres::Get().Do("resume");
  {
    const Patience patience(&stop);
    std::thread stopper = after_a_moment();
    const absl::Time start = absl::Now();
    ends_soon(pool->Transaction([&](PgSession& session) {
      return session.Query("SELECT pg_sleep(8)").status();
    }),
              start);
    stopper.join();
  }
  // Waits for a database that is away; with grace, a little longer.
  TempPostgres::Get().Do("stop");
  {
    stop = true;
    const Patience patience(&stop, std::chrono::milliseconds(300));
    const absl::Time start = absl::Now();
    ends_soon(pool->Read("SELECT 1").status(), start);
  }
  TempPostgres::Get().Do("start");
  EXPECT_TRUE(pool->Read("SELECT 1").ok());
}

TEST_F(PgTest, MigrationsRunOnceWhoeverComesFirst) {
  const PgMigrations one{.part = "p",
                         .steps = {"CREATE TABLE a(n int);"
                                   "INSERT INTO a VALUES(1);"}};
  PgMigrations two = one;
  two.steps.push_back("ALTER TABLE a ADD COLUMN m int DEFAULT 5");
  std::vector<std::thread> threads;
  for (int i = 0; i < 6; ++i) {
    threads.emplace_back([&] {
      auto pool = Open();
      const absl::Status status = PgMigrate(pool.get(), one);
      EXPECT_TRUE(status.ok()) << status;
    });
  }
  for (std::thread& thread : threads) thread.join();
  auto pool = Open();
  EXPECT_EQ(pool->Read("SELECT count(*) FROM a")->Int(0, 0), 1);
  // A step that fails leaves all as it was.
  PgMigrations bad = two;
  bad.steps.push_back("CREATE TABLE b(n int); SELECT nonsense");
  EXPECT_EQ(PgMigrate(pool.get(), bad).code(), absl::StatusCode::kInternal);
  EXPECT_FALSE(pool->Read("SELECT m FROM a").ok());
  ASSERT_TRUE(PgMigrate(pool.get(), two).ok());
  EXPECT_EQ(pool->Read("SELECT m FROM a")->Int(0, 0), 5);
  EXPECT_THAT(PgMigrate(pool.get(), one),
              StatusIs(absl::StatusCode::kFailedPrecondition,
                       HasSubstr("newer ovpress")));
  // Other parts have their own count.
  EXPECT_TRUE(PgMigrate(pool.get(), {.part = "q", .steps = {"SELECT 1"}}).ok());
}

TEST_F(PgTest, ListenersHearAndComeBack) {
  auto pool = Open();
  std::mutex mutex;
  std::condition_variable changed;
  std::multiset<std::string> heard;
  int connected = 0;
  auto listener = PgListener::Create(
      {.connection = options_,
       .channels = {"ovpress_test"},
       .on_notify =
           [&](absl::string_view channel, absl::string_view payload) {
             std::lock_guard lock(mutex);
             heard.insert(absl::StrCat(channel, ":", payload));
             changed.notify_all();
           },
       .on_connected =
           [&] {
             std::lock_guard lock(mutex);
             ++connected;
             changed.notify_all();
           }});
  ASSERT_TRUE(listener.ok()) << listener.status();
  const auto until = [&](auto condition) {
    std::unique_lock lock(mutex);
    return changed.wait_for(lock, std::chrono::seconds(20), condition);
  };
  ASSERT_TRUE(until([&] { return connected == 1; }));
  ASSERT_TRUE(
      pool->Query("SELECT pg_notify($1,$2)", {"ovpress_test", "a"}).ok());
  ASSERT_TRUE(until([&] { return heard.count("ovpress_test:a") == 1; }));
  TempPostgres::Get().Do("stop");
  TempPostgres::Get().Do("start");
  ASSERT_TRUE(until([&] { return connected == 2; }));
  ASSERT_TRUE(
      pool->Query("SELECT pg_notify($1,$2)", {"ovpress_test", "b"}).ok());
  EXPECT_TRUE(until([&] { return heard.count("ovpress_test:b") == 1; }));
  EXPECT_THAT(PgListener::Create({.connection = options_,
                                  .channels = {"a\"; DROP"},
                                  .on_notify = nullptr,
                                  .on_connected = nullptr})
                  .status(),
              StatusIs(absl::StatusCode::kInvalidArgument, HasSubstr("a")));
}

}  // namespace
}  // namespace ovpress
