#include "server/token_command.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string>
#include <vector>

#include "absl/cleanup/cleanup.h"
#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"
#include "core/base/io.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "server/auth/json_fields.h"
#include "server/auth/token_file.h"

namespace ovpress {
namespace {

// A hash protects only what cannot be guessed. 128 random bits are 22
// characters of base64.
constexpr size_t kSecretBytesMin = 22;

struct TokenArgs {
  std::string file;
  std::string identity;
  std::vector<std::string> scopes = {"submit", "read"};
  double expires_days = 0;
  std::string comment;
};

absl::StatusOr<TokenEntry> MakeEntry(const TokenArgs& args,
                                     const std::string& token) {
  TokenEntry entry;
  OVPRESS_RETURN_IF_ERROR(ValidateIdentity(args.identity));
  OVPRESS_ASSIGN_OR_RETURN(entry.scopes, ParseScopes(args.scopes));
  entry.identity = args.identity;
  entry.sha256 = Sha256Hex(token);
  entry.comment = args.comment;
  if (args.expires_days > 0) {
    entry.expires = absl::Now() + absl::Hours(24) * args.expires_days;
  }
  return entry;
}

// The new text beside the file, then renamed: a running server reads all of it
// or what was there before.
absl::Status ReplaceFile(const std::string& path, const std::string& text,
                         mode_t mode) {
  const std::string temporary = path + ".tmp";
  const int fd =
      ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, mode);
  if (fd < 0) return ErrnoToStatus(errno, "cannot make " + temporary);
  const bool written = ::fchmod(fd, mode) == 0 &&
                       ::write(fd, text.data(), text.size()) ==
                           static_cast<ssize_t>(text.size()) &&
                       ::fsync(fd) == 0;
  const int error = errno;
  ::close(fd);
  if (!written) {
    ::unlink(temporary.c_str());
    return ErrnoToStatus(error, "writing " + temporary);
  }
  if (::rename(temporary.c_str(), path.c_str()) != 0) {
    return ErrnoToStatus(errno, "renaming to " + path);
  }
  return absl::OkStatus();
}

absl::Status AddToFile(const std::string& path, const TokenEntry& entry) {
  // Two of these commands at once must not lose an entry.
  std::string folder = std::filesystem::path(path).parent_path().string();
  if (folder.empty()) folder = ".";
  const int fd = ::open(folder.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (fd < 0) return ErrnoToStatus(errno, "cannot open " + folder);
  const absl::Cleanup close = [fd] { ::close(fd); };
  if (::flock(fd, LOCK_EX) != 0) {
    return ErrnoToStatus(errno, "cannot lock " + folder);
  }
  struct stat info {};
  const bool there = ::stat(path.c_str(), &info) == 0;
  std::string text;
  if (there) {
    OVPRESS_ASSIGN_OR_RETURN(text, ReadSmallFile(path, kConfigBytesMax));
  }
  OVPRESS_ASSIGN_OR_RETURN(const std::string more, AddTokenEntry(text, entry));
  return ReplaceFile(path, more, there ? (info.st_mode & 0777) : 0600);
}

absl::Status NewTokenCommand(const TokenArgs& args) {
  const std::string token = NewToken();
  OVPRESS_ASSIGN_OR_RETURN(const TokenEntry entry, MakeEntry(args, token));
  OVPRESS_RETURN_IF_ERROR(AddToFile(args.file, entry));
  std::cout << token << "\n";
  std::cerr << "ovpress-server: this is the only time the token is shown; "
            << args.file << " holds its hash\n";
  return absl::OkStatus();
}

absl::Status HashTokenCommand(const TokenArgs& args) {
  std::string line;
  std::getline(std::cin, line);
  const std::string token(absl::StripAsciiWhitespace(line));
  if (token.size() < kSecretBytesMin) {
    return absl::InvalidArgumentError(absl::StrCat(
        "a token of ", token.size(), " characters on standard input, at least ",
        kSecretBytesMin, " random ones are needed"));
  }
  OVPRESS_ASSIGN_OR_RETURN(const TokenEntry entry, MakeEntry(args, token));
  std::cout << FormatTokenEntry(entry) << "\n";
  return absl::OkStatus();
}

}  // namespace

CLI::App* RegisterTokenCommand(CLI::App* app, int* exit_code) {
  const auto args = std::make_shared<TokenArgs>();
  CLI::App* token =
      app->add_subcommand("token", "Make entries of the --token-file");
  token->configurable(false);
  token->require_subcommand(1);
  const auto add = [&](const char* name, const char* help, auto run) {
    CLI::App* command = token->add_subcommand(name, help);
    command->configurable(false);
    command
        ->add_option("--identity", args->identity,
                     "Whose token it is: the owner of jobs and uploads")
        ->required();
    command
        ->add_option("--scopes", args->scopes,
                     "What it allows: submit, read, admin")
        ->delimiter(',')
        ->check(CLI::IsMember({"submit", "read", "admin"}))
        ->capture_default_str();
    command
        ->add_option("--expires-days", args->expires_days,
                     "After so many days it is refused; 0: never")
        ->check(CLI::NonNegativeNumber)
        ->capture_default_str();
    command->add_option("--comment", args->comment, "Kept in the file");
    command->callback([args, run, exit_code] {
      const absl::Status status = run(*args);
      if (status.ok()) return;
      std::cerr << "ovpress-server: " << status.message() << "\n";
      *exit_code = 1;
    });
    return command;
  };
  add("new",
      "Print a new random token, and add its hash to a file that is made if "
      "it is not there",
      NewTokenCommand)
      ->add_option("--file", args->file, "The token file")
      ->required()
      ->type_name("FILE");
  add("hash", "Read a token from standard input and print its entry",
      HashTokenCommand);
  return token;
}

}  // namespace ovpress
