#include "server/cluster/pg.h"

#include <libpq-fe.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <random>
#include <thread>

#include "absl/strings/ascii.h"
#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/strip.h"
#include "core/base/check.h"
#include "core/base/mutex.h"
#include "core/base/patience.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

using Steady = std::chrono::steady_clock;

constexpr char kStateUrl[] = "ovpress/sqlstate";
constexpr char kUnknownUrl[] = "ovpress/outcome-unknown";

// Conflicts end when the other side commits; five rounds with jitter were
// enough for twenty writers of one row.
constexpr int kConflictRetries = 8;
// Beyond what PostgreSQL gives a statement: it answers by itself unless it, or
// the network, is gone.
constexpr absl::Duration kAnswerGrace = absl::Seconds(5);
// How long a server waits for another one's migration.
constexpr absl::Duration kMigrationWait = absl::Minutes(10);
constexpr absl::Duration kMigrationStatement = absl::Minutes(10);
// "ovpress", so that the lock is nobody else's.
constexpr int64_t kMigrationLock = 0x6f767072657373;
constexpr int kOldestServer = 120000;

Steady::time_point After(absl::Duration wait) {
  return Steady::now() + absl::ToChronoMilliseconds(wait);
}

// A wait that grows to one second; with jitter, so that servers which lost the
// database together do not come back together.
absl::Duration BackOff(int failures) {
  thread_local std::minstd_rand random(std::random_device{}());
  const absl::Duration longest = std::min(
      absl::Seconds(1), absl::Milliseconds(50) * (1 << std::min(failures, 5)));
  return longest * std::uniform_real_distribution<double>(0.5, 1)(random);
}

void Sleep(absl::Duration wait) {
  Patience::Sleep(absl::ToChronoMicroseconds(wait));
}

std::string Trimmed(const char* message) {
  // libpq ends its messages with a newline and may have several lines.
  std::string text(message != nullptr ? message : "");
  std::replace(text.begin(), text.end(), '\n', ' ');
  absl::StripAsciiWhitespace(&text);
  return text.empty() ? "no reason given" : text;
}

absl::Status GivenUp() {
  return absl::CancelledError("database: given up, it is not wanted any more");
}

absl::Status LostError(absl::string_view message) {
  return absl::UnavailableError(absl::StrCat("database: ", message));
}

absl::Status StateError(const PGresult* result) {
  const char* state = PQresultErrorField(result, PG_DIAG_SQLSTATE);
  // The primary message alone: details quote rows.
  const char* message = PQresultErrorField(result, PG_DIAG_MESSAGE_PRIMARY);
  const std::string sqlstate = state != nullptr ? state : "";
  absl::Status status(
      PgCode(sqlstate),
      absl::StrCat(
          "database: ",
          Trimmed(message != nullptr ? message : PQresultErrorMessage(result)),
          sqlstate.empty() ? "" : absl::StrCat(" (", sqlstate, ")")));
  if (!sqlstate.empty()) status.SetPayload(kStateUrl, absl::Cord(sqlstate));
  return status;
}

bool IsConflict(absl::string_view sqlstate) {
  return sqlstate == "40001" || sqlstate == "40P01";
}

absl::Status MarkUnknown(absl::Status status) {
  absl::Status marked(
      absl::StatusCode::kUnavailable,
      absl::StrCat(status.message(), "; it is not known whether it happened"));
  status.ForEachPayload([&](absl::string_view url, const absl::Cord& value) {
    marked.SetPayload(url, value);
  });
  marked.SetPayload(kUnknownUrl, absl::Cord("1"));
  return marked;
}

}  // namespace

// --- values and rows ---

PgValue::PgValue(int64_t number) : text_(absl::StrCat(number)) {}
PgValue::PgValue(bool truth) : text_(truth ? "t" : "f") {}
PgValue::PgValue(double number) : text_(absl::StrFormat("%.17g", number)) {}
PgValue::PgValue(absl::string_view text) : text_(text) {}

PgValue PgValue::Null() {
  PgValue value;
  value.null_ = true;
  return value;
}

PgValue PgValue::Bytes(absl::string_view bytes) {
  PgValue value;
  value.text_ = std::string(bytes);
  value.binary_ = true;
  return value;
}

