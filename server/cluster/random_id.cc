#include "server/cluster/random_id.h"

#include <openssl/rand.h>

#include "absl/strings/escaping.h"
#include "core/base/check.h"

namespace ovpress {

std::string RandomId() {
  unsigned char bytes[16];
  OVPRESS_CHECK(RAND_bytes(bytes, sizeof(bytes)) == 1);
  return absl::BytesToHexString(
      absl::string_view(reinterpret_cast<const char*>(bytes), sizeof(bytes)));
}

}  // namespace ovpress
