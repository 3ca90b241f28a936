#include "server/rpc/identity.h"

#include <string>
#include <vector>

#include "grpc/grpc_security_constants.h"
#include "grpcpp/security/auth_context.h"

namespace ovpress {
namespace {

std::vector<std::string> Names(const grpc::AuthContext& from,
                               const char* property) {
  std::vector<std::string> names;
  for (const grpc::string_ref& value : from.FindPropertyValues(property)) {
    names.emplace_back(value.data(), value.size());
  }
  return names;
}

}  // namespace

Credentials CredentialsOf(const grpc::ServerContextBase& context) {
  Credentials credentials;
  const auto [begin, end] =
      context.client_metadata().equal_range("authorization");
  for (auto it = begin; it != end; ++it) {
    credentials.authorization.emplace_back(it->second.data(),
                                           it->second.size());
  }
  const std::shared_ptr<const grpc::AuthContext> from = context.auth_context();
  if (from == nullptr || !from->IsPeerAuthenticated()) return credentials;
  credentials.certificate_uris = Names(*from, GRPC_PEER_URI_PROPERTY_NAME);
  credentials.certificate_dns = Names(*from, GRPC_PEER_DNS_PROPERTY_NAME);
  const std::vector<std::string> common =
      Names(*from, GRPC_X509_CN_PROPERTY_NAME);
  if (common.size() == 1) credentials.certificate_common_name = common.front();
  credentials.has_certificate =
      !from->FindPropertyValues(GRPC_X509_PEM_CERT_PROPERTY_NAME).empty();
  return credentials;
}

absl::StatusOr<Caller> IdentifyCaller(AccessControl* access,
                                      const grpc::ServerContextBase& context,
                                      std::optional<Scope> needed) {
  if (access == nullptr) return AnonymousCaller();
  return access->Admit(CredentialsOf(context), needed);
}

}  // namespace ovpress
