// Command line flags of `compress` and `submit`: one definition for both.
#ifndef OVPRESS_CLIENT_CLI_OPTIONS_H_
#define OVPRESS_CLIENT_CLI_OPTIONS_H_

#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "core/engine/options.h"

namespace ovpress {

// Raw values as typed; ToOptions checks them.
struct CompressionFlags {
  std::string preset;
  std::string target_device;
  std::string mode = "int8_asym";
  std::string ratio;  // text: "1" and "1.0" differ in rt_info, as with NNCF
  int64_t group_size = 0;
  std::string backup_mode;
  bool all_layers = false;
  std::vector<std::string> ignored_names;
  std::vector<std::string> ignored_patterns;
  std::vector<std::string> ignored_types;
  bool allow_unmatched_ignored = false;
  std::string group_size_fallback = "error";
  int64_t min_adjusted_group_size = 32;
  std::string sensitivity_metric;
  std::string codebook_file;
  bool awq = false;
  bool awq_extended = false;
  bool allow_non_finite = false;

  // Set by Register; used to tell a given value from a default.
  CLI::Option* mode_option = nullptr;
  CLI::Option* group_size_option = nullptr;
  CLI::Option* all_layers_option = nullptr;
  CLI::Option* awq_option = nullptr;

  void Register(CLI::App* app);
  // Reads the codebook file if one is named. kInvalidArgument for values that
  // are wrong whatever the model. `codebook_bytes` gets the file's content.
  absl::StatusOr<CompressionOptions> ToOptions(
      std::string* codebook_bytes) const;
};

// The names that options of compress, submit and others take, by option, for
// completion in a shell.
std::map<std::string, std::vector<std::string>> CompressionValueNames();

// "256MiB", "2G", "1048576": bytes. Units are powers of 1024.
absl::StatusOr<uint64_t> ParseByteSize(const std::string& text);

}  // namespace ovpress

#endif  // OVPRESS_CLIENT_CLI_OPTIONS_H_
