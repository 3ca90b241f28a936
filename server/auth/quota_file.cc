#include "server/auth/quota_file.h"

#include <optional>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "server/auth/caller.h"
#include "server/auth/json_fields.h"

namespace ovpress {
namespace {

constexpr uint64_t kCountMax = 1'000'000;
constexpr double kRequestsMax = 1e6;

absl::StatusOr<OwnerQuota> ReadQuota(const nlohmann::json& value,
                                     std::string where) {
  OVPRESS_ASSIGN_OR_RETURN(JsonFields fields,
                           JsonFields::Create(value, std::move(where)));
  OwnerQuota quota;
  OVPRESS_ASSIGN_OR_RETURN(quota.max_bytes, fields.OptionalBytes("max_bytes"));
  const std::pair<const char*, std::optional<int>*> counts[] = {
      {"max_uploads", &quota.max_uploads},
      {"max_queued", &quota.max_queued},
      {"max_running", &quota.max_running},
      {"max_transfers", &quota.max_transfers},
      {"max_watchers", &quota.max_watchers}};
  for (const auto& [name, field] : counts) {
    OVPRESS_ASSIGN_OR_RETURN(const std::optional<uint64_t> count,
                             fields.OptionalCount(name, kCountMax));
    if (count.has_value()) *field = static_cast<int>(*count);
  }
  OVPRESS_ASSIGN_OR_RETURN(
      quota.max_requests,
      fields.OptionalNumber("max_requests_per_second", kRequestsMax));
  OVPRESS_RETURN_IF_ERROR(fields.Done());
  return quota;
}

}  // namespace

absl::StatusOr<QuotaTable> ParseQuotaFile(absl::string_view text) {
  OVPRESS_ASSIGN_OR_RETURN(const nlohmann::json root,
                           ParseJsonObject(text, "quotas"));
  OVPRESS_ASSIGN_OR_RETURN(JsonFields fields,
                           JsonFields::Create(root, "quotas"));
  OVPRESS_ASSIGN_OR_RETURN(const nlohmann::json* const identities,
                           fields.OptionalObject("identities"));
  OVPRESS_RETURN_IF_ERROR(fields.Done());
  QuotaTable table;
  if (identities == nullptr) return table;
  for (const auto& [identity, value] : identities->items()) {
    OVPRESS_RETURN_IF_ERROR(ValidateIdentity(identity));
    OVPRESS_ASSIGN_OR_RETURN(
        table[identity],
        ReadQuota(value, absl::StrCat("quotas: identity ", identity)));
  }
  return table;
}

}  // namespace ovpress
