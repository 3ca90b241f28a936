// What Prometheus sees. Labels come from small fixed sets: never a model's
// name, a job or a client.
#ifndef OVPRESS_SERVER_RPC_METRICS_H_
#define OVPRESS_SERVER_RPC_METRICS_H_

#include <functional>
#include <memory>
#include <string>

#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/job_manager.h"
#include "server/jobs/observer.h"

namespace ovpress {

// Thread-safe. Also writes the log lines that jobs and blobs report.
class Metrics : public Observer {
 public:
  static std::unique_ptr<Metrics> Create();

  // A finished call: "ovpress.v1.WeightCompression/CompressModel", "OK".
  virtual void OnRpc(absl::string_view method, absl::string_view code,
                     absl::Duration took) = 0;
  virtual void OnTransferBytes(bool upload, uint64_t bytes) = 0;
  virtual void OnTransfersActive(int change) = 0;
  // Certificates, tokens, keys and quotas were read again, or could not be.
  virtual void OnReload(bool ok) = 0;
  // When the certificate in use ends.
  virtual void SetCertificateEnd(absl::Time end) = 0;
  // The page in Prometheus' text format; gauges are read from the two.
  virtual std::string Page(JobManager* jobs, BlobStore* blobs) = 0;
};

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_METRICS_H_
