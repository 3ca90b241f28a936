// Ctrl-C as a flag: the first SIGINT or SIGTERM asks for a clean stop, the
// second ends the process.
#ifndef OVPRESS_CLIENT_CLI_INTERRUPT_H_
#define OVPRESS_CLIENT_CLI_INTERRUPT_H_

#include <atomic>

namespace ovpress {

inline constexpr int kExitDone = 0;
inline constexpr int kExitFailed = 1;
inline constexpr int kExitUsage = 2;
inline constexpr int kExitInterrupted = 130;

// Installs the handlers once; the returned flag lives as long as the process.
const std::atomic<bool>& InterruptFlag();

}  // namespace ovpress

#endif  // OVPRESS_CLIENT_CLI_INTERRUPT_H_
