// Who makes a call: the one place that turns a connection and its metadata into
// the owner that blobs, jobs, quotas and limits go by.
#ifndef OVPRESS_SERVER_RPC_IDENTITY_H_
#define OVPRESS_SERVER_RPC_IDENTITY_H_

#include <optional>

#include "absl/status/statusor.h"
#include "grpcpp/server_context.h"
#include "server/auth/access_control.h"
#include "server/auth/caller.h"
#include "server/jobs/job_manager.h"

namespace ovpress {

// What came with the call: its authorization metadata, and the names in the
// client certificate that TLS has verified.
Credentials CredentialsOf(const grpc::ServerContextBase& context);

// Asked once at the start of each call, before its request is looked at; an
// error ends the call (AccessControl::Admit). `access` null: everybody is the
// anonymous caller. Thread-safe.
absl::StatusOr<Caller> IdentifyCaller(AccessControl* access,
                                      const grpc::ServerContextBase& context,
                                      std::optional<Scope> needed);

// Whose jobs the caller sees: all of them for an admin.
inline JobManager::Owner JobsSeenBy(const Caller& caller) {
  if (caller.is_admin()) return std::nullopt;
  return caller.identity;
}

}  // namespace ovpress

#endif  // OVPRESS_SERVER_RPC_IDENTITY_H_
