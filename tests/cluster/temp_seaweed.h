// A SeaweedFS of its own for a test program: master, volume server, filer and
// S3 in one process, with keys, so that signatures are really checked. Started
// when first asked for, stopped at the end.
#ifndef OVPRESS_TESTS_CLUSTER_TEMP_SEAWEED_H_
#define OVPRESS_TESTS_CLUSTER_TEMP_SEAWEED_H_

#include <memory>
#include <string>

#include "server/cluster/s3_client.h"

namespace ovpress::testing {

class TempSeaweed {
 public:
  // The one of this program. Stops the process, with the reason, if it cannot
  // be started.
  static TempSeaweed& Get();

  S3ClientOptions Options() const;
  // A new bucket.
  std::string NewBucket();
  const std::string& endpoint() const { return endpoint_; }
  static constexpr char kKey[] = "ovpress-test";
  static constexpr char kSecret[] = "not/a+secret=";
  // SIGSTOP, SIGCONT, SIGKILL of the process; Start() after a kill.
  void Signal(int signal);
  void Start();

 private:
  TempSeaweed();
  ~TempSeaweed();
  std::string folder_;
  std::string endpoint_;
  int port_base_ = 0;
  int pid_ = -1;
  int buckets_ = 0;
};

}  // namespace ovpress::testing

#endif  // OVPRESS_TESTS_CLUSTER_TEMP_SEAWEED_H_
