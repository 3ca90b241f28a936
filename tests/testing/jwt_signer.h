// Makes keys, JWKS texts and signed JWTs, right ones and wrong ones.
#ifndef OVPRESS_TESTS_TESTING_JWT_SIGNER_H_
#define OVPRESS_TESTS_TESTING_JWT_SIGNER_H_

#include <openssl/core_names.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/hmac.h>
#include <openssl/pem.h>
#include <openssl/rsa.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "server/auth/base64url.h"

namespace ovpress::testing_jwt {

// A key pair that signs as RS256, or as ES256 on the given curve.
class Signer {
 public:
  static Signer Rsa(int bits) {
    return Signer(EVP_RSA_gen(static_cast<unsigned>(bits)));
  }
  static Signer Ec(const char* curve = "P-256") {
    return Signer(EVP_EC_gen(curve));
  }

  bool is_rsa() const { return EVP_PKEY_is_a(key_.get(), "RSA") == 1; }

  // As JWK; `extra` is further members with a comma in front.
  std::string Jwk(const std::string& kid, const std::string& extra = "") const {
    const std::string head =
        absl::StrCat(R"({"kid":")", kid, R"(","use":"sig")", extra);
    if (is_rsa()) {
      return absl::StrCat(head, R"(,"kty":"RSA","n":")", Number("n"),
                          R"(","e":")", Number("e"), R"("})");
    }
    return absl::StrCat(head, R"(,"kty":"EC","crv":"P-256","x":")",
                        Number("qx", 32), R"(","y":")", Number("qy", 32),
                        R"("})");
  }
  // Base64url of a number of the key, with leading zeros up to `width`.
  std::string Number(const char* name, int width = 0) const {
    BIGNUM* value = nullptr;
    OVPRESS_CHECK(EVP_PKEY_get_bn_param(key_.get(), name, &value) == 1);
    const int size = std::max(width, BN_num_bytes(value));
    std::string bytes(static_cast<size_t>(size), '\0');
    BN_bn2binpad(value, reinterpret_cast<unsigned char*>(bytes.data()), size);
    BN_free(value);
    return EncodeBase64Url(bytes);
  }
  std::string PublicPem() const {
    BIO* out = BIO_new(BIO_s_mem());
    PEM_write_bio_PUBKEY(out, key_.get());
    char* data = nullptr;
    const long size = BIO_get_mem_data(out, &data);
    std::string pem(data, static_cast<size_t>(size));
    BIO_free(out);
    return pem;
  }

  // DER for EC, as OpenSSL makes it.
  std::string SignDer(const std::string& text) const {
    EVP_MD_CTX* context = EVP_MD_CTX_new();
    size_t size = 0;
    const auto* data = reinterpret_cast<const unsigned char*>(text.data());
    OVPRESS_CHECK(EVP_DigestSignInit(context, nullptr, EVP_sha256(), nullptr,
                                     key_.get()) == 1);
    OVPRESS_CHECK(EVP_DigestSign(context, nullptr, &size, data, text.size()) ==
                  1);
    std::string signature(size, '\0');
    OVPRESS_CHECK(
        EVP_DigestSign(context,
                       reinterpret_cast<unsigned char*>(signature.data()),
                       &size, data, text.size()) == 1);
    signature.resize(size);
    EVP_MD_CTX_free(context);
    return signature;
  }
  // R and S, `half` bytes each.
  std::string SignRaw(const std::string& text, int half = 32) const {
    const std::string der = SignDer(text);
    const auto* at = reinterpret_cast<const unsigned char*>(der.data());
    ECDSA_SIG* signature =
        d2i_ECDSA_SIG(nullptr, &at, static_cast<long>(der.size()));
    std::string raw(2 * static_cast<size_t>(half), '\0');
    auto* out = reinterpret_cast<unsigned char*>(raw.data());
    BN_bn2binpad(ECDSA_SIG_get0_r(signature), out, half);
    BN_bn2binpad(ECDSA_SIG_get0_s(signature), out + half, half);
    ECDSA_SIG_free(signature);
    return raw;
  }
  std::string Sign(const std::string& text) const {
    return is_rsa() ? SignDer(text) : SignRaw(text);
  }

  // header.claims.signature
  std::string Jwt(const std::string& header, const std::string& claims) const {
    const std::string text = Unsigned(header, claims);
    return absl::StrCat(text, ".", EncodeBase64Url(Sign(text)));
  }
  static std::string Unsigned(const std::string& header,
                              const std::string& claims) {
    return absl::StrCat(EncodeBase64Url(header), ".", EncodeBase64Url(claims));
  }

 private:
  explicit Signer(EVP_PKEY* key) : key_(key, EVP_PKEY_free) {
    OVPRESS_CHECK(key != nullptr);
  }
  std::shared_ptr<EVP_PKEY> key_;
};

inline std::string HmacSha256(const std::string& key, const std::string& text) {
  unsigned char out[32];
  unsigned size = 0;
  HMAC(EVP_sha256(), key.data(), static_cast<int>(key.size()),
       reinterpret_cast<const unsigned char*>(text.data()), text.size(), out,
       &size);
  return std::string(reinterpret_cast<const char*>(out), size);
}

inline std::string JwksOf(const std::vector<std::string>& keys) {
  std::string text = R"({"keys":[)";
  for (size_t i = 0; i < keys.size(); ++i) {
    absl::StrAppend(&text, i == 0 ? "" : ",", keys[i]);
  }
  return text + "]}";
}

}  // namespace ovpress::testing_jwt

#endif  // OVPRESS_TESTS_TESTING_JWT_SIGNER_H_
