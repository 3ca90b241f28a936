#include <algorithm>
#include <string>
#include <vector>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "absl/strings/string_view.h"
#include "core/usage/definitions.h"
#include "core/usage/usage.h"

namespace ovpress {
namespace {

using usage_internal::LongAndShortNames;
using usage_internal::Place;
using usage_internal::PlacesBelow;
using usage_internal::TakesValue;
using usage_internal::VisibleCommands;
using usage_internal::VisibleOptions;

bool TakesFile(const CLI::Option& option) {
  const std::string type = option.get_type_name();
  return absl::StrContains(type, "FILE") || absl::StrContains(type, "DIR") ||
         absl::EndsWith(type, ".xml");
}

bool Repeatable(const CLI::Option& option) {
  return option.get_items_expected_max() >=
         CLI::detail::expected_max_vector_size;
}

std::vector<std::string> ValuesOf(const CLI::Option& option,
                                  const OptionValues& values) {
  for (const std::string& name : option.get_lnames()) {
    if (const auto found = values.find("--" + name); found != values.end()) {
      return found->second;
    }
  }
  // CLI::IsMember describes itself as {a,b}.
  const std::string type = option.get_type_name();
  const size_t open = type.find('{');
  const size_t close = type.find('}', open);
  if (open == std::string::npos || close == std::string::npos) return {};
  return absl::StrSplit(type.substr(open + 1, close - open - 1), ',');
}

// A description as one line for a menu.
std::string Brief(absl::string_view description) {
  return std::string(description.substr(0, description.find_first_of(";:\n")));
}

// "_ovpress_server_token": a shell function's name.
std::string FunctionName(const CLI::App& app, const Place& place) {
  std::vector<std::string> words = place.path;
  words.insert(words.begin(), app.get_name());
  return absl::StrCat(
      "_", absl::StrReplaceAll(absl::StrJoin(words, "_"), {{"-", "_"}}));
}

std::vector<std::string> CommandNames(const CLI::App& app) {
  std::vector<std::string> names;
  for (const CLI::App* command : VisibleCommands(app)) {
    names.push_back(command->get_name());
  }
  return names;
}

std::string Bash(const CLI::App& app, const OptionValues& values) {
  const std::string function = FunctionName(app, {{}, &app});
  std::vector<std::string> commands;  // "'token new'", by all words
  std::string of_value;               // what follows an option
  std::string words;                  // what may stand anywhere else
  for (const Place& place : PlacesBelow(app)) {
    const std::string name = absl::StrJoin(place.path, " ");
    // One word: " compress", as nothing stands before it.
    if (!place.path.empty()) {
      commands.push_back(
          absl::StrCat("'", place.path.size() == 1 ? " " : "", name, "'"));
    }
    std::vector<std::string> names = CommandNames(*place.app);
    std::string positionals;
    for (const CLI::Option* option : VisibleOptions(*place.app)) {
      const std::vector<std::string> own = LongAndShortNames(*option);
      const std::vector<std::string> list = ValuesOf(*option, values);
      names.insert(names.end(), own.begin(), own.end());
      if (own.empty() && !list.empty()) {
        names.insert(names.end(), list.begin(), list.end());
      }
      if (own.empty() && TakesFile(*option)) positionals = " files=1";
      if (own.empty() || !TakesValue(*option)) continue;
      std::vector<std::string> patterns;
      for (const std::string& alias : own) {
        patterns.push_back(absl::StrCat("'", name, " ", alias, "'"));
      }
      absl::StrAppend(&of_value, "    ", absl::StrJoin(patterns, "|"), ") ");
      if (!list.empty()) {
        absl::StrAppend(&of_value, "words='", absl::StrJoin(list, " "),
                        "' value=1 ;;\n");
      } else if (TakesFile(*option)) {
        absl::StrAppend(&of_value, "return ;;\n");
      } else {
        absl::StrAppend(&of_value, "value=1 ;;\n");
      }
    }
    absl::StrAppend(&words, "      '", name, "')", positionals, " words='",
                    absl::StrJoin(names, " "), "' ;;\n");
  }
  const std::string find_command =
      commands.empty()
          ? ""
          : absl::StrCat(
                "  for ((i = 1; i < COMP_CWORD; i++)); do\n"
                "    case \"$command ${COMP_WORDS[i]}\" in\n      ",
                absl::StrJoin(commands, "|"),
                ") command=${command:+$command }${COMP_WORDS[i]} ;;\n"
                "    esac\n  done\n");
  return absl::StrCat(
      "# bash completion for ", app.get_name(), "\n", function, "() {\n",
      R"(  local current=${COMP_WORDS[COMP_CWORD]} option= command= words= value= files= i
  [ "$COMP_CWORD" -gt 1 ] && option=${COMP_WORDS[COMP_CWORD - 1]}
  # readline splits --option=value at the sign.
  if [ "$current" = = ]; then
    current=
  elif [ "$option" = = ] && [ "$COMP_CWORD" -gt 2 ]; then
    option=${COMP_WORDS[COMP_CWORD - 2]}
  fi
)",
      find_command,
      R"(  COMPREPLY=()
  # Left alone, an empty answer means file names.
  case "$command $option" in
)",
      of_value,
      R"(  esac
  if [ -z "$value" ]; then
    case $command in
)",
      words,
      R"(    esac
    if [ -n "$files" ] && [[ $current != -* ]]; then return; fi
  fi
  compopt +o default +o bashdefault 2>/dev/null
  mapfile -t COMPREPLY < <(compgen -W "$words" -- "$current")
}
complete -o bashdefault -o default -F )",
      function, " ", app.get_name(), "\n");
}

