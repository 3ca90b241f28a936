// What man pages and completion read from CLI11; internal to this folder.
#ifndef OVPRESS_CORE_USAGE_DEFINITIONS_H_
#define OVPRESS_CORE_USAGE_DEFINITIONS_H_

#include <string>
#include <utility>
#include <vector>

#include "CLI/CLI.hpp"

namespace ovpress::usage_internal {

inline std::vector<const CLI::Option*> VisibleOptions(const CLI::App& app) {
  return app.get_options(
      [](const CLI::Option* option) { return !option->get_group().empty(); });
}

inline std::vector<const CLI::App*> VisibleCommands(const CLI::App& app) {
  return app.get_subcommands([](const CLI::App* command) {
    return !command->get_group().empty() && !command->get_name().empty();
  });
}

// A command by the words that lead to it: {"token", "new"}; none for the
// program itself.
struct Place {
  std::vector<std::string> path;
  const CLI::App* app;
};

// The program, then each command before the commands below it.
inline std::vector<Place> PlacesBelow(
    const CLI::App& app, const std::vector<std::string>& path = {}) {
  std::vector<Place> places = {{path, &app}};
  for (const CLI::App* command : VisibleCommands(app)) {
    std::vector<std::string> longer = path;
    longer.push_back(command->get_name());
    for (Place& place : PlacesBelow(*command, longer)) {
      places.push_back(std::move(place));
    }
  }
  return places;
}

// Flags have a type's size, but expect no item.
inline bool TakesValue(const CLI::Option& option) {
  return option.get_items_expected_max() != 0;
}

// "-o", "--output".
inline std::vector<std::string> LongAndShortNames(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : option.get_snames()) {
    names.push_back("-" + name);
  }
  for (const std::string& name : option.get_lnames()) {
    names.push_back("--" + name);
  }
  return names;
}

}  // namespace ovpress::usage_internal

#endif  // OVPRESS_CORE_USAGE_DEFINITIONS_H_