PgValue PgValue::Array(const std::vector<std::string>& texts) {
  PgValue value;
  value.text_ = "{";
  for (const std::string& text : texts) {
    if (value.text_.size() > 1) value.text_ += ',';
    value.text_ += '"';
    for (const char c : text) {
      if (c == '"' || c == '\\') value.text_ += '\\';
      value.text_ += c;
    }
    value.text_ += '"';
  }
  value.text_ += '}';
  return value;
}

PgValue PgValue::Array(const std::vector<int64_t>& numbers) {
  PgValue value;
  value.text_ = "{";
  for (const int64_t number : numbers) {
    absl::StrAppend(&value.text_, value.text_.size() > 1 ? "," : "", number);
  }
  value.text_ += '}';
  return value;
}

namespace {
const PGresult* Result(const std::shared_ptr<void>& result) {
  return static_cast<const PGresult*>(result.get());
}
}  // namespace

int PgRows::size() const { return PQntuples(Result(result_)); }

bool PgRows::IsNull(int row, int column) const {
  OVPRESS_CHECK(row >= 0 && row < size());
  OVPRESS_CHECK(column >= 0 && column < PQnfields(Result(result_)));
  return PQgetisnull(Result(result_), row, column) != 0;
}

absl::string_view PgRows::Text(int row, int column) const {
  if (IsNull(row, column)) return "";
  return {PQgetvalue(Result(result_), row, column),
          static_cast<size_t>(PQgetlength(Result(result_), row, column))};
}

int64_t PgRows::Int(int row, int column) const {
  int64_t number = 0;
  OVPRESS_CHECK(absl::SimpleAtoi(Text(row, column), &number));
  return number;
}

double PgRows::Double(int row, int column) const {
  double number = 0;
  OVPRESS_CHECK(absl::SimpleAtod(Text(row, column), &number));
  return number;
}

bool PgRows::Bool(int row, int column) const {
  return Text(row, column) == "t";
}

std::string PgRows::Bytes(int row, int column) const {
  // bytea_output is hex by default, and set so for our sessions.
  absl::string_view text = Text(row, column);
  if (text.empty()) return "";
  OVPRESS_CHECK(absl::ConsumePrefix(&text, "\\x"));
  return absl::HexStringToBytes(text);
}

int64_t PgRows::affected() const {
  // PQcmdTuples() takes a pointer to what it only reads.
  int64_t count = 0;
  const char* text = PQcmdTuples(static_cast<PGresult*>(result_.get()));
  return absl::SimpleAtoi(text, &count) ? count : 0;
}

// --- errors ---

std::string PgSqlState(const absl::Status& status) {
  const absl::optional<absl::Cord> state = status.GetPayload(kStateUrl);
  return state.has_value() ? std::string(*state) : "";
}

absl::StatusCode PgCode(absl::string_view sqlstate) {
  using absl::StatusCode;
  struct Mapped {
    absl::string_view prefix;
    StatusCode code;
  };
  // The first that fits.
  static constexpr Mapped kCodes[] = {
      {"40", StatusCode::kUnavailable},        // conflicts, after retries
      {"08", StatusCode::kUnavailable},        // connection
      {"57", StatusCode::kUnavailable},        // shutdown, cancelled: time over
      {"55P03", StatusCode::kUnavailable},     // lock_timeout
      {"25P03", StatusCode::kUnavailable},     // idle in a transaction
      {"25P02", StatusCode::kInternal},        // went on after an error
      {"25006", StatusCode::kUnavailable},     // read-only: now a standby
      {"53300", StatusCode::kUnavailable},     // too many connections
      {"53", StatusCode::kResourceExhausted},  // disk, memory
      {"54", StatusCode::kResourceExhausted},  // PostgreSQL's own limits
      {"58", StatusCode::kUnavailable},        // I/O of the server
      {"23505", StatusCode::kAlreadyExists},
      {"28", StatusCode::kPermissionDenied},
      {"42501", StatusCode::kPermissionDenied},
      {"3D000", StatusCode::kFailedPrecondition},  // no such database
      {"22021", StatusCode::kInvalidArgument},     // no text in UTF-8
      {"22P05", StatusCode::kInvalidArgument},
      {"XX001", StatusCode::kDataLoss},
      {"XX002", StatusCode::kDataLoss},
  };
  if (sqlstate.empty()) return StatusCode::kUnavailable;
  for (const Mapped& mapped : kCodes) {
    if (absl::StartsWith(sqlstate, mapped.prefix)) return mapped.code;
  }
  return StatusCode::kInternal;
}

