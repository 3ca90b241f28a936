#include "server/auth/certificate_files.h"

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include <ctime>
#include <memory>

#include "absl/strings/str_cat.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"

namespace ovpress {
namespace {

// A bundle of all public CAs is 220 KB.
constexpr size_t kPemBytesMax = 4u << 20;

struct Deleter {
  void operator()(BIO* value) const { BIO_free(value); }
  void operator()(X509* value) const { X509_free(value); }
  void operator()(EVP_PKEY* value) const { EVP_PKEY_free(value); }
};
using X509Ptr = std::unique_ptr<X509, Deleter>;

std::unique_ptr<BIO, Deleter> Open(const std::string& pem) {
  return std::unique_ptr<BIO, Deleter>(
      BIO_new_mem_buf(pem.data(), static_cast<int>(pem.size())));
}

// An encrypted key must not make the process ask on a terminal.
int NoPassword(char*, int, int, void*) { return 0; }

absl::Status Bad(const std::string& path, absl::string_view what) {
  ERR_clear_error();
  return absl::InvalidArgumentError(absl::StrCat(path, ": ", what));
}

// How many certificates the text has; the first one in `first`.
int ReadCertificates(const std::string& pem, X509Ptr* first) {
  const auto in = Open(pem);
  int count = 0;
  while (true) {
    X509Ptr next(PEM_read_bio_X509(in.get(), nullptr, NoPassword, nullptr));
    if (next == nullptr) break;
    if (count++ == 0) *first = std::move(next);
  }
  ERR_clear_error();
  return count;
}

}  // namespace

absl::StatusOr<CertificatePems> LoadCertificates(const CertificateFiles& files,
                                                 absl::Time now) {
  CertificatePems pems;
  OVPRESS_ASSIGN_OR_RETURN(pems.certificate,
                           ReadSmallFile(files.certificate, kPemBytesMax));
  OVPRESS_ASSIGN_OR_RETURN(pems.key, ReadSmallFile(files.key, kPemBytesMax));
  X509Ptr certificate;
  if (ReadCertificates(pems.certificate, &certificate) == 0) {
    return Bad(files.certificate, "no PEM certificate in it");
  }
  const std::unique_ptr<EVP_PKEY, Deleter> key(PEM_read_bio_PrivateKey(
      Open(pems.key).get(), nullptr, NoPassword, nullptr));
  if (key == nullptr) {
    return Bad(files.key, "no PEM key without a password in it");
  }
  if (X509_check_private_key(certificate.get(), key.get()) != 1) {
    return Bad(files.key, absl::StrCat("is not the key of the certificate in ",
                                       files.certificate));
  }
  std::tm end{};
  if (ASN1_TIME_to_tm(X509_get0_notAfter(certificate.get()), &end) != 1) {
    return Bad(files.certificate, "its end date cannot be read");
  }
  pems.not_after = absl::FromTM(end, absl::UTCTimeZone());
  if (now >= pems.not_after) {
    return Bad(files.certificate,
               absl::StrCat("the certificate expired at ",
                            absl::FormatTime(absl::RFC3339_sec, pems.not_after,
                                             absl::UTCTimeZone())));
  }
  if (!files.client_ca.empty()) {
    OVPRESS_ASSIGN_OR_RETURN(pems.client_ca,
                             ReadSmallFile(files.client_ca, kPemBytesMax));
    X509Ptr ca;
    if (ReadCertificates(pems.client_ca, &ca) == 0) {
      return Bad(files.client_ca, "no PEM certificate in it");
    }
  }
  return pems;
}

}  // namespace ovpress
