// Early return on errors, for functions that return absl::Status or
// absl::StatusOr<T>.
#ifndef OVPRESS_CORE_BASE_STATUS_MACROS_H_
#define OVPRESS_CORE_BASE_STATUS_MACROS_H_

#include <utility>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define OVPRESS_RETURN_IF_ERROR(expr)                                       \
  OVPRESS_RETURN_IF_ERROR_IMPL_(OVPRESS_CONCAT_(ovpress_status_, __LINE__), \
                                expr)
#define OVPRESS_RETURN_IF_ERROR_IMPL_(tmp, expr) \
  do {                                           \
    if (absl::Status tmp = (expr); !tmp.ok()) {  \
      return tmp;                                \
    }                                            \
  } while (false)

#define OVPRESS_CONCAT_INNER_(a, b) a##b
#define OVPRESS_CONCAT_(a, b) OVPRESS_CONCAT_INNER_(a, b)

// OVPRESS_ASSIGN_OR_RETURN(auto x, MakeX());
#define OVPRESS_ASSIGN_OR_RETURN(lhs, expr)                                   \
  OVPRESS_ASSIGN_OR_RETURN_IMPL_(OVPRESS_CONCAT_(ovpress_or_, __LINE__), lhs, \
                                 expr)
#define OVPRESS_ASSIGN_OR_RETURN_IMPL_(tmp, lhs, expr) \
  auto tmp = (expr);                                   \
  if (!tmp.ok()) return std::move(tmp).status();       \
  lhs = *std::move(tmp)

#endif  // OVPRESS_CORE_BASE_STATUS_MACROS_H_