bool PgOutcomeUnknown(const absl::Status& status) {
  return status.GetPayload(kUnknownUrl).has_value();
}

// --- connections ---

namespace {

using ConninfoOptions =
    std::unique_ptr<PQconninfoOption, void (*)(PQconninfoOption*)>;

ConninfoOptions Parse(const std::string& conninfo) {
  char* error = nullptr;
  ConninfoOptions options(PQconninfoParse(conninfo.c_str(), &error),
                          PQconninfoFree);
  if (error != nullptr) PQfreemem(error);  // may quote a password
  return options;
}

}  // namespace

absl::Status PgCheckConninfo(const std::string& conninfo) {
  const ConninfoOptions options = Parse(conninfo);
  bool good = options != nullptr;
  for (const PQconninfoOption* option = options.get();
       good && option->keyword != nullptr; ++option) {
    // A password with an @ or : that is not written as %XX moves into host and
    // port, which libpq quotes in its errors.
    const absl::string_view keyword = option->keyword;
    const absl::string_view text = option->val != nullptr ? option->val : "";
    if (keyword == "host") good = text.find('@') == text.npos;
    if (keyword == "port") {
      good = text.find_first_not_of("0123456789,") == text.npos;
    }
  }
  if (good) return absl::OkStatus();
  return absl::InvalidArgumentError(
      "the address of the database cannot be read: write "
      "postgresql://user@host:5432/database or \"host=... dbname=... "
      "user=...\", with special characters of a URI as %XX");
}

bool PgHasPassword(const std::string& conninfo) {
  const ConninfoOptions options = Parse(conninfo);
  for (const PQconninfoOption* option = options.get();
       option != nullptr && option->keyword != nullptr; ++option) {
    const absl::string_view keyword = option->keyword;
    if ((keyword == "password" || keyword == "sslpassword") &&
        option->val != nullptr) {
      return true;
    }
  }
  return false;
}

std::string PgDescribe(const std::string& conninfo) {
  const ConninfoOptions options = Parse(conninfo);
  std::string text;
  for (const PQconninfoOption* option = options.get();
       option != nullptr && option->keyword != nullptr; ++option) {
    const absl::string_view keyword = option->keyword;
    if (option->val != nullptr &&
        (keyword == "host" || keyword == "hostaddr" || keyword == "port" ||
         keyword == "dbname" || keyword == "user" || keyword == "service" ||
         keyword == "sslmode")) {
      absl::StrAppend(&text, text.empty() ? "" : " ", keyword, "=",
                      option->val);
    }
  }
  return text.empty() ? "the default database" : text;
}

