#include "server/auth/jwk_set.h"

#include <openssl/core_names.h>
#include <openssl/ecdsa.h>
#include <openssl/evp.h>
#include <openssl/param_build.h>

#include <algorithm>
#include <optional>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"
#include "server/auth/base64url.h"
#include "server/auth/json_fields.h"

namespace ovpress {
namespace {

using nlohmann::json;

// More keys than any issuer publishes; bounds the work at a reload.
constexpr size_t kKeysMax = 100;
constexpr int kRsaBitsMin = 2048;
// Time to verify grows with the square: 8192 bits take 0.4 ms.
constexpr int kRsaBitsMax = 8192;
constexpr size_t kEs256HalfBytes = 32;

template <typename T, void (*Free)(T*)>
struct OpenSslDeleter {
  void operator()(T* value) const { Free(value); }
};
template <typename T, void (*Free)(T*)>
using OpenSslPtr = std::unique_ptr<T, OpenSslDeleter<T, Free>>;
using KeyPtr = OpenSslPtr<EVP_PKEY, EVP_PKEY_free>;
using KeyContextPtr = OpenSslPtr<EVP_PKEY_CTX, EVP_PKEY_CTX_free>;
using DigestContextPtr = OpenSslPtr<EVP_MD_CTX, EVP_MD_CTX_free>;
using ParamBuilderPtr = OpenSslPtr<OSSL_PARAM_BLD, OSSL_PARAM_BLD_free>;
using ParamsPtr = OpenSslPtr<OSSL_PARAM, OSSL_PARAM_free>;
using BignumPtr = OpenSslPtr<BIGNUM, BN_free>;
using EcdsaSigPtr = OpenSslPtr<ECDSA_SIG, ECDSA_SIG_free>;

const unsigned char* Bytes(absl::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

BignumPtr ToBignum(absl::string_view bytes) {
  return BignumPtr(
      BN_bin2bn(Bytes(bytes), static_cast<int>(bytes.size()), nullptr));
}

// R || S, as JOSE has it, to the DER that OpenSSL reads; empty if it is none.
std::string EcdsaDer(absl::string_view raw) {
  if (raw.size() != 2 * kEs256HalfBytes) return "";
  BignumPtr r = ToBignum(raw.substr(0, kEs256HalfBytes));
  BignumPtr s = ToBignum(raw.substr(kEs256HalfBytes));
  const EcdsaSigPtr signature(ECDSA_SIG_new());
  if (r == nullptr || s == nullptr || signature == nullptr) return "";
  if (ECDSA_SIG_set0(signature.get(), r.get(), s.get()) != 1) return "";
  r.release();  // the signature owns both now
  s.release();
  unsigned char* der = nullptr;
  const int size = i2d_ECDSA_SIG(signature.get(), &der);
  if (size <= 0) return "";
  std::string text(reinterpret_cast<const char*>(der),
                   static_cast<size_t>(size));
  OPENSSL_free(der);
  return text;
}

class KeyImpl final : public VerificationKey {
 public:
  KeyImpl(JwtAlgorithm algorithm, std::string id, KeyPtr key)
      : algorithm_(algorithm), id_(std::move(id)), key_(std::move(key)) {}
  JwtAlgorithm algorithm() const override { return algorithm_; }
  const std::string& id() const override { return id_; }
  bool Verify(absl::string_view message,
              absl::string_view signature) const override {
    std::string der;
    if (algorithm_ == JwtAlgorithm::kEs256) {
      der = EcdsaDer(signature);
      if (der.empty()) return false;
      signature = der;
    }
    const DigestContextPtr context(EVP_MD_CTX_new());
    // For RSA the default padding is PKCS #1 v1.5, which is RS256's.
    return context != nullptr &&
           EVP_DigestVerifyInit(context.get(), nullptr, EVP_sha256(), nullptr,
                                key_.get()) == 1 &&
           EVP_DigestVerify(context.get(), Bytes(signature), signature.size(),
                            Bytes(message), message.size()) == 1;
  }

 private:
  const JwtAlgorithm algorithm_;
  const std::string id_;
  const KeyPtr key_;
};

KeyPtr MakeKey(const char* type, OSSL_PARAM_BLD* builder) {
  const ParamsPtr params(OSSL_PARAM_BLD_to_param(builder));
  const KeyContextPtr context(
      EVP_PKEY_CTX_new_from_name(nullptr, type, nullptr));
  EVP_PKEY* key = nullptr;
  if (params == nullptr || context == nullptr ||
      EVP_PKEY_fromdata_init(context.get()) != 1 ||
      EVP_PKEY_fromdata(context.get(), &key, EVP_PKEY_PUBLIC_KEY,
                        params.get()) != 1) {
    return nullptr;
  }
  KeyPtr result(key);
  const KeyContextPtr check(
      EVP_PKEY_CTX_new_from_pkey(nullptr, result.get(), nullptr));
  if (check == nullptr || EVP_PKEY_public_check(check.get()) != 1) {
    return nullptr;
  }
  return result;
}

absl::StatusOr<std::string> BinaryField(JsonFields& fields,
                                        absl::string_view name) {
  OVPRESS_ASSIGN_OR_RETURN(const std::string text, fields.String(name));
  std::optional<std::string> bytes = DecodeBase64Url(text);
  if (!bytes.has_value() || bytes->empty()) {
    return absl::InvalidArgumentError(absl::StrCat(
        fields.where(), ": ", name, " must be base64url without padding"));
  }
  return *std::move(bytes);
}

absl::StatusOr<KeyPtr> RsaKey(JsonFields& fields) {
  OVPRESS_ASSIGN_OR_RETURN(const std::string n, BinaryField(fields, "n"));
  OVPRESS_ASSIGN_OR_RETURN(const std::string e, BinaryField(fields, "e"));
  const BignumPtr modulus = ToBignum(n);
  const BignumPtr exponent = ToBignum(e);
  const auto bad = [&](absl::string_view what) {
    return absl::InvalidArgumentError(absl::StrCat(fields.where(), ": ", what));
  };
  if (modulus == nullptr || exponent == nullptr) return bad("no RSA key");
  const int bits = BN_num_bits(modulus.get());
  if (bits < kRsaBitsMin || bits > kRsaBitsMax) {
    return bad(absl::StrCat("RSA key of ", bits, " bits, must be ", kRsaBitsMin,
                            " to ", kRsaBitsMax));
  }
  // Real exponents are 3 or 65537; a long one only costs time.
  if (BN_num_bits(exponent.get()) > 32 || BN_is_one(exponent.get()) ||
      !BN_is_odd(exponent.get())) {
    return bad("the RSA exponent must be odd, above 1, of at most 32 bits");
  }
  const ParamBuilderPtr builder(OSSL_PARAM_BLD_new());
  if (builder == nullptr ||
      OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_N,
                             modulus.get()) != 1 ||
      OSSL_PARAM_BLD_push_BN(builder.get(), OSSL_PKEY_PARAM_RSA_E,
                             exponent.get()) != 1) {
    return bad("no RSA key");
  }
  KeyPtr key = MakeKey("RSA", builder.get());
  if (key == nullptr) return bad("no valid RSA key");
  return key;
}

absl::StatusOr<KeyPtr> EcKey(JsonFields& fields) {
  OVPRESS_ASSIGN_OR_RETURN(const std::string x, BinaryField(fields, "x"));
  OVPRESS_ASSIGN_OR_RETURN(const std::string y, BinaryField(fields, "y"));
  const auto bad = [&] {
    return absl::InvalidArgumentError(absl::StrCat(
        fields.where(), ": x and y must be 32 bytes each, a point of P-256"));
  };
  if (x.size() != kEs256HalfBytes || y.size() != kEs256HalfBytes) return bad();
  const std::string point = absl::StrCat("\x04", x, y);
  const ParamBuilderPtr builder(OSSL_PARAM_BLD_new());
  if (builder == nullptr ||
      OSSL_PARAM_BLD_push_utf8_string(builder.get(), OSSL_PKEY_PARAM_GROUP_NAME,
                                      "prime256v1", 0) != 1 ||
      OSSL_PARAM_BLD_push_octet_string(builder.get(), OSSL_PKEY_PARAM_PUB_KEY,
                                       point.data(), point.size()) != 1) {
    return bad();
  }
  KeyPtr key = MakeKey("EC", builder.get());
  if (key == nullptr) return bad();
  return key;
}

// nullptr: a key for something else.
absl::StatusOr<std::shared_ptr<const VerificationKey>> ReadKey(
    const json& value, const std::string& where) {
  // Unknown members are no error here: RFC 7517 wants them ignored.
  OVPRESS_ASSIGN_OR_RETURN(JsonFields fields, JsonFields::Create(value, where));
  OVPRESS_ASSIGN_OR_RETURN(const std::string kty, fields.String("kty"));
  OVPRESS_ASSIGN_OR_RETURN(const auto use, fields.OptionalString("use"));
  OVPRESS_ASSIGN_OR_RETURN(const auto alg, fields.OptionalString("alg"));
  OVPRESS_ASSIGN_OR_RETURN(const auto kid, fields.OptionalString("kid"));
  OVPRESS_ASSIGN_OR_RETURN(const json* const operations,
                           fields.OptionalArray("key_ops"));
  if (fields.Has("d") || fields.Has("k")) {
    return absl::InvalidArgumentError(absl::StrCat(
        where, ": holds a private or secret key; it must not be in this file"));
  }
  const bool rsa = kty == "RSA" && alg.value_or("RS256") == "RS256";
  bool ec = kty == "EC" && alg.value_or("ES256") == "ES256";
  if (ec) {
    OVPRESS_ASSIGN_OR_RETURN(const std::string curve, fields.String("crv"));
    ec = curve == "P-256";
  }
  if ((!rsa && !ec) || use.value_or("sig") != "sig" ||
      (operations != nullptr &&
       std::find(operations->begin(), operations->end(), "verify") ==
           operations->end())) {
    return nullptr;
  }
  OVPRESS_ASSIGN_OR_RETURN(KeyPtr key, rsa ? RsaKey(fields) : EcKey(fields));
  return std::make_shared<const KeyImpl>(
      rsa ? JwtAlgorithm::kRs256 : JwtAlgorithm::kEs256, kid.value_or(""),
      std::move(key));
}

}  // namespace

absl::StatusOr<JwkSet> JwkSet::Parse(absl::string_view text) {
  OVPRESS_ASSIGN_OR_RETURN(const json root, ParseJsonObject(text, "JWKS"));
  OVPRESS_ASSIGN_OR_RETURN(JsonFields fields, JsonFields::Create(root, "JWKS"));
  OVPRESS_ASSIGN_OR_RETURN(const json* const keys,
                           fields.OptionalArray("keys"));
  if (keys == nullptr || keys->size() > kKeysMax) {
    return absl::InvalidArgumentError(
        absl::StrCat("JWKS: keys must be there, a list of at most ", kKeysMax));
  }
  JwkSet set;
  std::set<std::string> ids;
  for (size_t i = 0; i < keys->size(); ++i) {
    const std::string where = absl::StrCat("JWKS: keys[", i, "]");
    OVPRESS_ASSIGN_OR_RETURN(std::shared_ptr<const VerificationKey> key,
                             ReadKey((*keys)[i], where));
    if (key == nullptr) {
      ++set.ignored_;
      continue;
    }
    if (!ids.insert(key->id()).second) {
      return absl::InvalidArgumentError(
          absl::StrCat(where, ": the same kid is there twice"));
    }
    set.keys_.push_back(std::move(key));
  }
  if (set.keys_.empty()) {
    return absl::InvalidArgumentError(
        "JWKS: no key for RS256 (RSA) or ES256 (EC, P-256) in it");
  }
  return set;
}

const VerificationKey* JwkSet::Find(absl::string_view kid) const {
  if (kid.empty()) return keys_.size() == 1 ? keys_[0].get() : nullptr;
  for (const auto& key : keys_) {
    if (key->id() == kid) return key.get();
  }
  return nullptr;
}

}  // namespace ovpress
