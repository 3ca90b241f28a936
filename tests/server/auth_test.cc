// Tokens, JWTs, certificates, quotas and rates, without any network.
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <thread>

#include "core/base/loopback.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "server/auth/access_control.h"
#include "server/auth/base64url.h"
#include "server/auth/certificate_files.h"
#include "server/auth/json_fields.h"
#include "server/jobs/errors.h"
#include "tests/testing/jwt_signer.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

namespace fs = std::filesystem;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::StatusIs;
using testing_jwt::HmacSha256;
using testing_jwt::JwksOf;
using testing_jwt::Signer;

constexpr auto kInvalid = absl::StatusCode::kInvalidArgument;
constexpr auto kWho = absl::StatusCode::kUnauthenticated;

TEST(Base64UrlTest, OneTextForOneValue) {
  for (const std::string bytes : {"", "a", "ab", "abc", "\xff\xfe\xfd\xfc"}) {
    EXPECT_EQ(DecodeBase64Url(EncodeBase64Url(bytes)), bytes);
  }
  EXPECT_EQ(EncodeBase64Url("\xfb\xff"), "-_8");
  // Padding, the other alphabet, space, an impossible length, stray bits.
  for (const char* text :
       {"YQ==", "+/8", "YW Jj", "A", "YR", "YWJ", "-_9", "YQ\n"}) {
    EXPECT_FALSE(DecodeBase64Url(text).has_value()) << text;
  }
  EXPECT_EQ(DecodeBase64Url("YWI"), "ab");
}

TEST(JsonTest, IsStrict) {
  EXPECT_THAT(ParseJsonObject(R"({"a":1,"a":2})", "x"),
              StatusIs(kInvalid, HasSubstr("'a' is there twice")));
  EXPECT_TRUE(ParseJsonObject(R"({"a":{"b":1},"c":{"b":1}})", "x").ok());
  EXPECT_THAT(ParseJsonObject("[1]", "x"),
              StatusIs(kInvalid, HasSubstr("must be a JSON object")));
  EXPECT_THAT(ParseJsonObject(R"({"a":1} x)", "x"),
              StatusIs(kInvalid, HasSubstr("no JSON")));
  // A million levels must neither overflow the stack nor be built.
  EXPECT_THAT(ParseJsonObject(R"({"a":)" + std::string(1'000'000, '['), "x"),
              StatusIs(kInvalid, HasSubstr("nested deeper than 8")));
  EXPECT_THAT(ParseJsonObject("{\"a\":\"\xff\"}", "x"),
              StatusIs(kInvalid, HasSubstr("no JSON")));
}

// --- scopes and identities ---

TEST(ScopesTest, AdminStandsForAll) {
  const Scopes read = Scopes().With(Scope::kRead);
  EXPECT_TRUE(read.Allow(Scope::kRead));
  EXPECT_FALSE(read.Allow(Scope::kSubmit));
  EXPECT_FALSE(read.Allow(Scope::kAdmin));
  const Scopes admin = Scopes().With(Scope::kAdmin);
  EXPECT_TRUE(admin.Allow(Scope::kRead));
  EXPECT_TRUE(admin.Allow(Scope::kSubmit));
  EXPECT_FALSE(Scopes().Allow(Scope::kRead));
  EXPECT_THAT(ParseScope("Read"), StatusIs(kInvalid, HasSubstr("'Read'")));
}

TEST(IdentityTest, IsPrintable) {
  EXPECT_TRUE(ValidateIdentity("jwt:https://a/b|c@d").ok());
  EXPECT_TRUE(ValidateIdentity(std::string(256, 'a')).ok());
  for (const std::string& identity :
       {std::string(), std::string(257, 'a'), std::string("a b"),
        std::string("a\n"), std::string("a\0b", 3), std::string("\xc3\xa4"),
        std::string("a\"b"), std::string("a\\b")}) {
    EXPECT_THAT(ValidateIdentity(identity), StatusIs(kInvalid, HasSubstr("")));
  }
}

// --- the token file ---

// Of "secret".
constexpr char kHash[] =
    "2bb80d537b1da3e38bd30361aa855686bde0eacd7162fef6a25fe97bf527a25b";

std::string TokenFile(const std::string& entry) {
  return R"({"tokens":[)" + entry + "]}";
}
std::string Entry(const std::string& more = "") {
  return std::string(R"({"identity":"team-a","scopes":["read"],"sha256":")") +
         kHash + "\"" + more + "}";
}

TEST(TokenFileTest, FindsByHashAndEnds) {
  const auto table = TokenTable::Parse(
      TokenFile(Entry(R"(,"expires":"2030-01-01T00:00:00Z","comment":"ci")")));
  ASSERT_TRUE(table.ok()) << table.status();
  absl::Time end;
  std::string error;
  ASSERT_TRUE(absl::ParseTime(absl::RFC3339_full, "2030-01-01T00:00:00Z", &end,
                              &error));
  const auto caller = table->Find("secret", end - absl::Seconds(1));
  ASSERT_TRUE(caller.ok());
  EXPECT_EQ(caller->identity, "team-a");
  EXPECT_EQ(caller->scopes, Scopes().With(Scope::kRead));
  const auto late = table->Find("secret", end);
  EXPECT_THAT(late, StatusIs(kWho, HasSubstr("expired at 2030")));
  EXPECT_EQ(GetReason(late.status()), "TOKEN_EXPIRED");
  for (const std::string wrong : {"", "secre", "secret ", "Secret", kHash}) {
    const auto none = table->Find(wrong, end - absl::Seconds(1));
    EXPECT_THAT(none, StatusIs(kWho, "the bearer token is not known"));
    EXPECT_EQ(GetReason(none.status()), "BAD_TOKEN");
  }
}

