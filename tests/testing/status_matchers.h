// StatusIs(code, matcher of the message), for Status and StatusOr.
#ifndef OVPRESS_TESTS_TESTING_STATUS_MATCHERS_H_
#define OVPRESS_TESTS_TESTING_STATUS_MATCHERS_H_

#include <string>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "gmock/gmock.h"

namespace ovpress::testing {

inline const absl::Status& GetStatus(const absl::Status& status) {
  return status;
}
template <typename T>
const absl::Status& GetStatus(const absl::StatusOr<T>& status) {
  return status.status();
}

MATCHER_P2(StatusIs, code, message, "") {
  const absl::Status& status = GetStatus(arg);
  *result_listener << status.ToString();
  return status.code() == code &&
         ::testing::ExplainMatchResult(message, std::string(status.message()),
                                       result_listener);
}

}  // namespace ovpress::testing

#endif  // OVPRESS_TESTS_TESTING_STATUS_MATCHERS_H_