class PgConnection {
 public:
  static absl::StatusOr<std::unique_ptr<PgConnection>> Connect(
      const PgOptions& options) {
    const std::string timeout = absl::StrCat(
        std::max<int64_t>(2, absl::ToInt64Seconds(options.connect_timeout)));
    // What the address says wins over what stands before it.
    const char* const keywords[] = {"connect_timeout",
                                    "application_name",
                                    "keepalives_idle",
                                    "keepalives_interval",
                                    "keepalives_count",
                                    "tcp_user_timeout",
                                    "dbname",
                                    "client_encoding",
                                    nullptr};
    const char* const values[] = {
        timeout.c_str(), options.application_name.c_str(), "15",   "5",    "3",
        "15000",         options.conninfo.c_str(),         "UTF8", nullptr};
    auto connection = std::make_unique<PgConnection>();
    if (Patience::Stop() == nullptr || !Patience::Stop()->load()) {
      connection->raw_ = PQconnectdbParams(keywords, values, 1);
    } else {
      // Whoever waits is about to lose patience: look while it connects. (Not
      // always so, for then libpq has no time limit for each of several hosts.)
      connection->raw_ = PQconnectStartParams(keywords, values, 1);
      if (!connection->WaitForStart()) return GivenUp();
    }
    PGconn* const raw = connection->raw_;
    if (raw == nullptr) return absl::ResourceExhaustedError("out of memory");
    if (PQstatus(raw) != CONNECTION_OK) {
      return LostError(Trimmed(PQerrorMessage(raw)));
    }
    PQsetNoticeProcessor(
        raw, [](void*, const char*) {}, nullptr);
    if (PQserverVersion(raw) < kOldestServer) {
      return absl::FailedPreconditionError(absl::StrCat(
          "database: PostgreSQL ", PQserverVersion(raw) / 10000,
          " is too old, ", kOldestServer / 10000, " is needed at least"));
    }
    const char* encoding = PQparameterStatus(raw, "server_encoding");
    if (encoding == nullptr || absl::string_view(encoding) != "UTF8") {
      return absl::FailedPreconditionError(
          absl::StrCat("database: its encoding is ",
                       encoding != nullptr ? encoding : "unknown",
                       "; make one with ENCODING 'UTF8'"));
    }
    connection->answer_limit_ = options.statement_timeout + kAnswerGrace;
    OVPRESS_RETURN_IF_ERROR(
        connection
            ->Run("SELECT set_config('statement_timeout', $1, false),"
                  " set_config('idle_in_transaction_session_timeout', $2,"
                  " false),"
                  " set_config('default_transaction_isolation',"
                  " 'read committed', false),"
                  " set_config('TimeZone', 'UTC', false),"
                  " set_config('bytea_output', 'hex', false),"
                  " set_config('extra_float_digits', '3', false)",
                  {absl::StrCat(
                       absl::ToInt64Milliseconds(options.statement_timeout)),
                   absl::StrCat(absl::ToInt64Milliseconds(
                       options.idle_in_transaction_timeout))})
            .status());
    return connection;
  }
  PgConnection() = default;
  PgConnection(const PgConnection&) = delete;
  PgConnection& operator=(const PgConnection&) = delete;
  ~PgConnection() {
    if (raw_ != nullptr) PQfinish(raw_);
  }

  // Whether the other side still was there a moment ago: a server that stopped
  // has said so, or closed the socket.
  bool Alive() {
    if (lost_ || PQconsumeInput(raw_) == 0) return false;
    pollfd socket{.fd = PQsocket(raw_), .events = POLLIN, .revents = 0};
    // What is there to read after all was read is the end.
    return PQstatus(raw_) == CONNECTION_OK && ::poll(&socket, 1, 0) == 0;
  }
  bool lost() const { return lost_; }
  PGconn* raw() { return raw_; }
  void set_answer_limit(absl::Duration limit) { answer_limit_ = limit; }

  absl::StatusOr<PgRows> Run(const std::string& sql, const PgValues& values) {
    std::vector<const char*> texts;
    std::vector<int> lengths;
    std::vector<int> formats;
    for (const PgValue& value : values) {
      if (!value.binary_ && value.text_.find('\0') != std::string::npos) {
        return absl::InvalidArgumentError(
            "a text with a NUL byte cannot be stored");
      }
      texts.push_back(value.null_ ? nullptr : value.text_.c_str());
      lengths.push_back(static_cast<int>(value.text_.size()));
      formats.push_back(value.binary_ ? 1 : 0);
    }
    if (PQsendQueryParams(raw_, sql.c_str(), static_cast<int>(values.size()),
                          nullptr, texts.data(), lengths.data(), formats.data(),
                          0) == 0) {
      return Lost(Trimmed(PQerrorMessage(raw_)));
    }
    return Answer();
  }

  absl::Status Script(const std::string& sql) {
    if (PQsendQuery(raw_, sql.c_str()) == 0) {
      return Lost(Trimmed(PQerrorMessage(raw_)));
    }
    return Answer().status();
  }

 private:
  // Until the connection is made or has failed; false if patience is over.
  bool WaitForStart() {
    PostgresPollingStatusType next = PGRES_POLLING_WRITING;
    while (raw_ != nullptr && PQstatus(raw_) != CONNECTION_BAD &&
           next != PGRES_POLLING_OK && next != PGRES_POLLING_FAILED) {
      if (Patience::Over()) return false;
      pollfd socket{.fd = PQsocket(raw_),
                    .events = static_cast<int16_t>(
                        next == PGRES_POLLING_READING ? POLLIN : POLLOUT),
                    .revents = 0};
      if (::poll(&socket, 1, static_cast<int>(Patience::kLook.count())) > 0) {
        next = PQconnectPoll(raw_);
      }
    }
    return true;
  }

