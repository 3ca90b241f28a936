// How fast a queue is: servers that take jobs, end them and submit new ones as
// fast as they can, over a line that stays full.
//   queue_bench sqlite FILE | postgresql://... [--queued N] [--servers N]
//               [--seconds S] [--owners N]
// Each server is a thread with connections of its own; the database is a real
// one (tests/cluster/postgres starts one). Prints one line of JSON.
#include <algorithm>
#include <atomic>
#include <cstdio>
#include <iostream>
#include <memory>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "server/cluster/postgres_job_store.h"
#include "server/jobs/digest.h"
#include "server/jobs/sqlite_job_store.h"

namespace ovpress {
namespace {

struct Settings {
  std::string where;
  int queued = 10000;
  int servers = 1;
  int seconds = 10;
  int owners = 20;
};

// Far, so that each insertion counts all of the line.
constexpr JobStore::QueueLimits kLimits{.all = 1'000'000, .owner = 1'000'000};

struct Server {
  std::unique_ptr<PgPool> pool;
  std::unique_ptr<JobStore> store;
};

absl::StatusOr<Server> Open(const std::string& where) {
  Server server;
  if (where.find("://") == std::string::npos &&
      where.find('=') == std::string::npos) {
    auto store = OpenSqliteJobStore({.path = where});
    if (!store.ok()) return store.status();
    server.store = *std::move(store);
    return server;
  }
  auto pool = PgPool::Create({.conninfo = where});
  if (!pool.ok()) return pool.status();
  server.pool = *std::move(pool);
  auto store = OpenPostgresJobStore(server.pool.get());
  if (!store.ok()) return store.status();
  server.store = *std::move(store);
  return server;
}

JobRecord NewJob(const Settings& settings) {
  static std::atomic<int> count{0};
  static const std::string run = absl::StrCat(absl::ToUnixNanos(absl::Now()));
  const int number = count++;
  JobRecord job;
  job.id = Sha256Hex(absl::StrCat(run, number)).substr(0, 32);
  job.spec.owner = absl::StrCat("owner", number % settings.owners);
  job.spec.priority = number % 3;
  job.spec.xml = {Sha256Hex("xml"), 1 << 20};
  job.spec.bin = {Sha256Hex("bin"), 1 << 30};
  job.spec.options_json = std::string(400, ' ');
  job.spec.canonical_options = std::string(200, ' ');
  job.cache_key = Sha256Hex(job.id);
  job.memory_bytes = 1;
  return job;
}

struct Times {
  std::vector<double> claim_ms;  // look, choose, claim
  std::vector<double> finish_ms;
  std::vector<double> submit_ms;
  int empty_handed = 0;
};

double Quantile(std::vector<double>& values, double q) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  return values[static_cast<size_t>(q *
                                    static_cast<double>(values.size() - 1))];
}

absl::Status Work(const Settings& settings, const std::string& name,
                  JobStore& store, absl::Time end, Times* times) {
  const JobLimits limits;
  const auto timed = [](std::vector<double>* into, const auto& step) {
    const absl::Time start = absl::Now();
    const absl::Status status = step();
    into->push_back(absl::ToDoubleMilliseconds(absl::Now() - start));
    return status;
  };
  while (absl::Now() < end) {
    std::optional<JobRecord> job;
    absl::Status status = timed(&times->claim_ms, [&]() -> absl::Status {
      auto line = store.GetLine(16);
      if (!line.ok()) return line.status();
      JobStore::ClaimRequest request{.server_id = name,
                                     .lease = absl::Minutes(1)};
      const SchedulerState state{.free_memory_bytes = 1,
                                 .owners = line->owners};
      for (const size_t index :
           PickNext(line->waiting, state, line->now, limits, 16)) {
        request.offers.push_back({line->waiting[index].id, 0});
      }
      auto claimed = store.Claim(request);
      if (!claimed.ok()) return claimed.status();
      job = *std::move(claimed);
      return absl::OkStatus();
    });
    if (!status.ok()) return status;
    if (!job.has_value()) {
      times->claim_ms.pop_back();
      ++times->empty_handed;
      continue;
    }
    status = timed(&times->finish_ms, [&] {
      return store.Finish(job->id, job->lease.fencing_token,
                          {.state = JobState::kFailed,
                           .error = absl::CancelledError("bench"),
                           .ttl = absl::Hours(1)});
    });
    if (!status.ok()) return status;
    status = timed(&times->submit_ms, [&] {
      auto made = store.Insert(NewJob(settings), absl::Hours(1), kLimits);
      if (made.ok() && made->full != JobStore::Full::kNo) {
        return absl::InternalError("refused below the limit");
      }
      return made.status();
    });
    if (!status.ok()) return status;
  }
  return absl::OkStatus();
}

absl::Status Run(const Settings& settings) {
  auto first = Open(settings.where);
  if (!first.ok()) return first.status();
  const auto count = first->store->Count(std::nullopt);
  if (!count.ok()) return count.status();
  for (int i = count->queued; i < settings.queued; ++i) {
    const auto made = first->store->Insert(NewJob(settings), absl::Hours(1));
    if (!made.ok()) return made.status();
  }
  std::vector<Server> servers;
  for (int i = 0; i < settings.servers; ++i) {
    auto server = Open(settings.where);
    if (!server.ok()) return server.status();
    servers.push_back(*std::move(server));
  }
  std::vector<Times> times(servers.size());
  std::vector<absl::Status> ends(servers.size());
  std::vector<std::thread> threads;
  const absl::Time start = absl::Now();
  const absl::Time end = start + absl::Seconds(settings.seconds);
  for (size_t i = 0; i < servers.size(); ++i) {
    threads.emplace_back([&, i] {
      ends[i] = Work(settings, absl::StrCat("s", i), *servers[i].store, end,
                     &times[i]);
    });
  }
  for (std::thread& thread : threads) thread.join();
  const double took = absl::ToDoubleSeconds(absl::Now() - start);
  for (const absl::Status& status : ends) {
    if (!status.ok()) return status;
  }
  Times all;
  for (Times& some : times) {
    for (const auto part :
         {&Times::claim_ms, &Times::finish_ms, &Times::submit_ms}) {
      (all.*part).insert((all.*part).end(), (some.*part).begin(),
                         (some.*part).end());
    }
    all.empty_handed += some.empty_handed;
  }
  const auto after = first->store->Count(std::nullopt);
  if (!after.ok()) return after.status();
  // The line is as full as before, or something was lost.
  if (after->queued != std::max(count->queued, settings.queued) ||
      after->running != 0) {
    return absl::InternalError(absl::StrCat("the line has ", after->queued,
                                            " jobs, ", after->running, " run"));
  }
  absl::PrintF(
      "{\"queued\": %d, \"servers\": %d, \"jobs_per_second\": %.0f, "
      "\"operations_per_second\": %.0f, \"claim_ms_p50\": %.2f, "
      "\"claim_ms_p99\": %.2f, \"finish_ms_p50\": %.2f, "
      "\"submit_ms_p50\": %.2f, \"empty_handed\": %d}\n",
      settings.queued, settings.servers,
      static_cast<double>(all.claim_ms.size()) / took,
      3 * static_cast<double>(all.claim_ms.size()) / took,
      Quantile(all.claim_ms, 0.5), Quantile(all.claim_ms, 0.99),
      Quantile(all.finish_ms, 0.5), Quantile(all.submit_ms, 0.5),
      all.empty_handed);
  return absl::OkStatus();
}

int Main(int argc, char** argv) {
  Settings settings;
  bool good = argc >= 2 && argc % 2 == 0;
  if (good) settings.where = argv[1];
  for (int i = 2; good && i + 1 < argc; i += 2) {
    const std::string flag = argv[i];
    int* const value = flag == "--queued"    ? &settings.queued
                       : flag == "--servers" ? &settings.servers
                       : flag == "--seconds" ? &settings.seconds
                       : flag == "--owners"  ? &settings.owners
                                             : nullptr;
    good =
        value != nullptr && absl::SimpleAtoi(argv[i + 1], value) && *value > 0;
  }
  if (!good) {
    std::cerr << "usage: queue_bench FILE|URI [--queued N] [--servers N]"
                 " [--seconds S] [--owners N]\n";
    return 2;
  }
  const absl::Status status = Run(settings);
  if (status.ok()) return 0;
  std::cerr << "queue_bench: " << status.message() << "\n";
  return 1;
}

}  // namespace
}  // namespace ovpress

int main(int argc, char** argv) { return ovpress::Main(argc, argv); }
