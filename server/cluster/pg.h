// PostgreSQL for several servers that share their state: a pool of connections
// over libpq, transactions that are retried where that is safe, migrations,
// notifications. Values always travel beside the statement, never inside it.
// Nothing throws; every failure is a status with the SQLSTATE as its payload.
#ifndef OVPRESS_SERVER_CLUSTER_PG_H_
#define OVPRESS_SERVER_CLUSTER_PG_H_

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"

namespace ovpress {

// --- values and rows ---

// One parameter: $1, $2 ... Its type is what the statement makes of it
// ("$1::bigint" where nothing else tells). Copies what it is given.
class PgValue {
 public:
  PgValue(int64_t number);                           // NOLINT(runtime/explicit)
  PgValue(int number) : PgValue(int64_t{number}) {}  // NOLINT
  PgValue(bool truth);                               // NOLINT
  PgValue(double number);                            // NOLINT
  // UTF-8 without NUL: PostgreSQL has no other text. A statement with another
  // one is kInvalidArgument.
  PgValue(absl::string_view text);  // NOLINT
  PgValue(const std::string& text)
      : PgValue(absl::string_view(text)) {}                        // NOLINT
  PgValue(const char* text) : PgValue(absl::string_view(text)) {}  // NOLINT
  static PgValue Null();
  static PgValue Bytes(absl::string_view bytes);  // bytea
  // text[]: "id = ANY($1::text[])".
  static PgValue Array(const std::vector<std::string>& texts);
  static PgValue Array(const std::vector<int64_t>& numbers);

 private:
  friend class PgConnection;
  PgValue() = default;
  std::string text_;
  bool null_ = false;
  bool binary_ = false;
};
using PgValues = std::vector<PgValue>;

// The answer to one statement. Asking for a row or column that is not there,
// or for a number in a text column, is a mistake of ours and stops the process.
class PgRows {
 public:
  PgRows() = default;
  int size() const;
  bool empty() const { return size() == 0; }
  bool IsNull(int row, int column) const;
  absl::string_view Text(int row, int column) const;  // lives as long as this
  int64_t Int(int row, int column) const;
  double Double(int row, int column) const;
  bool Bool(int row, int column) const;
  std::string Bytes(int row, int column) const;  // of a bytea column
  // Rows that an INSERT, UPDATE or DELETE touched.
  int64_t affected() const;

 private:
  friend class PgConnection;
  std::shared_ptr<void> result_;  // PGresult
};

// --- errors ---

// "40001"; empty if PostgreSQL did not say (a lost connection, say).
std::string PgSqlState(const absl::Status& status);
// SQLSTATE -> code:
//   kUnavailable        no connection, shutdown, too many connections, time
//                       over, lock not had, a standby after a failover,
//                       conflicts that outlived the retries
//   kResourceExhausted  disk or memory of the database
//   kAlreadyExists      a unique key is taken
//   kPermissionDenied   login or grants
//   kDataLoss           PostgreSQL found its own files damaged
//   kInvalidArgument    text that cannot be stored (NUL, no UTF-8)
//   kInternal           the rest: a statement of ours is wrong
absl::StatusCode PgCode(absl::string_view sqlstate);
// The end of a COMMIT or of a single statement was lost with its connection:
// it may have happened or not. (All other failures: it did not happen.)
bool PgOutcomeUnknown(const absl::Status& status);

// --- connections ---

struct PgOptions {
  // "postgresql://user@host:5432/db?sslmode=verify-full" or "host=... dbname=
  // ...": all that libpq takes, PGPASSWORD and PGPASSFILE included. Never
  // logged; use PgDescribe().
  std::string conninfo;
  std::string application_name = "ovpress";  // seen in pg_stat_activity
  // PostgreSQL's own limit is 100 for all servers together.
  int max_connections = 8;
  // One attempt to connect, each host.
  absl::Duration connect_timeout = absl::Seconds(5);
  // How long a call waits for a free connection or for a database that is
  // being restarted, in all; then kUnavailable. Between attempts the wait
  // grows from 50 ms to 1 s, with jitter.
  absl::Duration wait_limit = absl::Seconds(10);
  // What PostgreSQL gives one statement.
  absl::Duration statement_timeout = absl::Seconds(10);
  // A process that stops in the middle of a transaction (frozen, swapped out)
  // holds its row locks no longer than this.
  absl::Duration idle_in_transaction_timeout = absl::Seconds(5);
};

// kInvalidArgument if libpq cannot read it; the message quotes nothing of it.
absl::Status PgCheckConninfo(const std::string& conninfo);
// Whether it holds a password (and not only libpq's environment).
bool PgHasPassword(const std::string& conninfo);
// "host=db port=5432 dbname=ovpress user=x": for logs; no password.
std::string PgDescribe(const std::string& conninfo);

// What statements run on: inside PgPool::Transaction. Of one thread.
class PgSession {
 public:
  virtual ~PgSession() = default;
  virtual absl::StatusOr<PgRows> Query(const std::string& sql,
                                       const PgValues& values) = 0;
  absl::StatusOr<PgRows> Query(const std::string& sql) {
    return Query(sql, {});
  }
  // Several statements at once, which can have no values: for schemas.
  virtual absl::Status Script(const std::string& sql) = 0;
  // For the rest of the transaction, instead of options().statement_timeout.
  virtual absl::Status SetStatementTimeout(absl::Duration timeout) = 0;
};

struct PgPoolStats {
  int open = 0;             // connections
  int busy = 0;             // of them, in use
  uint64_t statements = 0;  // since the start
  uint64_t retries = 0;     // transactions begun anew
  uint64_t reconnects = 0;  // connections lost
  uint64_t failures = 0;    // calls that ended with kUnavailable
};

// Thread-safe. Calls block. Connections are made when needed and kept.
class PgPool {
 public:
  // Connects once, so that a wrong address is seen at the start: kUnavailable
  // after wait_limit, kInvalidArgument, kFailedPrecondition for a server older
  // than PostgreSQL 12.
  static absl::StatusOr<std::unique_ptr<PgPool>> Create(PgOptions options);
  // REQUIRES: no call is under way.
  virtual ~PgPool() = default;

