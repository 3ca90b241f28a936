// Prints values as Python's str() and repr() do: NNCF stores its arguments in
// rt_info that way.
#ifndef OVPRESS_CORE_ENGINE_PYTHON_TEXT_H_
#define OVPRESS_CORE_ENGINE_PYTHON_TEXT_H_

#include <string>
#include <vector>

#include "absl/strings/string_view.h"

namespace ovpress {

// repr(float): shortest digits that give the value back; exponent form below
// 1e-4 and from 1e16 on; always with ".0" or an exponent.
std::string PythonFloat(double value);
// repr(str): single quotes unless the text has one and no double quote.
std::string PythonString(absl::string_view text);
// str(list of str): ['a', 'b'].
std::string PythonList(const std::vector<std::string>& items);
inline const char* PythonBool(bool value) { return value ? "True" : "False"; }

}  // namespace ovpress

#endif  // OVPRESS_CORE_ENGINE_PYTHON_TEXT_H_
