// A PostgreSQL of its own for a test program: started when first asked for,
// stopped at the end. Each test takes an empty schema of it.
#ifndef OVPRESS_TESTS_CLUSTER_TEMP_POSTGRES_H_
#define OVPRESS_TESTS_CLUSTER_TEMP_POSTGRES_H_

#include <string>

namespace ovpress::testing {

class TempPostgres {
 public:
  // The one of this program. Stops the process if it cannot be started.
  static TempPostgres& Get();

  // How to connect to a new, empty schema.
  std::string NewSchema();
  // `action`: stop, start, kill, pause, resume (see tests/cluster/postgres).
  void Do(const std::string& action);

 private:
  TempPostgres();
  ~TempPostgres();
  std::string folder_;
  std::string conninfo_;
  int schemas_ = 0;
};

}  // namespace ovpress::testing

#endif  // OVPRESS_TESTS_CLUSTER_TEMP_POSTGRES_H_