std::string ZshText(absl::string_view text) {
  return absl::StrReplaceAll(
      text, {{"'", "'\\''"}, {"[", "\\["}, {"]", "\\]"}, {":", "\\:"}});
}

std::string ZshAction(const CLI::Option& option, const OptionValues& values) {
  const std::vector<std::string> list = ValuesOf(option, values);
  std::string label = "value";
  if (TakesFile(option)) label = "file";
  std::string action = " ";
  if (!list.empty()) {
    action = absl::StrCat("(", absl::StrJoin(list, " "), ")");
  } else if (TakesFile(option)) {
    action = "_files";
  }
  return absl::StrCat(":", label, ":", action);
}

std::string ZshArguments(const CLI::App& place, const OptionValues& values,
                         absl::string_view indent) {
  std::string text;
  int position = 0;
  for (const CLI::Option* option : VisibleOptions(place)) {
    if (!option->nonpositional()) {
      absl::StrAppend(&text, " \\\n", indent, "'", ++position,
                      ZshAction(*option, values), "'");
      continue;
    }
    for (const std::string& name : LongAndShortNames(*option)) {
      const bool is_long = absl::StartsWith(name, "--");
      absl::StrAppend(
          &text, " \\\n", indent, "'", Repeatable(*option) ? "*" : "", name,
          TakesValue(*option) ? (is_long ? "=" : "+") : "", "[",
          ZshText(Brief(option->get_description())), "]",
          TakesValue(*option) ? ZshAction(*option, values) : "", "'");
    }
  }
  return text;
}

// One function for each place; those with commands call the functions below.
std::string ZshFunction(const CLI::App& app, const Place& place,
                        const OptionValues& values) {
  const std::string function = FunctionName(app, place);
  const std::vector<const CLI::App*> commands = VisibleCommands(*place.app);
  if (commands.empty()) {
    return absl::StrCat(function, "() {\n  _arguments",
                        ZshArguments(*place.app, values, "    "), "\n}\n");
  }
  std::string menu;
  std::string calls;
  for (const CLI::App* command : commands) {
    absl::StrAppend(&menu, "        '", command->get_name(), ":",
                    ZshText(Brief(command->get_description())), "'\n");
    absl::StrAppend(&calls, "        ", command->get_name(), ") ", function,
                    "_", absl::StrReplaceAll(command->get_name(), {{"-", "_"}}),
                    " ;;\n");
  }
  return absl::StrCat(function,
                      "() {\n  local state line\n  typeset -A opt_args\n"
                      "  _arguments -C",
                      ZshArguments(*place.app, values, "    "),
                      " \\\n    '1: :->command' \\\n    '*:: :->arguments'\n"
                      "  case $state in\n    command)\n"
                      "      local -a commands=(\n",
                      menu,
                      "      )\n      _describe command commands ;;\n"
                      "    arguments)\n      case $line[1] in\n",
                      calls, "      esac ;;\n  esac\n}\n");
}

