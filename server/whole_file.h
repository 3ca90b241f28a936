// Small files that others wait for.
#ifndef OVPRESS_SERVER_WHOLE_FILE_H_
#define OVPRESS_SERVER_WHOLE_FILE_H_

#include <filesystem>
#include <fstream>
#include <string>
#include <system_error>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"

namespace ovpress {

// Renamed into place: who sees it sees all of it. Not synced: it says what is
// so while this process lives.
inline absl::Status WriteWhole(const std::string& path,
                               const std::string& text) {
  const std::string temporary = path + ".tmp";
  std::ofstream out(temporary);
  out << text;
  out.close();
  std::error_code error;
  if (!out) {
    error = std::make_error_code(std::errc::io_error);
  } else {
    std::filesystem::rename(temporary, path, error);
  }
  if (!error) return absl::OkStatus();
  return absl::UnavailableError(
      absl::StrCat("cannot write ", path, ": ", error.message()));
}

}  // namespace ovpress

#endif  // OVPRESS_SERVER_WHOLE_FILE_H_
