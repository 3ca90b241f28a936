// Base64url without padding (RFC 7515), strictly: one text for one value.
#ifndef OVPRESS_SERVER_AUTH_BASE64URL_H_
#define OVPRESS_SERVER_AUTH_BASE64URL_H_

#include <optional>
#include <string>

#include "absl/strings/string_view.h"

namespace ovpress {

std::string EncodeBase64Url(absl::string_view bytes);
// nullopt for padding, spaces, other characters, an impossible length, or bits
// after the last byte that are not 0.
std::optional<std::string> DecodeBase64Url(absl::string_view text);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_BASE64URL_H_
