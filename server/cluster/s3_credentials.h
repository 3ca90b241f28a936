// Who we are to the object store: keys from the environment, from the shared
// credentials file, or bought from STS with the token that Kubernetes mounts
// into a pod (IAM roles for service accounts).
#ifndef OVPRESS_SERVER_CLUSTER_S3_CREDENTIALS_H_
#define OVPRESS_SERVER_CLUSTER_S3_CREDENTIALS_H_

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "server/cluster/http_client.h"
#include "server/cluster/sigv4.h"

namespace ovpress {

// Thread-safe.
class CredentialsProvider {
 public:
  virtual ~CredentialsProvider() = default;
  // Fresh for some minutes at least. kUnauthenticated if there are none,
  // kUnavailable if STS does not answer.
  virtual absl::StatusOr<S3Credentials> Get() = 0;
  // The store refused what Get() gave: the next Get() looks anew.
  virtual void Refused() = 0;
};

struct CredentialsOptions {
  // Reads one variable of the environment; nullopt if it is not set. Given so
  // that tests need not change the process's environment. Default: getenv.
  std::function<std::optional<std::string>(const char*)> environment;
  // For AssumeRoleWithWebIdentity; default: AWS_ENDPOINT_URL_STS, then
  // https://sts.{region}.amazonaws.com.
  std::string sts_endpoint;
  std::string region = "us-east-1";
  std::string ca_file;
  std::function<absl::Time()> now;  // default: absl::Now
  // Credentials of STS are renewed so long before they end.
  absl::Duration refresh_margin = absl::Minutes(5);
};

// In this order: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY
// (AWS_SESSION_TOKEN); AWS_WEB_IDENTITY_TOKEN_FILE with AWS_ROLE_ARN
// (AWS_ROLE_SESSION_NAME); the profile AWS_PROFILE (default "default") of
// AWS_SHARED_CREDENTIALS_FILE (default ~/.aws/credentials), read again when the
// file changes.
std::unique_ptr<CredentialsProvider> MakeCredentialsProvider(
    CredentialsOptions options);
std::unique_ptr<CredentialsProvider> MakeStaticCredentials(
    S3Credentials credentials);

// The profile of a credentials file's text. kNotFound, kInvalidArgument.
absl::StatusOr<S3Credentials> ParseCredentialsFile(absl::string_view text,
                                                   absl::string_view profile);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_CLUSTER_S3_CREDENTIALS_H_