TEST(TokenFileTest, ErrorsNameThePlace) {
  const auto expect = [](const std::string& text, const std::string& message) {
    EXPECT_THAT(TokenTable::Parse(text), StatusIs(kInvalid, HasSubstr(message)))
        << text;
  };
  expect("", "no JSON");
  expect(R"({"token":[]})", "unknown key 'token'; known are tokens");
  expect(R"({"tokens":{}})", "tokens must be a list");
  expect(TokenFile("1"), "tokens[0]: must be an object");
  expect(TokenFile(Entry(R"(,"Expires":"")")),
         "tokens[0]: unknown key 'Expires'");
  expect(TokenFile(Entry(R"(,"expires":"tomorrow")")),
         "tokens[0]: expires must be like");
  expect(TokenFile(Entry(R"(,"expires":1)")), "expires must be a string");
  expect(TokenFile(Entry() + "," + Entry()),
         "tokens[1]: the same sha256 is there twice");
  expect(TokenFile(R"({"identity":"a","scopes":[],"sha256":")" +
                   std::string(kHash) + "\"}"),
         "scopes must not be empty");
  expect(TokenFile(R"({"identity":"a","scopes":["write"],"sha256":")" +
                   std::string(kHash) + "\"}"),
         "tokens[0]: scope 'write' must be submit, read or admin");
  expect(TokenFile(R"({"identity":"a b","scopes":["read"],"sha256":")" +
                   std::string(kHash) + "\"}"),
         "tokens[0]: identity 'a b'");
  // The token itself in the place of its hash, and upper case.
  expect(TokenFile(R"({"identity":"a","scopes":["read"],"sha256":"secret"})"),
         "never the token itself");
  expect(TokenFile(R"({"identity":"a","scopes":["read"],"sha256":")" +
                   std::string(64, 'A') + "\"}"),
         "never the token itself");
  expect(R"({"identities":[{"identity":"cert:a"}]})",
         "identities[0]: scopes must be there");
  expect(R"({"identities":[{"identity":"c","scopes":["read"]},)"
         R"({"identity":"c","scopes":["read"]}]})",
         "identities[1]: the same identity");
}

TEST(TokenFileTest, NewTokensAreLongAndTheirEntriesAreRead) {
  const std::string token = NewToken();
  EXPECT_EQ(token.size(), 4u + 43u);
  EXPECT_NE(token, NewToken());
  std::string text;
  for (const std::string& each : {token, NewToken()}) {
    const auto more =
        AddTokenEntry(text, {.identity = "team-a",
                             .sha256 = Sha256Hex(each),
                             .scopes = Scopes().With(Scope::kSubmit),
                             .expires = absl::UnixEpoch() + absl::Hours(1),
                             .comment = "quote \" and \xff"});
    ASSERT_TRUE(more.ok()) << more.status();
    EXPECT_THAT(*more, Not(HasSubstr(each)));
    text = *more;
  }
  const auto table = TokenTable::Parse(text);
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->token_count(), 2u);
  EXPECT_TRUE(table->Find(token, absl::UnixEpoch()).ok());
  EXPECT_FALSE(table->Find(token, absl::UnixEpoch() + absl::Hours(1)).ok());
  EXPECT_THAT(AddTokenEntry("{", {}), StatusIs(kInvalid, HasSubstr("no JSON")));
  EXPECT_THAT(AddTokenEntry("", {.identity = "a"}),
              StatusIs(kInvalid, HasSubstr("sha256")));
}

// --- JWKS ---

TEST(JwkSetTest, KeysForOtherThingsAreLeftOut) {
  const Signer rsa = Signer::Rsa(2048);
  const Signer ec = Signer::Ec();
  const auto set = JwkSet::Parse(
      JwksOf({rsa.Jwk("r", R"(,"x5t":"unknown members are fine")"), ec.Jwk("e"),
              R"({"kty":"OKP","crv":"Ed25519","x":"AA","kid":"o"})",
              R"({"kty":"EC","crv":"P-384","x":"AA","y":"AA","kid":"p384"})",
              R"({"kty":"RSA","alg":"RS512","n":"AA","e":"AQAB","kid":"r512"})",
              R"({"kty":"RSA","use":"enc","n":"AA","e":"AQAB","kid":"enc"})",
              R"({"kty":"RSA","key_ops":["encrypt"],"n":"AA","e":"AQAB"})"}));
  ASSERT_TRUE(set.ok()) << set.status();
  EXPECT_EQ(set->size(), 2u);
  EXPECT_EQ(set->ignored(), 5u);
  EXPECT_EQ(set->Find("r")->algorithm(), JwtAlgorithm::kRs256);
  EXPECT_EQ(set->Find("e")->algorithm(), JwtAlgorithm::kEs256);
  EXPECT_EQ(set->Find("o"), nullptr);
  // Without a name only an only key can be meant.
  EXPECT_EQ(set->Find(""), nullptr);
  EXPECT_NE(JwkSet::Parse(JwksOf({ec.Jwk("e")}))->Find(""), nullptr);
}