  absl::Status Lost(absl::string_view message) {
    lost_ = true;
    return LostError(message);
  }

  // Waits for all results of what was sent; returns the last one, or the first
  // error.
  absl::StatusOr<PgRows> Answer() {
    const Steady::time_point until = After(answer_limit_);
    PgRows rows;
    absl::Status error;
    while (true) {
      while (PQisBusy(raw_) != 0) {
        const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
            until - Steady::now());
        if (left.count() <= 0) {
          return Lost(absl::StrCat("no answer within ",
                                   absl::FormatDuration(answer_limit_)));
        }
        if (Patience::Over()) {
          lost_ = true;
          return GivenUp();
        }
        pollfd socket{.fd = PQsocket(raw_), .events = POLLIN, .revents = 0};
        // Part of what was sent may wait for room.
        const int unsent = PQflush(raw_);
        if (unsent < 0) return Lost(Trimmed(PQerrorMessage(raw_)));
        if (unsent > 0) socket.events |= POLLOUT;
        const int ready =
            ::poll(&socket, 1,
                   static_cast<int>(std::min<std::chrono::milliseconds>(
                                        left, Patience::kLook)
                                        .count()));
        if (ready < 0 && errno != EINTR) return Lost("poll failed");
        if (ready > 0 && PQconsumeInput(raw_) == 0) {
          return Lost(Trimmed(PQerrorMessage(raw_)));
        }
      }
      PGresult* const raw_result = PQgetResult(raw_);
      if (raw_result == nullptr) break;
      const std::shared_ptr<void> result(raw_result, [](void* used) {
        PQclear(static_cast<PGresult*>(used));
      });
      const ExecStatusType status = PQresultStatus(raw_result);
      if (status == PGRES_TUPLES_OK || status == PGRES_COMMAND_OK) {
        rows.result_ = result;
        continue;
      }
      if (error.ok()) error = StateError(raw_result);
      const char* severity =
          PQresultErrorField(raw_result, PG_DIAG_SEVERITY_NONLOCALIZED);
      if (PQstatus(raw_) == CONNECTION_BAD || severity == nullptr ||
          absl::string_view(severity) != "ERROR") {
        lost_ = true;
        if (error.code() == absl::StatusCode::kInternal) {
          error = LostError(error.message());
        }
      }
      // A server that became a standby answers reads and will for ever.
      if (PgSqlState(error) == "25006") lost_ = true;
      if (lost_) return error;
    }
    if (!error.ok()) return error;
    return rows;
  }

  PGconn* raw_ = nullptr;
  absl::Duration answer_limit_;
  bool lost_ = false;
};

namespace {

class Pool final : public PgPool {
 public:
  explicit Pool(PgOptions options) : options_(std::move(options)) {}

  absl::Status Start() {
    OVPRESS_RETURN_IF_ERROR(PgCheckConninfo(options_.conninfo));
    OVPRESS_ASSIGN_OR_RETURN(Borrowed connection,
                             Borrow(After(options_.wait_limit)));
    return absl::OkStatus();
  }

  absl::StatusOr<PgRows> Query(const std::string& sql, const PgValues& values,
                               Repeat repeat) override {
    const Steady::time_point until = After(options_.wait_limit);
    for (int conflicts = 0;;) {
      OVPRESS_ASSIGN_OR_RETURN(Borrowed connection, Borrow(until));
      ++statements_;
      absl::StatusOr<PgRows> rows = connection->Run(sql, values);
      if (rows.ok()) return rows;
      if (connection->lost()) {
        ++reconnects_;
        if (repeat == Repeat::kRepeatable && Steady::now() < until) {
          ++retries_;
          continue;
        }
        ++failures_;
        return repeat == Repeat::kRepeatable ? rows.status()
                                             : MarkUnknown(rows.status());
      }
      if (IsConflict(PgSqlState(rows.status())) &&
          conflicts < kConflictRetries) {
        connection.Return();
        ++retries_;
        Sleep(BackOff(conflicts++) / 10);
        continue;
      }
      if (absl::IsUnavailable(rows.status())) ++failures_;
      return rows;
    }
  }

