// The server's certificate, its key and the CA of clients, from PEM files.
#ifndef OVPRESS_SERVER_AUTH_CERTIFICATE_FILES_H_
#define OVPRESS_SERVER_AUTH_CERTIFICATE_FILES_H_

#include <string>

#include "absl/status/statusor.h"
#include "absl/time/time.h"

namespace ovpress {

struct CertificateFiles {
  std::string certificate;  // the server's first, then the chain
  std::string key;
  std::string client_ca;  // "": clients are not asked for certificates
};

struct CertificatePems {
  std::string certificate;
  std::string key;
  std::string client_ca;
  // Of the server's own certificate.
  absl::Time not_after;

  friend bool operator==(const CertificatePems&,
                         const CertificatePems&) = default;
};

// Reads and checks the files: they hold what they should, the key fits the
// certificate, and the certificate has not expired at `now`. Without these
// checks a half-written pair would end every handshake. kInvalidArgument,
// kNotFound..., naming the file.
absl::StatusOr<CertificatePems> LoadCertificates(const CertificateFiles& files,
                                                 absl::Time now);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_AUTH_CERTIFICATE_FILES_H_
