// What is inside a model: weights, types, sizes, what is compressed already.
#ifndef OVPRESS_CLIENT_CLI_INSPECT_H_
#define OVPRESS_CLIENT_CLI_INSPECT_H_

#include <string>

#include "absl/status/statusor.h"

namespace ovpress {

// Text for people, or JSON. Reads the .xml only; the .bin beside it is checked
// for its size if it is there.
absl::StatusOr<std::string> InspectModel(const std::string& xml_path,
                                         bool json);

}  // namespace ovpress

#endif  // OVPRESS_CLIENT_CLI_INSPECT_H_