TEST(JwkSetTest, BrokenWeakAndPrivateKeysAreErrors) {
  const auto expect = [](const std::string& text, const std::string& message) {
    EXPECT_THAT(JwkSet::Parse(text), StatusIs(kInvalid, HasSubstr(message)))
        << text;
  };
  const Signer rsa = Signer::Rsa(2048);
  const Signer ec = Signer::Ec();
  const std::string point_x = ec.Number("qx", 32);
  const auto ec_key = [](const std::string& x, const std::string& y) {
    return JwksOf(
        {R"({"kty":"EC","crv":"P-256","x":")" + x + R"(","y":")" + y + "\"}"});
  };
  const auto rsa_key = [](const std::string& n, const std::string& e) {
    return JwksOf({R"({"kty":"RSA","n":")" + n + R"(","e":")" + e + "\"}"});
  };
  expect("{}", "keys must be there");
  expect(R"({"keys":[]})", "no key for RS256");
  expect(JwksOf({Signer::Rsa(1024).Jwk("weak")}), "RSA key of 1024 bits");
  expect(rsa_key(EncodeBase64Url(std::string(2000, '\xff')), "AQAB"),
         "RSA key of 16000 bits");
  expect(rsa_key(rsa.Number("n"), "AQ"), "exponent must be odd, above 1");
  expect(rsa_key(rsa.Number("n"), "AQAA"), "exponent must be odd, above 1");
  expect(rsa_key(rsa.Number("n"), EncodeBase64Url(std::string(33, '\xff'))),
         "at most 32 bits");
  expect(rsa_key(rsa.Number("n"), "AQAB="), "e must be base64url");
  expect(ec_key(point_x, point_x), "a point of P-256");  // not on the curve
  expect(ec_key(point_x, EncodeBase64Url(std::string(33, 'a'))),
         "a point of P-256");
  expect(ec_key(EncodeBase64Url(std::string(32, '\0')),
                EncodeBase64Url(std::string(32, '\0'))),
         "a point of P-256");
  expect(JwksOf({ec.Jwk("same"), rsa.Jwk("same")}), "keys[1]: the same kid");
  expect(JwksOf({ec.Jwk("e", R"(,"d":"AA")")}), "private or secret key");
  expect(JwksOf({R"({"kty":"oct","k":"AA"})"}), "private or secret key");
  std::vector<std::string> many(101, ec.Jwk("x"));
  expect(JwksOf(many), "at most 100");
}

// --- JWT ---

class JwtTest : public ::testing::Test {
 protected:
  JwtTest()
      : rsa_(Signer::Rsa(2048)),
        ec_(Signer::Ec()),
        keys_(*JwkSet::Parse(JwksOf({rsa_.Jwk("r"), ec_.Jwk("e")}))) {}

