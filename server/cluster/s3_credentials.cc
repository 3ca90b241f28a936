#include "server/cluster/s3_credentials.h"

#include <sys/stat.h>

#include <cstdlib>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/time/clock.h"
#include "core/base/mutex.h"
#include "core/base/patience.h"
#include "core/base/status_macros.h"
#include "pugixml.hpp"

namespace ovpress {
namespace {

// Larger than any real one; a wrong path must not fill the memory.
constexpr uint64_t kMaxFileBytes = 1 << 20;

class StaticProvider final : public CredentialsProvider {
 public:
  explicit StaticProvider(S3Credentials credentials)
      : credentials_(std::move(credentials)) {}
  absl::StatusOr<S3Credentials> Get() override { return credentials_; }
  void Refused() override {}

 private:
  const S3Credentials credentials_;
};

std::optional<std::string> FromProcess(const char* name) {
  const char* const value = std::getenv(name);
  if (value == nullptr) return std::nullopt;
  return std::string(value);
}

class ChainProvider final : public CredentialsProvider {
 public:
  explicit ChainProvider(CredentialsOptions options)
      : options_(std::move(options)),
        http_(HttpClient::Create({.ca_file = options_.ca_file})) {
    if (!options_.environment) options_.environment = &FromProcess;
    if (!options_.now) options_.now = [] { return absl::Now(); };
  }

  absl::StatusOr<S3Credentials> Get() override {
    const std::string key = Variable("AWS_ACCESS_KEY_ID");
    const std::string secret = Variable("AWS_SECRET_ACCESS_KEY");
    if (!key.empty() && !secret.empty()) {
      return S3Credentials{.access_key_id = key,
                           .secret_access_key = secret,
                           .session_token = Variable("AWS_SESSION_TOKEN")};
    }
    // One at a time: the others want what this one fetches.
    MutexLock lock(&mutex_);
    const std::string token_file = Variable("AWS_WEB_IDENTITY_TOKEN_FILE");
    const std::string role = Variable("AWS_ROLE_ARN");
    if (!token_file.empty() && !role.empty()) {
      return WebIdentity(token_file, role);
    }
    return FromFile();
  }

  void Refused() override {
    MutexLock lock(&mutex_);
    bought_.reset();
    file_.reset();
  }

 private:
  std::string Variable(const char* name) const {
    return options_.environment(name).value_or("");
  }

  absl::StatusOr<S3Credentials> FromFile()
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    std::string path = Variable("AWS_SHARED_CREDENTIALS_FILE");
    if (path.empty()) path = Variable("HOME") + "/.aws/credentials";
    struct stat info {};
    if (::stat(path.c_str(), &info) != 0) {
      return absl::UnauthenticatedError(absl::StrCat(
          "no credentials for the object store: set AWS_ACCESS_KEY_ID and "
          "AWS_SECRET_ACCESS_KEY, or AWS_WEB_IDENTITY_TOKEN_FILE and "
          "AWS_ROLE_ARN, or write ",
          path));
    }
    const int64_t changed =
        int64_t{info.st_mtim.tv_sec} * 1'000'000'000 + info.st_mtim.tv_nsec;
    if (!file_.has_value() || file_changed_ != changed) {
      OVPRESS_ASSIGN_OR_RETURN(const std::string text,
                               ReadSmallFile(path, kMaxFileBytes));
      std::string profile = Variable("AWS_PROFILE");
      if (profile.empty()) profile = "default";
      absl::StatusOr<S3Credentials> found = ParseCredentialsFile(text, profile);
      if (!found.ok()) {
        return absl::UnauthenticatedError(
            absl::StrCat(path, ": ", found.status().message()));
      }
      file_ = *std::move(found);
      file_changed_ = changed;
    }
    return *file_;
  }

  absl::StatusOr<S3Credentials> WebIdentity(const std::string& token_file,
                                            const std::string& role)
      ABSL_EXCLUSIVE_LOCKS_REQUIRED(mutex_) {
    const absl::Time now = options_.now();
    if (bought_.has_value() &&
        now + options_.refresh_margin < bought_->expires) {
      return *bought_;
    }
    absl::StatusOr<S3Credentials> fresh = AskSts(token_file, role);
    if (fresh.ok()) {
      bought_ = *fresh;
      return fresh;
    }
    // Some minutes are left: an STS that is away now may be back by then.
    if (bought_.has_value() && now + absl::Seconds(30) < bought_->expires) {
      return *bought_;
    }
    return fresh.status();
  }

