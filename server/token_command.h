// `ovpress-server token new|hash`: makes entries of the token file.
#ifndef OVPRESS_SERVER_TOKEN_COMMAND_H_
#define OVPRESS_SERVER_TOKEN_COMMAND_H_

#include "CLI/CLI.hpp"

namespace ovpress {

// Adds the command; when it is given, parsing runs it and sets `exit_code`.
// Returns it, to ask whether it was.
CLI::App* RegisterTokenCommand(CLI::App* app, int* exit_code);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_TOKEN_COMMAND_H_
