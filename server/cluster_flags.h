// Flags of a server that shares its queue with others, and what they open.
#ifndef OVPRESS_SERVER_CLUSTER_FLAGS_H_
#define OVPRESS_SERVER_CLUSTER_FLAGS_H_

#include <memory>
#include <string>

#include "absl/status/statusor.h"
#include "server/cluster/pg.h"
#include "server/jobs/clock.h"
#include "server/jobs/job_store.h"

namespace CLI {
class App;
}

namespace ovpress {

struct ClusterFlags {
  std::string job_store;  // "": by the environment, else SQLite
  std::string job_store_file;
  std::string server_id;
  int database_connections = 8;

  void Register(CLI::App* app);
};

// The queue, and who we are to the other servers on it.
struct Queue {
  std::unique_ptr<PgPool> pool;  // null with SQLite; may serve others as well
  std::unique_ptr<JobStore> store;
  std::string server_id;
  std::string description;  // for the log; no secrets

  // Prometheus text about the database; "" with SQLite.
  std::string MetricsText() const;
};

// kInvalidArgument for flags that contradict each other, and for a password
// among the arguments, which every user of the machine can read.
absl::StatusOr<Queue> OpenQueue(const ClusterFlags& flags,
                                const std::string& data_dir, Clock* clock);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_FLAGS_H_