  absl::Status Transaction(
      const std::function<absl::Status(PgSession&)>& body) override {
    const Steady::time_point until = After(options_.wait_limit);
    for (int conflicts = 0;;) {
      OVPRESS_ASSIGN_OR_RETURN(Borrowed connection, Borrow(until));
      Session session(connection.get(), &statements_,
                      options_.statement_timeout);
      absl::Status status = connection->Script("BEGIN");
      if (status.ok()) status = body(session);
      if (status.ok() && !session.failed()) {
        const absl::StatusOr<PgRows> done = connection->Run("COMMIT", {});
        connection->set_answer_limit(options_.statement_timeout + kAnswerGrace);
        if (done.ok()) return absl::OkStatus();
        status = done.status();
        if (connection->lost()) {
          ++reconnects_;
          ++failures_;
          return MarkUnknown(status);
        }
        session.Note(status);
      } else if (status.ok()) {
        status = absl::InternalError(
            "database: a transaction went on after a statement had failed");
      }
      // Nothing happened from here on.
      if (!connection->lost()) {
        connection->Script("ROLLBACK").IgnoreError();
        connection->set_answer_limit(options_.statement_timeout + kAnswerGrace);
      }
      if (connection->lost()) {
        ++reconnects_;
        if (!session.lost() && session.had_statement()) return status;
        if (Steady::now() < until) {
          ++retries_;
          continue;
        }
        ++failures_;
        return status;
      }
      if (session.conflict() && conflicts < kConflictRetries) {
        connection.Return();
        ++retries_;
        Sleep(BackOff(conflicts++) / 10);
        continue;
      }
      if (absl::IsUnavailable(status)) ++failures_;
      return status;
    }
  }

  PgPoolStats Stats() const override {
    PgPoolStats stats{.statements = statements_,
                      .retries = retries_,
                      .reconnects = reconnects_,
                      .failures = failures_};
    MutexLock lock(&mutex_);
    stats.open = open_;
    stats.busy = open_ - static_cast<int>(idle_.size());
    return stats;
  }
  const PgOptions& options() const override { return options_; }

 private:
  class Session final : public PgSession {
   public:
    Session(PgConnection* connection, std::atomic<uint64_t>* statements,
            absl::Duration /*timeout*/)
        : connection_(connection), statements_(statements) {}
    using PgSession::Query;
    absl::StatusOr<PgRows> Query(const std::string& sql,
                                 const PgValues& values) override {
      ++*statements_;
      had_statement_ = true;
      absl::StatusOr<PgRows> rows = connection_->Run(sql, values);
      if (!rows.ok()) Note(rows.status());
      return rows;
    }
    absl::Status Script(const std::string& sql) override {
      ++*statements_;
      had_statement_ = true;
      absl::Status status = connection_->Script(sql);
      if (!status.ok()) Note(status);
      return status;
    }
    absl::Status SetStatementTimeout(absl::Duration timeout) override {
      OVPRESS_RETURN_IF_ERROR(
          Query("SELECT set_config('statement_timeout', $1, true)",
                {absl::StrCat(absl::ToInt64Milliseconds(timeout))})
              .status());
      connection_->set_answer_limit(timeout + kAnswerGrace);
      return absl::OkStatus();
    }
    void Note(const absl::Status& status) {
      failed_ = true;
      if (IsConflict(PgSqlState(status))) conflict_ = true;
      if (connection_->lost()) lost_ = true;
    }
    bool failed() const { return failed_; }
    bool conflict() const { return conflict_; }
    bool lost() const { return lost_; }
    bool had_statement() const { return had_statement_; }

   private:
    PgConnection* const connection_;
    std::atomic<uint64_t>* const statements_;
    bool had_statement_ = false;
    bool failed_ = false;
    bool conflict_ = false;
    bool lost_ = false;
  };

  // A connection of the pool while it is used; comes back unless lost.
  class Borrowed {
   public:
    Borrowed(Pool* pool, std::unique_ptr<PgConnection> connection)
        : pool_(pool), connection_(std::move(connection)) {}
    Borrowed(Borrowed&&) = default;
    Borrowed& operator=(Borrowed&&) = delete;
    ~Borrowed() { Return(); }
    void Return() {
      if (connection_ == nullptr) return;
      if (connection_->lost()) connection_.reset();
      MutexLock lock(&pool_->mutex_);
      if (connection_ == nullptr) {
        --pool_->open_;
      } else {
        pool_->idle_.push_back(std::move(connection_));
      }
      pool_->freed_.Signal();
    }
    PgConnection* get() { return connection_.get(); }
    PgConnection* operator->() { return connection_.get(); }

