// Whether an address stays within this machine.
#ifndef OVPRESS_CORE_BASE_LOOPBACK_H_
#define OVPRESS_CORE_BASE_LOOPBACK_H_

#include "absl/strings/string_view.h"

namespace ovpress {

// Whether "ADDR:PORT" (or "unix:PATH") is reached from, and reaches, this
// machine only: 127.0.0.0/8, ::1, localhost, a socket file. What cannot be told
// is not.
bool IsLoopbackAddress(absl::string_view address);

}  // namespace ovpress

#endif  // OVPRESS_CORE_BASE_LOOPBACK_H_