  // One statement that is a transaction of its own. `repeatable`: running it
  // twice is as good as once (reads, DELETE, UPDATE to fixed values), so it is
  // run again after a lost connection; otherwise that is kUnavailable with
  // PgOutcomeUnknown(). Conflicts (40001, 40P01) are retried in any case.
  enum class Repeat { kNever, kRepeatable };
  virtual absl::StatusOr<PgRows> Query(const std::string& sql,
                                       const PgValues& values,
                                       Repeat repeat) = 0;
  absl::StatusOr<PgRows> Query(const std::string& sql, const PgValues& values) {
    return Query(sql, values, Repeat::kNever);
  }
  absl::StatusOr<PgRows> Read(const std::string& sql,
                              const PgValues& values = {}) {
    return Query(sql, values, Repeat::kRepeatable);
  }

  // Runs `body` between BEGIN and COMMIT (READ COMMITTED). Its error rolls
  // back and comes back as it is. `body` runs again, from the start, after
  // conflicts and after a connection lost before COMMIT, so it must set what
  // it returns anew each time. Do nothing slow in it.
  virtual absl::Status Transaction(
      const std::function<absl::Status(PgSession&)>& body) = 0;

  virtual PgPoolStats Stats() const = 0;
  virtual const PgOptions& options() const = 0;
};

// --- schema ---

// The steps of one part of the schema ("jobs", "blobs"), oldest first; step i
// leads to version i + 1. Steps are never edited once released, only added,
// and keep what programs of the version before need, so that servers can be
// exchanged one by one.
struct PgMigrations {
  std::string part;
  std::vector<std::string> steps;  // each one or more statements
};

// Brings the database to the last step, under a lock: servers that start at
// the same time on an empty database wait for each other. All or nothing.
// kFailedPrecondition if the database is ahead of `migrations`: a newer program
// was here.
absl::Status PgMigrate(PgPool* pool, const PgMigrations& migrations);

// --- notifications ---

// A connection of its own that listens, and its thread. Notifications sent
// while it was not connected are lost; therefore on_connected, after which the
// owner looks for itself.
struct PgListenerOptions {
  PgOptions connection;
  // Identifiers: [a-z0-9_]+. NOTIFY by "SELECT pg_notify($1, $2)"; it arrives
  // with the COMMIT, equal ones of a transaction once.
  std::vector<std::string> channels;
  // Both on the listener's thread; quick.
  std::function<void(absl::string_view channel, absl::string_view payload)>
      on_notify;
  std::function<void()> on_connected;
};
class PgListener {
 public:
  // Starts; does not wait for the connection. kInvalidArgument for a channel
  // that is no identifier.
  static absl::StatusOr<std::unique_ptr<PgListener>> Create(
      PgListenerOptions options);
  // Ends the thread; no callback runs after it.
  virtual ~PgListener() = default;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_PG_H_
