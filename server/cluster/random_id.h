// Names that nobody else has.
#ifndef OVPRESS_SERVER_CLUSTER_RANDOM_ID_H_
#define OVPRESS_SERVER_CLUSTER_RANDOM_ID_H_

#include <string>

namespace ovpress {

// 32 hexadecimal digits from the system's random source.
std::string RandomId();

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_RANDOM_ID_H_
