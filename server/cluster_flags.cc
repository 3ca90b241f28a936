#include "server/cluster_flags.h"

#include <fcntl.h>
#include <limits.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <random>
#include <sstream>

#include "CLI/CLI.hpp"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "server/cluster/postgres_job_store.h"
#include "server/jobs/sqlite_job_store.h"

namespace ovpress {
namespace {

constexpr char kEnvironment[] = "OVPRESS_JOB_STORE";

// A name that stays with the data directory: the machine's, and a few random
// digits, for several servers may run on one machine.
absl::StatusOr<std::string> StoredServerId(const std::string& data_dir) {
  const std::string path = data_dir + "/server-id";
  std::string id;
  std::ifstream(path) >> id;
  if (!id.empty()) return id;
  char host[HOST_NAME_MAX + 1] = "";
  if (::gethostname(host, sizeof(host) - 1) != 0 || host[0] == '\0') {
    return absl::InternalError("this machine has no name; give --server-id");
  }
  std::random_device random;
  id = absl::StrCat(host, "-", absl::Hex(random(), absl::kZeroPad8));
  std::ofstream file(path);
  file << id << "\n";
  file.close();
  if (!file) {
    return absl::UnavailableError(absl::StrCat("cannot write ", path));
  }
  return id;
}

}  // namespace

void ClusterFlags::Register(CLI::App* app) {
  app->add_option("--job-store", job_store,
                  "Where the queue is: sqlite (a file in --data-dir), or "
                  "postgresql://USER@HOST:PORT/DATABASE for several servers; "
                  "also from the environment: OVPRESS_JOB_STORE, and what "
                  "libpq reads (PGPASSWORD, PGPASSFILE)")
      ->type_name("sqlite|URI")
      ->group("Several servers");
  app->add_option("--job-store-file", job_store_file,
                  "A file with the value of --job-store, which may hold a "
                  "password")
      ->type_name("FILE")
      ->group("Several servers");
  app->add_option("--server-id", server_id,
                  "Our name on a shared queue, different for each server and "
                  "the same after a restart; default: made once and kept in "
                  "--data-dir")
      ->type_name("NAME")
      ->group("Several servers");
  app->add_option("--database-connections", database_connections,
                  "Connections to PostgreSQL at most, and one more that "
                  "listens")
      ->check(CLI::Range(2, 200))
      ->capture_default_str()
      ->group("Several servers");
}

std::string Queue::MetricsText() const {
  if (pool == nullptr) return "";
  const PgPoolStats stats = pool->Stats();
  std::string text;
  const auto add = [&text](absl::string_view name, absl::string_view type,
                           absl::string_view help, uint64_t value) {
    absl::StrAppend(&text, "# HELP ", name, " ", help, "\n# TYPE ", name, " ",
                    type, "\n", name, " ", value, "\n");
  };
  add("ovpress_database_connections", "gauge", "Open connections",
      static_cast<uint64_t>(stats.open));
  add("ovpress_database_connections_busy", "gauge", "Of them, in use",
      static_cast<uint64_t>(stats.busy));
  add("ovpress_database_statements_total", "counter", "Statements sent",
      stats.statements);
  add("ovpress_database_retries_total", "counter",
      "Transactions and statements begun anew", stats.retries);
  add("ovpress_database_reconnects_total", "counter", "Connections lost",
      stats.reconnects);
  add("ovpress_database_failures_total", "counter",
      "Calls that the database did not answer in time", stats.failures);
  return text;
}

absl::StatusOr<Queue> OpenQueue(const ClusterFlags& flags,
                                const std::string& data_dir, Clock* clock) {
  std::string where = flags.job_store;
  if (!where.empty() && !flags.job_store_file.empty()) {
    return absl::InvalidArgumentError(
        "--job-store and --job-store-file: give one of them");
  }
  if (!flags.job_store_file.empty()) {
    std::ifstream file(flags.job_store_file);
    std::stringstream text;
    text << file.rdbuf();
    where = text.str();
    absl::StripAsciiWhitespace(&where);
    if (!file || where.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "--job-store-file ", flags.job_store_file, " cannot be read"));
    }
  } else if (where.empty()) {
    const char* environment = std::getenv(kEnvironment);
    where = environment != nullptr ? environment : "";
  } else if (PgHasPassword(where)) {
    return absl::InvalidArgumentError(
        "--job-store holds a password, which all users of this machine can "
        "read: put it into --job-store-file, OVPRESS_JOB_STORE, PGPASSWORD or "
        "PGPASSFILE");
  }
  Queue queue;
  if (where.empty() || where == "sqlite") {
    queue.server_id = "local";
    queue.description = absl::StrCat(data_dir, "/jobs.sqlite");
    OVPRESS_ASSIGN_OR_RETURN(
        queue.store,
        OpenSqliteJobStore({.path = queue.description, .clock = clock}));
    return queue;
  }
  queue.server_id = flags.server_id;
  if (queue.server_id.empty()) {
    OVPRESS_ASSIGN_OR_RETURN(queue.server_id, StoredServerId(data_dir));
  }
  OVPRESS_ASSIGN_OR_RETURN(
      queue.pool,
      PgPool::Create(
          {.conninfo = where,
           .application_name = absl::StrCat("ovpress ", queue.server_id),
           .max_connections = flags.database_connections}));
  OVPRESS_ASSIGN_OR_RETURN(queue.store, OpenPostgresJobStore(queue.pool.get()));
  queue.description =
      absl::StrCat("PostgreSQL ", PgDescribe(where), " as ", queue.server_id);
  return queue;
}

}  // namespace ovpress
