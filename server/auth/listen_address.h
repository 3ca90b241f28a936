// What an address to listen on can be reached from.
#ifndef OVPRESS_SERVER_AUTH_LISTEN_ADDRESS_H_
#define OVPRESS_SERVER_AUTH_LISTEN_ADDRESS_H_

#include "absl/strings/string_view.h"

namespace ovpress {

// Whether "ADDR:PORT" (or "unix:PATH") can be reached from this machine only:
// 127.0.0.0/8, ::1, localhost, a socket file. What cannot be told is not.
bool IsLoopbackAddress(absl::string_view address);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_LISTEN_ADDRESS_H_