  absl::StatusOr<S3Credentials> AskSts(const std::string& token_file,
                                       const std::string& role) {
    // Kubernetes replaces the file long before the token ends: read each time.
    OVPRESS_ASSIGN_OR_RETURN(const std::string token,
                             ReadSmallFile(token_file, kMaxFileBytes));
    std::string session = Variable("AWS_ROLE_SESSION_NAME");
    if (session.empty()) session = "ovpress";
    std::string endpoint = options_.sts_endpoint;
    if (endpoint.empty()) endpoint = Variable("AWS_ENDPOINT_URL_STS");
    if (endpoint.empty()) {
      endpoint =
          absl::StrCat("https://sts.", options_.region, ".amazonaws.com");
    }
    const std::string form = CanonicalQuery(
        {{"Action", "AssumeRoleWithWebIdentity"},
         {"Version", "2011-06-15"},
         {"RoleArn", role},
         {"RoleSessionName", session},
         {"WebIdentityToken", std::string(absl::StripAsciiWhitespace(token))}});
    HttpRequest request;
    request.method = "POST";
    request.url = absl::StrCat(absl::StripSuffix(endpoint, "/"), "/");
    request.headers = {
        {"Content-Type", "application/x-www-form-urlencoded; charset=utf-8"}};
    request.body.bytes = AsBytes(form);
    HttpResponse response;
    for (int attempt = 0; attempt < 3; ++attempt) {
      if (attempt > 0) {
        Patience::Sleep(std::chrono::milliseconds(200 << attempt));
        if (Patience::Over()) {
          return absl::CancelledError("given up: it is not wanted any more");
        }
      }
      response = http_->Send(request);
      if (response.transport.ok() && response.status < 500) break;
    }
    if (!response.transport.ok()) {
      return absl::UnavailableError(absl::StrCat("STS at ", endpoint, ": ",
                                                 response.transport.message()));
    }
    pugi::xml_document document;
    document.load_buffer(response.text.data(), response.text.size());
    if (response.status != 200) {
      const pugi::xml_node error =
          document.child("ErrorResponse").child("Error");
      const std::string text =
          absl::StrCat("STS at ", endpoint, " answered ", response.status, " ",
                       error.child("Code").text().as_string(), " ",
                       error.child("Message").text().as_string());
      return response.status >= 500 ? absl::UnavailableError(text)
                                    : absl::UnauthenticatedError(text);
    }
    const pugi::xml_node node =
        document.child("AssumeRoleWithWebIdentityResponse")
            .child("AssumeRoleWithWebIdentityResult")
            .child("Credentials");
    S3Credentials credentials{
        .access_key_id = node.child("AccessKeyId").text().as_string(),
        .secret_access_key = node.child("SecretAccessKey").text().as_string(),
        .session_token = node.child("SessionToken").text().as_string()};
    std::string error;
    if (credentials.access_key_id.empty() ||
        credentials.secret_access_key.empty() ||
        !absl::ParseTime(absl::RFC3339_full,
                         node.child("Expiration").text().as_string(),
                         &credentials.expires, &error)) {
      return absl::UnauthenticatedError(absl::StrCat(
          "STS at ", endpoint, " answered 200 without usable credentials"));
    }
    return credentials;
  }

  CredentialsOptions options_;
  const std::unique_ptr<HttpClient> http_;
  Mutex mutex_;
  std::optional<S3Credentials> bought_ ABSL_GUARDED_BY(mutex_);
  std::optional<S3Credentials> file_ ABSL_GUARDED_BY(mutex_);
  int64_t file_changed_ ABSL_GUARDED_BY(mutex_) = 0;
};

}  // namespace

std::unique_ptr<CredentialsProvider> MakeCredentialsProvider(
    CredentialsOptions options) {
  return std::make_unique<ChainProvider>(std::move(options));
}

std::unique_ptr<CredentialsProvider> MakeStaticCredentials(
    S3Credentials credentials) {
  return std::make_unique<StaticProvider>(std::move(credentials));
}

absl::StatusOr<S3Credentials> ParseCredentialsFile(absl::string_view text,
                                                   absl::string_view profile) {
  S3Credentials found;
  bool here = false;
  bool seen = false;
  for (absl::string_view line : absl::StrSplit(text, '\n')) {
    line = absl::StripAsciiWhitespace(line);
    if (line.empty() || line[0] == '#' || line[0] == ';') continue;
    if (line.front() == '[' && line.back() == ']') {
      here = absl::StripAsciiWhitespace(line.substr(1, line.size() - 2)) ==
             profile;
      seen = seen || here;
      continue;
    }
    if (!here) continue;
    const std::pair<absl::string_view, absl::string_view> entry =
        absl::StrSplit(line, absl::MaxSplits('=', 1));
    const absl::string_view name = absl::StripAsciiWhitespace(entry.first);
    const std::string value(absl::StripAsciiWhitespace(entry.second));
    if (name == "aws_access_key_id") found.access_key_id = value;
    if (name == "aws_secret_access_key") found.secret_access_key = value;
    if (name == "aws_session_token") found.session_token = value;
  }
  if (!seen) {
    return absl::NotFoundError(absl::StrCat("there is no profile ", profile));
  }
  if (found.access_key_id.empty() || found.secret_access_key.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("profile ", profile,
                     " lacks aws_access_key_id or aws_secret_access_key"));
  }
  return found;
}

}  // namespace ovpress
