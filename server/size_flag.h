// Flags that are sizes: 1048576, 64MiB, 2GB ...
#ifndef OVPRESS_SERVER_SIZE_FLAG_H_
#define OVPRESS_SERVER_SIZE_FLAG_H_

#include <cstdint>
#include <iterator>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"

namespace ovpress {

// "64MiB": exact, in the largest unit that makes it whole; 0 is "0".
inline std::string SizeText(uint64_t bytes) {
  const char* const units[] = {"", "KiB", "MiB", "GiB", "TiB"};
  size_t unit = 0;
  while (bytes > 0 && bytes % 1024 == 0 && unit + 1 < std::size(units)) {
    bytes /= 1024;
    ++unit;
  }
  return absl::StrCat(bytes, units[unit]);
}

// Its default, `*value`, is shown as SizeText().
inline CLI::Option* AddSizeFlag(CLI::App* app, const std::string& name,
                                uint64_t* value, const std::string& help) {
  return app->add_option(name, *value, help)
      ->transform(CLI::AsSizeValue(false).description(""))
      ->type_name("SIZE")
      ->default_str(SizeText(*value));
}

}  // namespace ovpress

#endif  // OVPRESS_SERVER_SIZE_FLAG_H_
