#include "tests/cluster/temp_postgres.h"

#include <libpq-fe.h>
#include <stdlib.h>

#include <cstdio>
#include <filesystem>

#include "core/base/check.h"

namespace ovpress::testing {

TempPostgres& TempPostgres::Get() {
  static TempPostgres postgres;
  return postgres;
}

TempPostgres::TempPostgres() {
  std::string pattern =
      std::filesystem::temp_directory_path() / "ovpress_pg_XXXXXX";
  OVPRESS_CHECK(::mkdtemp(pattern.data()) != nullptr);
  folder_ = pattern;
  Do("start");
}

TempPostgres::~TempPostgres() {
  Do("stop");
  std::filesystem::remove_all(folder_);
}

void TempPostgres::Do(const std::string& action) {
  // Crashes of PostgreSQL are tested, crashes of the machine are not.
  const std::string command = "OVPRESS_PG_SETTINGS='-c fsync=off' " +
                              std::string(OVPRESS_POSTGRES_SCRIPT) + " " +
                              action + " " + folder_;
  std::FILE* const pipe = ::popen(command.c_str(), "r");
  OVPRESS_CHECK(pipe != nullptr);
  char line[1024] = "";
  if (std::fgets(line, sizeof(line), pipe) != nullptr) {
    conninfo_ = line;
    conninfo_.pop_back();
  }
  OVPRESS_CHECK(::pclose(pipe) == 0);
}

std::string TempPostgres::NewSchema() {
  const std::string name = "test" + std::to_string(++schemas_);
  PGconn* const connection = PQconnectdb(conninfo_.c_str());
  PGresult* const result =
      PQexec(connection, ("CREATE SCHEMA " + name).c_str());
  OVPRESS_CHECK(PQresultStatus(result) == PGRES_COMMAND_OK);
  PQclear(result);
  PQfinish(connection);
  // Tests that make deadlocks do not want to wait a second for each.
  return conninfo_ + " options='-csearch_path=" + name +
         " -cdeadlock_timeout=20ms'";
}

}  // namespace ovpress::testing
