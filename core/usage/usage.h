// Man pages and shell completion, made from what a program tells CLI11, so that
// they cannot say anything else than --help does. Options and commands of the
// group "" are hidden from --help and from here.
#ifndef OVPRESS_CORE_USAGE_USAGE_H_
#define OVPRESS_CORE_USAGE_USAGE_H_

#include <map>
#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"

namespace ovpress {

// What a man page needs beside the definitions.
struct ManPageTexts {
  int section = 1;
  std::string version;  // "ovpress 0.1.0"
  std::string summary;  // half a sentence: what the program does
  // Sections after the options: title and paragraphs. A paragraph that starts
  // with a blank is shown as it is, for commands.
  std::vector<std::pair<std::string, std::vector<std::string>>> sections;
};

// The page in man(7) macros. Commands are sections of the one page.
std::string ManPage(const CLI::App& app, const ManPageTexts& texts);

enum class Shell { kBash, kZsh, kFish };

// The values that an option takes, by its long name: {"--mode", {"nf4", ...}}.
// Those of CLI::IsMember are found without.
using OptionValues = std::map<std::string, std::vector<std::string>>;

// A script to source in the shell. An option completes its values if they are
// known, file names if its type name says FILE, DIR or NAME.xml, else nothing.
std::string CompletionScript(const CLI::App& app, Shell shell,
                             const OptionValues& values);

}  // namespace ovpress

#endif  // OVPRESS_CORE_USAGE_USAGE_H_