   private:
    Pool* pool_;
    std::unique_ptr<PgConnection> connection_;
  };

  absl::StatusOr<Borrowed> Borrow(Steady::time_point until) {
    for (int failures = 0;; ++failures) {
      if (Patience::Over()) return GivenUp();
      std::unique_ptr<PgConnection> connection;
      {
        MutexLock lock(&mutex_);
        while (idle_.empty() && open_ >= options_.max_connections) {
          if (Patience::Over()) return GivenUp();
          if (!freed_.WaitUntil(&mutex_, Patience::Next(until)) &&
              Steady::now() >= until && idle_.empty() &&
              open_ >= options_.max_connections) {
            ++failures_;
            return LostError(absl::StrCat(
                "all ", options_.max_connections, " connections were busy for ",
                absl::FormatDuration(options_.wait_limit)));
          }
        }
        if (!idle_.empty()) {
          connection = std::move(idle_.back());
          idle_.pop_back();
        } else {
          ++open_;  // the place of the one to make
        }
      }
      if (connection != nullptr) {
        if (connection->Alive()) return Borrowed(this, std::move(connection));
        connection.reset();
        ++reconnects_;
      }
      absl::StatusOr<std::unique_ptr<PgConnection>> made =
          PgConnection::Connect(options_);
      if (made.ok()) return Borrowed(this, *std::move(made));
      {
        MutexLock lock(&mutex_);
        --open_;
        freed_.Signal();
      }
      const absl::Duration wait = BackOff(failures);
      if (!absl::IsUnavailable(made.status()) || After(wait) >= until) {
        ++failures_;
        return made.status();
      }
      Sleep(wait);
    }
  }

  const PgOptions options_;
  std::atomic<uint64_t> statements_{0};
  std::atomic<uint64_t> retries_{0};
  std::atomic<uint64_t> reconnects_{0};
  std::atomic<uint64_t> failures_{0};
  mutable Mutex mutex_;
  CondVar freed_;
  int open_ ABSL_GUARDED_BY(mutex_) = 0;  // idle ones included
  std::vector<std::unique_ptr<PgConnection>> idle_ ABSL_GUARDED_BY(mutex_);
};

class Listener final : public PgListener {
 public:
  explicit Listener(PgListenerOptions options) : options_(std::move(options)) {}
  ~Listener() override {
    stop_ = true;
    const uint64_t one = 1;
    if (wake_ >= 0) {
      [[maybe_unused]] const ssize_t written =
          ::write(wake_, &one, sizeof(one));
    }
    if (thread_.joinable()) thread_.join();
    if (wake_ >= 0) ::close(wake_);
  }

  absl::Status Start() {
    OVPRESS_RETURN_IF_ERROR(PgCheckConninfo(options_.connection.conninfo));
    for (const std::string& channel : options_.channels) {
      if (channel.empty() || channel.size() > 63 ||
          !std::all_of(channel.begin(), channel.end(), [](char c) {
            return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_';
          })) {
        return absl::InvalidArgumentError(absl::StrCat(
            "channel '", absl::CHexEscape(channel), "' must be [a-z0-9_]+"));
      }
    }
    wake_ = ::eventfd(0, EFD_CLOEXEC);
    if (wake_ < 0) return absl::ResourceExhaustedError("eventfd");
    thread_ = std::thread([this] { Listen(); });
    return absl::OkStatus();
  }

 private:
  // False if told to stop meanwhile.
  bool Pause(absl::Duration wait) {
    pollfd wake{.fd = wake_, .events = POLLIN, .revents = 0};
    ::poll(&wake, 1, static_cast<int>(absl::ToInt64Milliseconds(wait)));
    return !stop_;
  }

