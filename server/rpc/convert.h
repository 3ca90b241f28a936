// Between the wire and the server's own types.
#ifndef OVPRESS_SERVER_RPC_CONVERT_H_
#define OVPRESS_SERVER_RPC_CONVERT_H_

#include "absl/status/statusor.h"
#include "core/engine/compression.h"
#include "google/longrunning/operations.pb.h"
#include "ovpress/v1/compression.pb.h"
#include "server/jobs/blob_store.h"
#include "server/jobs/job.h"
#include "server/jobs/limits.h"

namespace ovpress {

// kInvalidArgument with the valid values for names that are unknown.
absl::StatusOr<CompressionOptions> OptionsFromProto(
    const v1::CompressionOptions& proto);
absl::StatusOr<JobSpec> SpecFromProto(const v1::CompressModelRequest& request,
                                      const std::string& owner);
// The rest of the spec, for which the store must be asked: what lies at
// `model_address`, and whether the result may go to `output_address`.
absl::Status ResolveAddresses(const v1::CompressModelRequest& request,
                              BlobStore* blobs, JobSpec* spec);
BlobRef RefFromProto(const v1::Blob& blob);
void RefToProto(const BlobRef& ref, v1::Blob* blob);
v1::CompressModelMetadata::Phase PhaseToProto(absl::string_view phase);
google::longrunning::Operation OperationFromView(const JobView& view);
v1::GetCapabilitiesResponse Capabilities(const TransferLimits& transfer,
                                         const StoreLimits& store,
                                         const JobLimits& jobs);
v1::EstimateCompressionResponse EstimateToProto(const Compression& compression,
                                                uint64_t memory_budget_bytes,
                                                bool summary_only,
                                                int max_plan_entries);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_CONVERT_H_
