// What decides who may call: token files, JWKS, quota files and JWTs. The first
// byte chooses; 'c' and 'h' are the claims and the header of a JWT that is then
// signed, or the signature would keep every input away from what reads them.
#include "core/base/sha256.h"
#include "server/auth/base64url.h"
#include "server/auth/jwk_set.h"
#include "server/auth/jwt.h"
#include "server/auth/quota_file.h"
#include "server/auth/token_file.h"
#include "tests/fuzz/input.h"
#include "tests/testing/jwt_signer.h"

namespace {

using ovpress::Caller;
using ovpress::testing_jwt::Signer;

constexpr size_t kMessageBytesMax = 4096;

// The text of a file is wrong, or of a token: never another code, never a
// message that quotes it at length.
void CheckError(const absl::Status& status, absl::StatusCode code) {
  OVPRESS_FUZZ_ASSERT(status.code() == code, status.ToString());
  OVPRESS_FUZZ_ASSERT(status.message().size() < kMessageBytesMax,
                      status.ToString());
}

void CheckTokenFile(absl::string_view text) {
  const auto table = ovpress::TokenTable::Parse(text);
  if (!table.ok()) {
    CheckError(table.status(), absl::StatusCode::kInvalidArgument);
    return;
  }
  const auto stranger = table->Find("no such token", absl::UnixEpoch());
  OVPRESS_FUZZ_ASSERT(!stranger.ok(), "a token out of nothing");
  // What is read can be added to, and then holds one more.
  ovpress::TokenEntry entry{
      .identity = "new",
      .sha256 = ovpress::Sha256Hex("the new one"),
      .scopes = ovpress::Scopes().With(ovpress::Scope::kRead)};
  const auto more = ovpress::AddTokenEntry(text, entry);
  if (!more.ok()) return;  // a full table
  const auto again = ovpress::TokenTable::Parse(*more);
  OVPRESS_FUZZ_ASSERT(again.ok(), again.status().ToString());
  OVPRESS_FUZZ_ASSERT(again->token_count() == table->token_count() + 1, *more);
  OVPRESS_FUZZ_ASSERT(again->Find("the new one", absl::UnixEpoch()).ok(),
                      *more);
}

void CheckKeys(absl::string_view text) {
  const auto keys = ovpress::JwkSet::Parse(text);
  if (!keys.ok()) {
    CheckError(keys.status(), absl::StatusCode::kInvalidArgument);
    return;
  }
  OVPRESS_FUZZ_ASSERT(keys->size() > 0, "no key");
  const auto* key = keys->Find("");
  OVPRESS_FUZZ_ASSERT((key != nullptr) == (keys->size() == 1), "which key?");
  if (key != nullptr) {
    OVPRESS_FUZZ_ASSERT(!key->Verify("text", std::string(64, '\1')), "forged");
  }
}

void CheckCaller(const absl::StatusOr<Caller>& caller) {
  if (!caller.ok()) {
    CheckError(caller.status(), absl::StatusCode::kUnauthenticated);
    return;
  }
  OVPRESS_FUZZ_ASSERT(caller->identity.substr(0, 4) == "jwt:",
                      caller->identity);
  OVPRESS_FUZZ_ASSERT(caller->identity.size() > 4, "a nameless caller");
  OVPRESS_FUZZ_ASSERT(ovpress::ValidateIdentity(caller->identity).ok(),
                      caller->identity);
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const Signer* const signer = new Signer(Signer::Ec());
  static const ovpress::JwkSet* const keys =
      new ovpress::JwkSet(*ovpress::JwkSet::Parse(
          ovpress::testing_jwt::JwksOf({signer->Jwk("k")})));
  const ovpress::JwtOptions options{.issuer = "i", .audience = "a"};
  const absl::Time now = absl::FromUnixSeconds(1000);
  ovpress::fuzz::Bytes input(data, size);
  const char kind = input.Take<char>();
  const std::string rest(input.Rest());
  switch (kind) {
    case 't':
      CheckTokenFile(rest);
      break;
    case 'k':
      CheckKeys(rest);
      break;
    case 'q': {
      const auto table = ovpress::ParseQuotaFile(rest);
      if (!table.ok()) {
        CheckError(table.status(), absl::StatusCode::kInvalidArgument);
        break;
      }
      for (const auto& [identity, quota] : *table) {
        OVPRESS_FUZZ_ASSERT(ovpress::ValidateIdentity(identity).ok(), identity);
        OVPRESS_FUZZ_ASSERT(quota.max_queued.value_or(0) >= 0, identity);
      }
      break;
    }
    case 'c':
      CheckCaller(
          ovpress::VerifyJwt(signer->Jwt(R"({"alg":"ES256","kid":"k"})", rest),
                             *keys, options, now));
      break;
    case 'h':
      CheckCaller(ovpress::VerifyJwt(
          signer->Jwt(rest, R"({"iss":"i","aud":"a","sub":"s","exp":2000})"),
          *keys, options, now));
      break;
    default: {
      // Nobody but the signer can make a token.
      const auto caller = ovpress::VerifyJwt(rest, *keys, options, now);
      OVPRESS_FUZZ_ASSERT(!caller.ok(), "forged");
      CheckError(caller.status(), absl::StatusCode::kUnauthenticated);
      const auto bytes = ovpress::DecodeBase64Url(rest);
      if (bytes.has_value()) {
        OVPRESS_FUZZ_ASSERT(ovpress::EncodeBase64Url(*bytes) == rest, rest);
      }
    }
  }
  return 0;
}