  void Listen() {
    for (int failures = 0; !stop_;) {
      absl::StatusOr<std::unique_ptr<PgConnection>> made =
          PgConnection::Connect(options_.connection);
      absl::Status status = made.status();
      for (const std::string& channel : options_.channels) {
        // An identifier cannot be a parameter; Start() checked it.
        if (status.ok()) {
          status = (*made)->Script(absl::StrCat("LISTEN \"", channel, "\""));
        }
      }
      if (!status.ok()) {
        if (!Pause(BackOff(failures++))) return;
        continue;
      }
      failures = 0;
      if (options_.on_connected) options_.on_connected();
      Follow(made->get());
    }
  }

  // Until the connection is lost or the end.
  void Follow(PgConnection* connection) {
    // Who is silent is asked: a connection that died without a word (a host
    // gone, a firewall) would look like one without news.
    constexpr absl::Duration kSilence = absl::Seconds(15);
    while (!stop_) {
      while (PGnotify* const raw = PQnotifies(connection->raw())) {
        const std::unique_ptr<PGnotify, void (*)(void*)> notify(raw, PQfreemem);
        if (options_.on_notify) {
          options_.on_notify(notify->relname, notify->extra);
        }
      }
      pollfd ready[2] = {
          {.fd = PQsocket(connection->raw()), .events = POLLIN, .revents = 0},
          {.fd = wake_, .events = POLLIN, .revents = 0}};
      const int count = ::poll(
          ready, 2, static_cast<int>(absl::ToInt64Milliseconds(kSilence)));
      if (stop_) return;
      if (count == 0 && !connection->Run("SELECT 1", {}).ok()) return;
      if (PQconsumeInput(connection->raw()) == 0 ||
          PQstatus(connection->raw()) != CONNECTION_OK) {
        return;
      }
    }
  }

  const PgListenerOptions options_;
  std::atomic<bool> stop_{false};
  int wake_ = -1;
  std::thread thread_;
};

}  // namespace

absl::StatusOr<std::unique_ptr<PgPool>> PgPool::Create(PgOptions options) {
  auto pool = std::make_unique<Pool>(std::move(options));
  OVPRESS_RETURN_IF_ERROR(pool->Start());
  return pool;
}

absl::StatusOr<std::unique_ptr<PgListener>> PgListener::Create(
    PgListenerOptions options) {
  auto listener = std::make_unique<Listener>(std::move(options));
  OVPRESS_RETURN_IF_ERROR(listener->Start());
  return listener;
}

// --- schema ---

absl::Status PgMigrate(PgPool* pool, const PgMigrations& migrations) {
  const int64_t known = static_cast<int64_t>(migrations.steps.size());
  return pool->Transaction([&](PgSession& session) -> absl::Status {
    OVPRESS_RETURN_IF_ERROR(session.SetStatementTimeout(kMigrationWait));
    OVPRESS_RETURN_IF_ERROR(
        session.Query("SELECT pg_advisory_xact_lock($1)", {kMigrationLock})
            .status());
    OVPRESS_RETURN_IF_ERROR(session.SetStatementTimeout(kMigrationStatement));
    OVPRESS_RETURN_IF_ERROR(
        session.Script("CREATE TABLE IF NOT EXISTS ovpress_schema("
                       "part text PRIMARY KEY, version bigint NOT NULL,"
                       " changed timestamptz NOT NULL DEFAULT now())"));
    OVPRESS_ASSIGN_OR_RETURN(
        const PgRows rows,
        session.Query("SELECT version FROM ovpress_schema WHERE part=$1",
                      {migrations.part}));
    const int64_t version = rows.empty() ? 0 : rows.Int(0, 0);
    if (version > known) {
      return absl::FailedPreconditionError(absl::StrCat(
          "the database has schema ", version, " of ", migrations.part,
          ", this program knows ", known,
          ": a newer ovpress was here; run that one, or another database"));
    }
    if (version == known) return absl::OkStatus();
    for (int64_t step = version; step < known; ++step) {
      OVPRESS_RETURN_IF_ERROR(
          session.Script(migrations.steps[static_cast<size_t>(step)]));
    }
    return session
        .Query(
            "INSERT INTO ovpress_schema(part, version) VALUES($1, $2)"
            " ON CONFLICT (part) DO UPDATE SET version=excluded.version,"
            " changed=now()",
            {migrations.part, known})
        .status();
  });
}

}  // namespace ovpress
