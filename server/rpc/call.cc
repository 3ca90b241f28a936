#include "server/rpc/call.h"

#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "absl/strings/strip.h"

namespace ovpress {

absl::StatusOr<std::string> JobIdOf(const std::string& name) {
  absl::string_view id = name;
  if (!absl::ConsumePrefix(&id, "operations/") || id.size() != 32) {
    return absl::NotFoundError(absl::StrCat(
        "there is no operation '", absl::string_view(name).substr(0, 80),
        "'; names are operations/{32 hexadecimal digits}"));
  }
  return std::string(id);
}

}  // namespace ovpress