std::string Zsh(const CLI::App& app, const OptionValues& values) {
  const std::string function = FunctionName(app, {{}, &app});
  std::string script = absl::StrCat("#compdef ", app.get_name(), "\n\n");
  for (const Place& place : PlacesBelow(app)) {
    absl::StrAppend(&script, ZshFunction(app, place, values), "\n");
  }
  // As a file in $fpath the whole file is the function; sourced, it only
  // registers itself.
  absl::StrAppend(&script, "if [ \"$funcstack[1]\" = ", function,
                  " ]; then\n  ", function, " \"$@\"\nelse\n  compdef ",
                  function, " ", app.get_name(), "\nfi\n");
  return script;
}

std::string FishText(absl::string_view text) {
  return absl::StrCat(
      "'", absl::StrReplaceAll(text, {{"\\", "\\\\"}, {"'", "\\'"}}), "'");
}

// The condition under which the words of a place are offered.
std::string FishCondition(const Place& place) {
  std::vector<std::string> conditions;
  for (const std::string& word : place.path) {
    conditions.push_back("__fish_seen_subcommand_from " + word);
  }
  const std::vector<std::string> below = CommandNames(*place.app);
  if (!below.empty()) {
    conditions.push_back(place.path.empty()
                             ? "__fish_use_subcommand"
                             : absl::StrCat("not __fish_seen_subcommand_from ",
                                            absl::StrJoin(below, " ")));
  }
  if (conditions.empty()) return "";
  return absl::StrCat(" -n '", absl::StrJoin(conditions, "; and "), "'");
}

std::string Fish(const CLI::App& app, const OptionValues& values) {
  const std::string start = absl::StrCat("complete -c ", app.get_name());
  std::string script = absl::StrCat("# fish completion for ", app.get_name(),
                                    "\n", start, " -f\n");
  for (const Place& place : PlacesBelow(app)) {
    const std::string where = FishCondition(place);
    for (const CLI::App* command : VisibleCommands(*place.app)) {
      absl::StrAppend(&script, start, where, " -a ", command->get_name(),
                      " -d ", FishText(Brief(command->get_description())),
                      "\n");
    }
    for (const CLI::Option* option : VisibleOptions(*place.app)) {
      const std::vector<std::string> list = ValuesOf(*option, values);
      absl::StrAppend(&script, start, where);
      for (const std::string& name : option->get_snames()) {
        absl::StrAppend(&script, " -s ", name);
      }
      for (const std::string& name : option->get_lnames()) {
        absl::StrAppend(&script, " -l ", name);
      }
      if (!list.empty()) {
        absl::StrAppend(&script, option->nonpositional() ? " -x" : "", " -a ",
                        FishText(absl::StrJoin(list, " ")));
      } else if (TakesFile(*option)) {
        absl::StrAppend(&script, option->nonpositional() ? " -r -F" : " -F");
      } else if (TakesValue(*option)) {
        absl::StrAppend(&script, option->nonpositional() ? " -x" : "");
      }
      absl::StrAppend(&script, " -d ",
                      FishText(Brief(option->get_description())), "\n");
    }
  }
  return script;
}

}  // namespace

std::string CompletionScript(const CLI::App& app, Shell shell,
                             const OptionValues& values) {
  switch (shell) {
    case Shell::kBash:
      return Bash(app, values);
    case Shell::kZsh:
      return Zsh(app, values);
    case Shell::kFish:
      return Fish(app, values);
  }
  return "";
}

}  // namespace ovpress
