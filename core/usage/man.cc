#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/string_view.h"
#include "core/usage/definitions.h"
#include "core/usage/usage.h"

namespace ovpress {
namespace {

using usage_internal::LongAndShortNames;
using usage_internal::Place;
using usage_internal::PlacesBelow;
using usage_internal::TakesValue;
using usage_internal::VisibleOptions;

// A backslash and a dot at the start of a line are commands to roff; a plain
// "-" may be typeset as a hyphen, which cannot be copied into a shell.
std::string Escape(absl::string_view text) {
  std::string escaped =
      absl::StrReplaceAll(text, {{"\\", "\\e"}, {"-", "\\-"}});
  if (!escaped.empty() && (escaped[0] == '.' || escaped[0] == '\'')) {
    escaped.insert(0, "\\&");
  }
  return escaped;
}

std::string TypeOf(const CLI::Option& option) {
  return TakesValue(option) ? option.get_type_name() : "";
}

std::string OptionEntry(const CLI::Option& option) {
  std::vector<std::string> names;
  for (const std::string& name : LongAndShortNames(option)) {
    names.push_back(absl::StrCat("\\fB", Escape(name), "\\fR"));
  }
  std::string head = absl::StrJoin(names, ", ");
  if (names.empty()) {
    head = absl::StrCat("\\fI", Escape(TypeOf(option)), "\\fR");
  } else if (const std::string type = TypeOf(option); !type.empty()) {
    absl::StrAppend(&head, " \\fI", Escape(type), "\\fR");
  }
  std::string text = Escape(option.get_description());
  if (!text.empty() && text.back() != '.') text.push_back('.');
  if (option.get_required() && option.nonpositional()) {
    absl::StrAppend(&text, " Required.");
  }
  if (TakesValue(option) && !option.get_default_str().empty()) {
    absl::StrAppend(&text, " Default: ", Escape(option.get_default_str()), ".");
  }
  if (!option.get_envname().empty()) {
    absl::StrAppend(&text, " Environment: ", Escape(option.get_envname()), ".");
  }
  return absl::StrCat(".TP\n", head, "\n", text, "\n");
}

// All options of an app, by group in the order of --help.
std::string OptionEntries(const CLI::App& app) {
  const std::vector<const CLI::Option*> options = VisibleOptions(app);
  std::string page;
  for (const CLI::Option* option : options) {
    if (!option->nonpositional()) absl::StrAppend(&page, OptionEntry(*option));
  }
  for (const std::string& group : app.get_groups()) {
    for (const CLI::Option* option : options) {
      if (option->nonpositional() && option->get_group() == group) {
        absl::StrAppend(&page, OptionEntry(*option));
      }
    }
  }
  return page;
}

std::string Synopsis(const std::string& program, const CLI::App& app) {
  std::string line = absl::StrCat("\\fB", Escape(program), "\\fR");
  bool has_options = false;
  std::string positionals;
  for (const CLI::Option* option : VisibleOptions(app)) {
    if (option->nonpositional()) {
      has_options = true;
      continue;
    }
    const std::string name =
        absl::StrCat("\\fI", Escape(TypeOf(*option)), "\\fR");
    absl::StrAppend(
        &positionals, " ",
        option->get_required() ? name : absl::StrCat("[", name, "]"));
  }
  if (has_options) absl::StrAppend(&line, " [\\fIoptions\\fR]");
  return absl::StrCat(line, positionals);
}

// "ovpress-server token new".
std::string FullName(const std::string& program, const Place& place) {
  std::vector<std::string> words = place.path;
  words.insert(words.begin(), program);
  return absl::StrJoin(words, " ");
}

std::string Sections(const ManPageTexts& texts) {
  std::string page;
  for (const auto& [title, paragraphs] : texts.sections) {
    absl::StrAppend(&page, ".SH ", title, "\n");
    for (size_t i = 0; i < paragraphs.size(); ++i) {
      const absl::string_view text = paragraphs[i];
      if (absl::StartsWith(text, " ")) {
        absl::StrAppend(&page, ".PP\n.nf\n.RS 4\n",
                        Escape(absl::StripLeadingAsciiWhitespace(text)),
                        "\n.RE\n.fi\n");
      } else {
        absl::StrAppend(&page, i > 0 ? ".PP\n" : "", Escape(text), "\n");
      }
    }
  }
  return page;
}

}  // namespace

std::string ManPage(const CLI::App& app, const ManPageTexts& texts) {
  const std::string& program = app.get_name();
  const std::vector<Place> places = PlacesBelow(app);
  std::string page = absl::StrCat(
      ".TH ", absl::AsciiStrToUpper(program), " ", texts.section, " \"\" \"",
      Escape(texts.version), "\"\n.SH NAME\n", Escape(program), " \\- ",
      Escape(texts.summary), "\n.SH SYNOPSIS\n");
  bool first = true;
  for (const Place& place : places) {
    // What only leads to commands cannot be called.
    if (place.app->get_require_subcommand_min() > 0) continue;
    absl::StrAppend(&page, first ? "" : ".br\n",
                    Synopsis(FullName(program, place), *place.app), "\n");
    first = false;
  }
  absl::StrAppend(&page, ".SH DESCRIPTION\n", Escape(app.get_description()),
                  "\n");
  if (places.size() > 1) absl::StrAppend(&page, ".SH COMMANDS\n");
  for (const Place& place : places) {
    if (place.app == &app) continue;
    absl::StrAppend(&page, ".SS ", Escape(FullName(program, place)), "\n",
                    Escape(place.app->get_description()), ".\n",
                    OptionEntries(*place.app));
  }
  absl::StrAppend(&page, ".SH OPTIONS\n", OptionEntries(app), Sections(texts));
  return page;
}

}  // namespace ovpress