  absl::StatusOr<Caller> Verify(const std::string& token) const {
    return VerifyJwt(token, keys_, options_,
                     absl::FromUnixSeconds(1'000'000'000));
  }
  absl::StatusOr<Caller> VerifyClaims(const std::string& claims) const {
    return Verify(ec_.Jwt(R"({"alg":"ES256","kid":"e"})", claims));
  }
  // A right token's claims, with `more` (a comma in front).
  static std::string Claims(const std::string& more = "",
                            const std::string& expires = "1000000010") {
    return R"({"iss":"https://id","aud":"ovpress","sub":"alice","exp":)" +
           expires + more + "}";
  }

  const Signer rsa_;
  const Signer ec_;
  const JwkSet keys_;
  const JwtOptions options_{.issuer = "https://id",
                            .audience = "ovpress",
                            .leeway = absl::Seconds(5)};
};

TEST_F(JwtTest, BothAlgorithmsGiveTheCaller) {
  const std::string claims = Claims(R"(,"scope":"openid submit  read")");
  for (const std::string& token :
       {rsa_.Jwt(R"({"alg":"RS256","kid":"r","typ":"JWT"})", claims),
        ec_.Jwt(R"({"alg":"ES256","kid":"e"})", claims)}) {
    const auto caller = Verify(token);
    ASSERT_TRUE(caller.ok()) << caller.status();
    EXPECT_EQ(caller->identity, "jwt:alice");
    EXPECT_EQ(caller->scopes, Scopes().With(Scope::kSubmit).With(Scope::kRead));
    // Each single character counts, whichever part it is in.
    for (size_t i = 0; i < token.size(); ++i) {
      std::string wrong = token;
      wrong[i] = wrong[i] == 'A' ? 'B' : 'A';
      EXPECT_FALSE(Verify(wrong).ok()) << "character " << i;
    }
    EXPECT_FALSE(Verify(token + "A").ok());
    EXPECT_FALSE(Verify(token.substr(0, token.size() - 1)).ok());
    EXPECT_FALSE(Verify(token + ".").ok());
    EXPECT_FALSE(Verify(" " + token).ok());
  }
}

TEST_F(JwtTest, AlgorithmsAreNotTheTokensChoice) {
  const std::string claims = Claims();
  // alg none, with and without a signature.
  for (const char* none : {"none", "None", "NONE", ""}) {
    const std::string text = Signer::Unsigned(
        absl::StrCat(R"({"alg":")", none, R"(","kid":"e"})"), claims);
    EXPECT_THAT(Verify(text + "."), StatusIs(kWho, HasSubstr("alg must be")));
    EXPECT_THAT(Verify(text + "." + EncodeBase64Url(ec_.Sign(text))),
                StatusIs(kWho, HasSubstr("alg must be")));
  }
  // The public key as the secret of an HMAC.
  const std::string hs =
      Signer::Unsigned(R"({"alg":"HS256","kid":"r"})", claims);
  EXPECT_THAT(
      Verify(hs + "." + EncodeBase64Url(HmacSha256(rsa_.PublicPem(), hs))),
      StatusIs(kWho, HasSubstr("alg must be")));
  const std::string rs =
      Signer::Unsigned(R"({"alg":"RS256","kid":"r"})", claims);
  EXPECT_THAT(
      Verify(rs + "." + EncodeBase64Url(HmacSha256(rsa_.PublicPem(), rs))),
      StatusIs(kWho, HasSubstr("signature is wrong")));
  // The other algorithm than the key's, signed by either key.
  for (const Signer* signer : {&rsa_, &ec_}) {
    EXPECT_THAT(Verify(signer->Jwt(R"({"alg":"RS256","kid":"e"})", claims)),
                StatusIs(kWho, HasSubstr("not that of the key")));
    EXPECT_THAT(Verify(signer->Jwt(R"({"alg":"ES256","kid":"r"})", claims)),
                StatusIs(kWho, HasSubstr("not that of the key")));
  }
  for (const char* alg : {"RS512", "ES384", "PS256", "EdDSA", "es256"}) {
    EXPECT_THAT(
        Verify(rsa_.Jwt(absl::StrCat(R"({"alg":")", alg, R"(","kid":"r"})"),
                        claims)),
        StatusIs(kWho, HasSubstr("alg must be")));
  }
  // A key of its own in the header is not even looked at.
  const Signer other = Signer::Ec();
  EXPECT_THAT(
      Verify(other.Jwt(
          R"({"alg":"ES256","kid":"e","jwk":)" + other.Jwk("e") + "}", claims)),
      StatusIs(kWho, HasSubstr("signature is wrong")));
}

TEST_F(JwtTest, SignaturesOfOtherFormsAndKeysAreWrong) {
  const std::string header = R"({"alg":"ES256","kid":"e"})";
  const std::string text = Signer::Unsigned(header, Claims());
  const auto with = [&](const std::string& signature) {
    return Verify(text + "." + EncodeBase64Url(signature));
  };
  ASSERT_TRUE(with(ec_.SignRaw(text)).ok());
  const auto wrong = StatusIs(kWho, HasSubstr("signature is wrong"));
  EXPECT_THAT(with(ec_.SignDer(text)), wrong);
  EXPECT_THAT(with(""), wrong);
  EXPECT_THAT(with(std::string(64, '\0')), wrong);
  EXPECT_THAT(with(std::string(64, '\xff')), wrong);
  EXPECT_THAT(with(ec_.SignRaw(text) + '\0'), wrong);
  // The same two numbers, one of them with a zero in front.
  std::string longer = ec_.SignRaw(text);
  longer.insert(32, 1, '\0');
  EXPECT_THAT(with(longer), wrong);
  EXPECT_THAT(with(ec_.SignRaw(text).substr(0, 63)), wrong);
  EXPECT_THAT(with(Signer::Ec().SignRaw(text)), wrong);
  const Signer p384 = Signer::Ec("P-384");
  EXPECT_THAT(with(p384.SignRaw(text, 48)), wrong);
  EXPECT_THAT(with(p384.SignRaw(text, 48).substr(0, 64)), wrong);
  EXPECT_THAT(Verify(text + ".***"), wrong);
  EXPECT_THAT(
      Verify(Signer::Rsa(2048).Jwt(R"({"alg":"RS256","kid":"r"})", Claims())),
      wrong);
}

TEST_F(JwtTest, HeadersAreChecked) {
  const auto header = [&](const std::string& text) {
    return Verify(ec_.Jwt(text, Claims()));
  };
  EXPECT_THAT(header(R"({"alg":"ES256"})"), StatusIs(kWho, HasSubstr("kid")));
  EXPECT_THAT(header(R"({"alg":"ES256","kid":"x"})"),
              StatusIs(kWho, HasSubstr("kid names no key")));
  EXPECT_THAT(header(R"({"alg":"ES256","kid":7})"),
              StatusIs(kWho, HasSubstr("kid must be a string")));
  EXPECT_THAT(header(R"({"alg":"ES256","kid":"e","crit":["b64"]})"),
              StatusIs(kWho, HasSubstr("crit")));
  EXPECT_THAT(header(R"({"alg":"none","alg":"ES256","kid":"e"})"),
              StatusIs(kWho, HasSubstr("'alg' is there twice")));
  EXPECT_THAT(header("[]"), StatusIs(kWho, HasSubstr("JSON object")));
  EXPECT_THAT(header(""), StatusIs(kWho, HasSubstr("no JSON")));
  EXPECT_THAT(
      header(R"({"alg":"ES256","kid":"e","x":)" + std::string(3000, '[')),
      StatusIs(kWho, HasSubstr("nested deeper")));
  EXPECT_THAT(Verify(std::string(kTokenBytesMax + 1, 'A')),
              StatusIs(kWho, HasSubstr("longer than 8192")));
  EXPECT_THAT(Verify("a.b"), StatusIs(kWho, HasSubstr("three parts")));
  EXPECT_THAT(Verify("a.b.c.d"), StatusIs(kWho, HasSubstr("three parts")));
  EXPECT_THAT(Verify(".."), StatusIs(kWho, HasSubstr("no JSON")));
}

TEST_F(JwtTest, TimesHaveALeeway) {
  EXPECT_TRUE(VerifyClaims(Claims("", "999999996")).ok());
  EXPECT_TRUE(VerifyClaims(Claims("", "999999995.5")).ok());
  const auto expired = VerifyClaims(Claims("", "999999995"));
  EXPECT_THAT(expired, StatusIs(kWho, HasSubstr("exp is over")));
  EXPECT_EQ(GetReason(expired.status()), "TOKEN_EXPIRED");
  EXPECT_TRUE(VerifyClaims(Claims("", "1e300")).ok());
  EXPECT_FALSE(VerifyClaims(Claims("", "-1e300")).ok());
  EXPECT_THAT(VerifyClaims(Claims("", "1e999")), StatusIs(kWho, HasSubstr("")));
  EXPECT_THAT(VerifyClaims(Claims("", R"("1000000010")")),
              StatusIs(kWho, HasSubstr("exp must be a number")));
  EXPECT_THAT(VerifyClaims(R"({"iss":"https://id","aud":"ovpress","sub":"a"})"),
              StatusIs(kWho, HasSubstr("exp is missing")));
  EXPECT_TRUE(VerifyClaims(Claims(R"(,"nbf":1000000005)")).ok());
  EXPECT_THAT(VerifyClaims(Claims(R"(,"nbf":1000000006)")),
              StatusIs(kWho, HasSubstr("nbf")));
  EXPECT_THAT(VerifyClaims(Claims(R"(,"iat":1000000006)")),
              StatusIs(kWho, HasSubstr("iat")));
  EXPECT_THAT(VerifyClaims(Claims(R"(,"nbf":null)")),
              StatusIs(kWho, HasSubstr("nbf must be a number")));
}

TEST_F(JwtTest, IssuerAudienceSubjectAndScopesAreChecked) {
  const auto claims = [&](const std::string& iss, const std::string& aud,
                          const std::string& sub) {
    return VerifyClaims(R"({"exp":1000000010,"iss":)" + iss + R"(,"aud":)" +
                        aud + R"(,"sub":)" + sub + "}");
  };
  const std::string iss = R"("https://id")";
  EXPECT_TRUE(claims(iss, R"(["x","ovpress"])", R"("a")").ok());
  for (const char* other :
       {R"("https://id/")", R"("https://evil")", "null", R"(["https://id"])"}) {
    EXPECT_THAT(claims(other, R"("ovpress")", R"("a")"),
                StatusIs(kWho, HasSubstr("iss")));
  }
  for (const char* other : {R"("other")", R"("ovpress2")", "[]", R"(["x"])",
                            "null", R"({"a":"ovpress"})"}) {
    EXPECT_THAT(claims(iss, other, R"("a")"), StatusIs(kWho, HasSubstr("aud")));
  }
  for (const char* other : {R"("")", "null", "7", R"("a b")", R"("a\u0000b")",
                            R"("a\nb")", R"("\u00e4")"}) {
    EXPECT_THAT(claims(iss, R"("ovpress")", other),
                StatusIs(kWho, HasSubstr("sub")));
  }
  EXPECT_TRUE(VerifyClaims(Claims())->scopes.empty());
  EXPECT_TRUE(VerifyClaims(Claims(R"(,"scope":["admin","x"])"))->is_admin());
  EXPECT_THAT(VerifyClaims(Claims(R"(,"scope":7)")),
              StatusIs(kWho, HasSubstr("scopes")));
  EXPECT_THAT(VerifyClaims(Claims(R"(,"scope":[7])")),
              StatusIs(kWho, HasSubstr("scope")));
  JwtOptions options = options_;
  options.scope_claim = "scp";
  options.scope_prefix = "ovpress:";
  const auto caller = VerifyJwt(
      ec_.Jwt(R"({"alg":"ES256","kid":"e"})",
              Claims(R"(,"scope":"admin","scp":"admin ovpress:read")")),
      keys_, options, absl::FromUnixSeconds(1'000'000'000));
  ASSERT_TRUE(caller.ok());
  EXPECT_EQ(caller->scopes, Scopes().With(Scope::kRead));
}

// --- rates ---

TEST(RateLimiterTest, ABucketEmptiesAndFills) {
  RateLimiter limiter;
  const absl::Time start = absl::FromUnixSeconds(1000);
  for (int i = 0; i < 20; ++i) {
    EXPECT_TRUE(limiter.Admit("a", 10, start).ok()) << i;
  }
  const absl::Status refused = limiter.Admit("a", 10, start);
  EXPECT_THAT(refused, StatusIs(absl::StatusCode::kResourceExhausted,
                                HasSubstr("client:a")));
  EXPECT_EQ(GetReason(refused), "LIMIT_MAX_REQUESTS_PER_SECOND");
  ASSERT_EQ(GetRetryAfter(refused), absl::Milliseconds(100));
  // Others are not concerned, and whoever waits as told is served.
  EXPECT_TRUE(limiter.Admit("b", 10, start).ok());
  EXPECT_FALSE(limiter.Admit("a", 10, start + absl::Milliseconds(99)).ok());
  EXPECT_TRUE(limiter.Admit("a", 10, start + absl::Milliseconds(100)).ok());
  EXPECT_FALSE(limiter.Admit("a", 10, start + absl::Milliseconds(100)).ok());
  // A clock that goes back gives nothing; a new limit holds at once.
  EXPECT_FALSE(limiter.Admit("a", 10, start - absl::Hours(1)).ok());
  EXPECT_FALSE(limiter.Admit("b", 0, start).ok());
  EXPECT_TRUE(limiter.Admit("slow", 0.5, start).ok());
  EXPECT_EQ(GetRetryAfter(limiter.Admit("slow", 0.5, start)), absl::Seconds(2));
}

TEST(RateLimiterTest, RemembersSoManyAtMost) {
  RateLimiter limiter(2);
  const absl::Time start = absl::FromUnixSeconds(1000);
  EXPECT_TRUE(limiter.Admit("a", 1, start).ok());
  EXPECT_TRUE(limiter.Admit("b", 1, start).ok());
  // Both have used of theirs: forgetting them would give it back.
  EXPECT_FALSE(limiter.Admit("c", 1, start).ok());
  EXPECT_TRUE(limiter.Admit("c", 1, start + absl::Seconds(1)).ok());
}

// --- quotas ---

TEST(QuotaFileTest, ReadsUnitsAndRefusesTheRest) {
  const auto table =
      ParseQuotaFile(R"({"identities":{"a":{"max_bytes":"2GiB","max_queued":0,)"
                     R"("max_requests_per_second":1.5},"b":{"max_bytes":7}}})");
  ASSERT_TRUE(table.ok()) << table.status();
  EXPECT_EQ(table->at("a"), (OwnerQuota{.max_bytes = 2ull << 30,
                                        .max_queued = 0,
                                        .max_requests = 1.5}));
  EXPECT_EQ(table->at("b").max_bytes, 7u);
  const auto expect = [](const std::string& quota, const std::string& message) {
    EXPECT_THAT(ParseQuotaFile(R"({"identities":{"a":)" + quota + "}}"),
                StatusIs(kInvalid, HasSubstr(message)))
        << quota;
  };
  expect("7", "quotas: identity a: must be an object");
  expect(R"({"max_jobs":1})", "unknown key 'max_jobs'; known are max_bytes");
  for (const char* bytes : {R"("2GB")", R"("-1")", R"("")", R"("GiB")", "-1",
                            "1.5", R"("99999999999TiB")", R"(" 1")"}) {
    expect(absl::StrCat(R"({"max_bytes":)", bytes, "}"),
           "max_bytes must be a number of bytes");
  }
  expect(R"({"max_queued":-1})", "max_queued must be a whole number");
  expect(R"({"max_queued":1000001})", "from 0 to 1000000");
  expect(R"({"max_requests_per_second":-0.5})", "from 0 to");
  EXPECT_THAT(ParseQuotaFile(R"({"identities":{"a b":{}}})"),
              StatusIs(kInvalid, HasSubstr("identity 'a b'")));
}

// --- addresses ---

TEST(LoopbackTest, WhatCannotBeToldIsNotLoopback) {
  for (const char* address :
       {"127.0.0.1:1", "127.8.9.1:0", "[::1]:1", "localhost:1",
        "ipv4:127.0.0.1:1", "ipv6:[::1]:1", "dns:///localhost:1",
        "unix:/run/x.sock", "unix-abstract:x"}) {
    EXPECT_TRUE(IsLoopbackAddress(address)) << address;
  }
  for (const char* address :
       {"0.0.0.0:1", "[::]:1", "[::ffff:127.0.0.1]:1", "10.0.0.1:1",
        "example.com:1", "localhost.example.com:1", ":1", "", "127.0.0.1",
        "127.1:1", "128.0.0.1:1", "ipv4:0.0.0.0:1", "127.0.0.1.evil:1"}) {
    EXPECT_FALSE(IsLoopbackAddress(address)) << address;
  }
}

// --- all together ---

class AccessTest : public ::testing::Test {
 protected:
  AccessTest() {
    std::string pattern = fs::temp_directory_path() / "auth_test_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  ~AccessTest() override { fs::remove_all(folder_); }
  std::string Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + "/" + name) << text;
    return folder_ + "/" + name;
  }
  static Credentials Bearer(const std::string& token) {
    return {.authorization = {"Bearer " + token}};
  }

  std::string folder_;
  FakeClock clock_;
};

TEST_F(AccessTest, WithoutAnyFileEverybodyIsAnonymous) {
  const auto control = AccessControl::Create({}, &clock_);
  ASSERT_TRUE(control.ok());
  EXPECT_FALSE((*control)->required());
  const auto caller = (*control)->Admit(Bearer("whatever"), Scope::kSubmit);
  ASSERT_TRUE(caller.ok());
  EXPECT_EQ(caller->identity, "");
  EXPECT_FALSE(caller->is_admin());
}

TEST_F(AccessTest, TokensScopesAndRates) {
  const auto control = AccessControl::Create(
      {.token_file = Write("tokens", TokenFile(Entry())),
       .quota_file =
           Write("quotas",
                 R"({"identities":{"team-a":{"max_requests_per_second":1}}})")},
      &clock_);
  ASSERT_TRUE(control.ok()) << control.status();
  AccessControl& access = **control;
  EXPECT_TRUE(access.required());
  const auto none = access.Admit({}, Scope::kRead);
  EXPECT_THAT(none, StatusIs(kWho, HasSubstr("Bearer TOKEN")));
  EXPECT_EQ(GetReason(none.status()), "NO_CREDENTIALS");
  for (const std::string header :
       {"", "Bearer", "Bearer ", "Basic secret", "secret", "Bearer wrong"}) {
    EXPECT_THAT(access.Admit({.authorization = {header}}, Scope::kRead),
                StatusIs(kWho, HasSubstr("")))
        << header;
  }
  EXPECT_THAT(
      access.Admit({.authorization = {"Bearer secret", "Bearer secret"}},
                   Scope::kRead),
      StatusIs(kWho, HasSubstr("more than one")));
  EXPECT_THAT(
      access.Admit(Bearer(std::string(kTokenBytesMax + 1, 'a')), Scope::kRead),
      StatusIs(kWho, HasSubstr("longer than")));
  EXPECT_EQ(access.Admit({.authorization = {"bearer secret"}}, Scope::kRead)
                ->identity,
            "team-a");
  const auto scope = access.Admit(Bearer("secret"), Scope::kSubmit);
  EXPECT_THAT(scope, StatusIs(absl::StatusCode::kPermissionDenied,
                              "this call needs the scope submit; team-a has "
                              "read"));
  EXPECT_EQ(GetReason(scope.status()), "SCOPE_MISSING");
  // Two of them came through, which is all that one a second allows at once.
  EXPECT_THAT(access.Admit(Bearer("secret"), Scope::kRead),
              StatusIs(absl::StatusCode::kResourceExhausted,
                       HasSubstr("max_requests_per_second of 1")));
  clock_.Advance(absl::Seconds(1));
  EXPECT_TRUE(access.Admit(Bearer("secret"), Scope::kRead).ok());
}

TEST_F(AccessTest, AReloadIsAllOrNothing) {
  const std::string tokens = Write("tokens", TokenFile(Entry()));
  const std::string quotas = Write("quotas", "{}");
  const auto control = AccessControl::Create(
      {.token_file = tokens, .quota_file = quotas}, &clock_);
  ASSERT_TRUE(control.ok());
  AccessControl& access = **control;
  Write("tokens", R"({"tokens":[]})");
  Write("quotas", "{");
  EXPECT_THAT(access.Reload(), StatusIs(kInvalid, HasSubstr(quotas)));
  EXPECT_TRUE(access.Admit(Bearer("secret"), Scope::kRead).ok());
  Write("quotas", R"({"identities":{"team-a":{"max_queued":3}}})");
  EXPECT_TRUE(access.Reload().ok());
  EXPECT_FALSE(access.Admit(Bearer("secret"), Scope::kRead).ok());
  EXPECT_EQ(access.QuotaOf("team-a").max_queued, 3);
  EXPECT_EQ(access.QuotaOf("team-b").max_queued, std::nullopt);
  fs::remove(tokens);
  EXPECT_THAT(access.Reload(),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr(tokens)));
}

TEST_F(AccessTest, CallersAreServedWhileFilesAreExchanged) {
  const std::string tokens = Write("tokens", TokenFile(Entry()));
  const auto control = AccessControl::Create(
      {.token_file = tokens, .max_requests_per_second = 0}, &clock_);
  ASSERT_TRUE(control.ok());
  std::atomic<bool> done{false};
  std::thread caller([&] {
    while (!done) {
      EXPECT_TRUE((*control)->Admit(Bearer("secret"), Scope::kRead).ok());
    }
  });
  for (int i = 0; i < 50; ++i) EXPECT_TRUE((*control)->Reload().ok());
  done = true;
  caller.join();
}

TEST_F(AccessTest, CertificatesAreIdentitiesIfAsked) {
  EXPECT_EQ(*IdentityOfCertificate({.certificate_uris = {"spiffe://a/b"},
                                    .certificate_dns = {"d"},
                                    .certificate_common_name = "c"}),
            "cert:spiffe://a/b");
  EXPECT_EQ(*IdentityOfCertificate({.certificate_uris = {"u", "v"},
                                    .certificate_dns = {"d", "e"},
                                    .certificate_common_name = "c"}),
            "cert:d");
  EXPECT_EQ(*IdentityOfCertificate({.certificate_common_name = "c"}), "cert:c");
  EXPECT_THAT(IdentityOfCertificate({.certificate_common_name = "a b"}),
              StatusIs(kWho, HasSubstr("no name")));
  EXPECT_THAT(IdentityOfCertificate({}), StatusIs(kWho, HasSubstr("no name")));

  const std::string tokens =
      Write("tokens", R"({"tokens":[)" + Entry() +
                          R"(],"identities":[{"identity":"cert:ops","scopes":)"
                          R"(["admin"]}]})");
  const auto control = AccessControl::Create(
      {.token_file = tokens, .certificates = true}, &clock_);
  ASSERT_TRUE(control.ok());
  AccessControl& access = **control;
  const Credentials ops = {.has_certificate = true,
                           .certificate_common_name = "ops"};
  const Credentials dev = {.has_certificate = true,
                           .certificate_common_name = "dev"};
  EXPECT_TRUE(access.Admit(ops, Scope::kAdmin)->is_admin());
  EXPECT_EQ(access.Admit(dev, Scope::kSubmit)->identity, "cert:dev");
  EXPECT_THAT(
      access.Admit(dev, Scope::kAdmin),
      StatusIs(absl::StatusCode::kPermissionDenied, HasSubstr("admin")));
  // A token wins, and a wrong one does not fall back.
  Credentials both = ops;
  both.authorization = {"Bearer secret"};
  EXPECT_EQ(access.Admit(both, Scope::kRead)->identity, "team-a");
  both.authorization = {"Bearer wrong"};
  EXPECT_THAT(access.Admit(both, Scope::kRead), StatusIs(kWho, HasSubstr("")));
  // Not asked for: a certificate is none.
  const auto tokens_only =
      AccessControl::Create({.token_file = tokens}, &clock_);
  EXPECT_THAT((*tokens_only)->Admit(ops, Scope::kRead),
              StatusIs(kWho, HasSubstr("Bearer")));
}

TEST_F(AccessTest, JwtsGoBesideTokens) {
  const Signer ec = Signer::Ec();
  const std::string jwks = Write("jwks", JwksOf({ec.Jwk("e")}));
  EXPECT_THAT(AccessControl::Create({.jwks_file = jwks}, &clock_),
              StatusIs(kInvalid, HasSubstr("issuer and the audience")));
  const auto control = AccessControl::Create(
      {.token_file =
           Write("tokens", R"({"tokens":[)" + Entry() +
                               R"(],"identities":[{"identity":"jwt:robot",)"
                               R"("scopes":["submit"]}]})"),
       .jwks_file = jwks,
       .jwt = {.issuer = "i", .audience = "a"}},
      &clock_);
  ASSERT_TRUE(control.ok()) << control.status();
  const std::string token = ec.Jwt(
      R"({"alg":"ES256","kid":"e"})",
      R"({"iss":"i","aud":"a","sub":"team-a","exp":1700000100,"scope":"read"})");
  // Not the identity of the token that has the same name.
  EXPECT_EQ((*control)->Admit(Bearer(token), Scope::kRead)->identity,
            "jwt:team-a");
  EXPECT_EQ((*control)->Admit(Bearer("secret"), Scope::kRead)->identity,
            "team-a");
  // What the file says of an identity stands before what its JWT says.
  const std::string robot = ec.Jwt(
      R"({"alg":"ES256","kid":"e"})",
      R"({"iss":"i","aud":"a","sub":"robot","exp":1700000100,"scope":"admin"})");
  EXPECT_EQ((*control)->Admit(Bearer(robot), Scope::kSubmit)->scopes,
            Scopes().With(Scope::kSubmit));
}

// --- certificates ---

struct TestCertificate {
  std::string certificate;
  std::string key;
};

template <typename Write>
std::string ToPem(Write write) {
  BIO* out = BIO_new(BIO_s_mem());
  write(out);
  char* data = nullptr;
  const long size = BIO_get_mem_data(out, &data);
  std::string pem(data, static_cast<size_t>(size));
  BIO_free(out);
  return pem;
}

// Signed by itself, valid for `seconds` from 1970 on.
TestCertificate SelfSigned(const char* name, long seconds) {
  EVP_PKEY* key = EVP_EC_gen("P-256");
  X509* certificate = X509_new();
  ASN1_INTEGER_set(X509_get_serialNumber(certificate), 1);
  ASN1_TIME_set(X509_getm_notBefore(certificate), 0);
  ASN1_TIME_set(X509_getm_notAfter(certificate), seconds);
  X509_NAME_add_entry_by_txt(
      X509_get_subject_name(certificate), "CN", MBSTRING_ASC,
      reinterpret_cast<const unsigned char*>(name), -1, -1, 0);
  X509_set_pubkey(certificate, key);
  X509_sign(certificate, key, EVP_sha256());
  TestCertificate result = {
      ToPem([&](BIO* out) { PEM_write_bio_X509(out, certificate); }),
      ToPem([&](BIO* out) {
        PEM_write_bio_PrivateKey(out, key, nullptr, nullptr, 0, nullptr,
                                 nullptr);
      })};
  X509_free(certificate);
  EVP_PKEY_free(key);
  return result;
}

TEST_F(AccessTest, CertificateFilesAreCheckedBeforeUse) {
  const TestCertificate one = SelfSigned("one", 1000);
  const TestCertificate two = SelfSigned("two", 1000);
  const CertificateFiles files = {.certificate = Write("cert", one.certificate),
                                  .key = Write("key", one.key),
                                  .client_ca = Write("ca", two.certificate)};
  const absl::Time now = absl::UnixEpoch();
  const auto pems = LoadCertificates(files, now);
  ASSERT_TRUE(pems.ok()) << pems.status();
  EXPECT_EQ(pems->certificate, one.certificate);
  EXPECT_EQ(pems->key, one.key);
  EXPECT_EQ(pems->not_after, now + absl::Seconds(1000));
  EXPECT_EQ(pems->client_ca, two.certificate);
  EXPECT_THAT(LoadCertificates(files, now + absl::Seconds(1000)),
              StatusIs(kInvalid, HasSubstr("expired at 1970")));
  Write("key", two.key);
  EXPECT_THAT(LoadCertificates(files, now),
              StatusIs(kInvalid, HasSubstr("is not the key of")));
  Write("key", one.key.substr(0, one.key.size() / 2));
  EXPECT_THAT(LoadCertificates(files, now),
              StatusIs(kInvalid, HasSubstr("no PEM key")));
  Write("key", one.key);
  Write("ca", "");
  EXPECT_THAT(LoadCertificates(files, now),
              StatusIs(kInvalid, HasSubstr("/ca: no PEM certificate")));
  Write("cert", "junk");
  EXPECT_THAT(LoadCertificates(files, now),
              StatusIs(kInvalid, HasSubstr("/cert: no PEM certificate")));
  fs::remove(files.certificate);
  EXPECT_THAT(LoadCertificates(files, now),
              StatusIs(absl::StatusCode::kNotFound, HasSubstr("/cert")));
}

}  // namespace
}  // namespace ovpress
