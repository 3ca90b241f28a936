// Signatures against AWS's published examples, credentials, and the client
// against a server that misbehaves on purpose.
#include "server/cluster/s3_client.h"

#include <stdlib.h>

#include <filesystem>
#include <fstream>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "core/base/patience.h"
#include "core/base/sha256.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/cluster/fake_http_server.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using absl::StatusCode;
using ::testing::AllOf;
using ::testing::ElementsAre;
using testing::FakeAnswer;
using testing::FakeHttpServer;
using testing::FakeRequest;
using ::testing::HasSubstr;
using ::testing::Not;
using testing::StatusIs;

// --- signatures ---

// "Signature Calculations for the Authorization Header: Transferring Payload in
// a Single Chunk (AWS Signature Version 4)", Amazon S3 API Reference: the key
// pair, time and the four requests with the signatures printed there.
class SigV4Test : public ::testing::Test {
 protected:
  std::string Signature(SigV4Request request) {
    request.headers.emplace_back("Host", "examplebucket.s3.amazonaws.com");
    absl::Time time;
    std::string error;
    EXPECT_TRUE(absl::ParseTime(absl::RFC3339_full, "2013-05-24T00:00:00Z",
                                &time, &error));
    const NameValues added = SignV4(
        request, {.region = "us-east-1", .time = time},
        {.access_key_id = "AKIAIOSFODNN7EXAMPLE",
         .secret_access_key = "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY"});
    const std::string& text = added.back().second;
    return text.substr(text.find("Signature=") + 10);
  }
  const std::string empty_ = Sha256Hex("");
};

TEST_F(SigV4Test, GetWithARange) {
  EXPECT_EQ(Signature({.method = "GET",
                       .path = "/test.txt",
                       .headers = {{"Range", "bytes=0-9"}},
                       .payload_sha256 = empty_}),
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41");
}
TEST_F(SigV4Test, PutWithASpecialCharacterInTheKey) {
  EXPECT_EQ(
      Signature({.method = "PUT",
                 .path = "/" + UriEncode("test$file.text", true),
                 .headers = {{"Date", "Fri, 24 May 2013 00:00:00 GMT"},
                             {"x-amz-storage-class", "REDUCED_REDUNDANCY"}},
                 .payload_sha256 = Sha256Hex("Welcome to Amazon S3.")}),
      "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd");
}
TEST_F(SigV4Test, QueryWithoutAValue) {
  EXPECT_EQ(Signature({.method = "GET",
                       .path = "/",
                       .query = {{"lifecycle", ""}},
                       .payload_sha256 = empty_}),
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543");
}
TEST_F(SigV4Test, QueryIsSorted) {
  EXPECT_EQ(Signature({.method = "GET",
                       .path = "/",
                       .query = {{"prefix", "J"}, {"max-keys", "2"}},
                       .payload_sha256 = empty_}),
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7");
}

// --- credentials ---

class CredentialsTest : public ::testing::Test {
 protected:
  CredentialsTest() {
    std::string pattern =
        std::filesystem::temp_directory_path() / "credentials_XXXXXX";
    folder_ = ::mkdtemp(pattern.data());
  }
  ~CredentialsTest() override { std::filesystem::remove_all(folder_); }
  std::unique_ptr<CredentialsProvider> Make(std::string sts = "") {
    CredentialsOptions options;
    options.environment =
        [this](const char* name) -> std::optional<std::string> {
      const auto it = variables_.find(name);
      if (it == variables_.end()) return std::nullopt;
      return it->second;
    };
    options.sts_endpoint = std::move(sts);
    options.now = [this] { return now_; };
    return MakeCredentialsProvider(options);
  }
  void Write(const std::string& name, const std::string& text) {
    std::ofstream(folder_ + "/" + name) << text;
  }
  std::string folder_;
  std::map<std::string, std::string> variables_;
  absl::Time now_ = absl::FromUnixSeconds(1'700'000'000);
};

TEST_F(CredentialsTest, SaysWhatToDoWhenThereAreNone) {
  variables_["HOME"] = folder_;
  EXPECT_THAT(Make()->Get(), StatusIs(StatusCode::kUnauthenticated,
                                      HasSubstr("set AWS_ACCESS_KEY_ID")));
}

TEST_F(CredentialsTest, EnvironmentGoesBeforeTheFile) {
  variables_["HOME"] = folder_;
  std::filesystem::create_directory(folder_ + "/.aws");
  Write(".aws/credentials",
        "# mine\n[other]\naws_access_key_id=x\n[default]\n"
        "aws_access_key_id = file-key\naws_secret_access_key = a=b/c\n");
  const auto provider = Make();
  auto got = provider->Get();
  ASSERT_TRUE(got.ok()) << got.status();
  EXPECT_EQ(got->access_key_id, "file-key");
  EXPECT_EQ(got->secret_access_key, "a=b/c");
  variables_["AWS_ACCESS_KEY_ID"] = "env-key";
  variables_["AWS_SECRET_ACCESS_KEY"] = "s";
  variables_["AWS_SESSION_TOKEN"] = "t";
  got = provider->Get();
  EXPECT_EQ(got->access_key_id, "env-key");
  EXPECT_EQ(got->session_token, "t");
}

TEST_F(CredentialsTest, AProfileThatLacksAKeyIsNamed) {
  Write("file", "[a]\naws_access_key_id=x\n");
  variables_["AWS_SHARED_CREDENTIALS_FILE"] = folder_ + "/file";
  EXPECT_THAT(Make()->Get(), StatusIs(StatusCode::kUnauthenticated,
                                      HasSubstr("no profile default")));
  variables_["AWS_PROFILE"] = "a";
  EXPECT_THAT(Make()->Get(),
              StatusIs(StatusCode::kUnauthenticated,
                       HasSubstr("profile a lacks aws_access_key_id or")));
}

TEST_F(CredentialsTest, WebIdentityIsBoughtKeptAndRenewedBeforeItsEnd) {
  FakeHttpServer sts([&](const FakeRequest& request) {
    FakeAnswer answer;
    if (request.number == 3) {  // away when it is time to renew
      answer.status = 400;
      answer.body =
          "<ErrorResponse><Error><Code>IDPCommunicationError</Code></Error>"
          "</ErrorResponse>";
      return answer;
    }
    answer.body = absl::StrCat(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts/\">"
        "<AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>k",
        request.number,
        "</AccessKeyId><SecretAccessKey>s</SecretAccessKey><SessionToken>t"
        "</SessionToken><Expiration>",
        absl::FormatTime("%Y-%m-%dT%H:%M:%SZ", now_ + absl::Hours(1),
                         absl::UTCTimeZone()),
        "</Expiration></Credentials></AssumeRoleWithWebIdentityResult>"
        "</AssumeRoleWithWebIdentityResponse>");
    return answer;
  });
  Write("token", "first+token\n");
  variables_["AWS_WEB_IDENTITY_TOKEN_FILE"] = folder_ + "/token";
  variables_["AWS_ROLE_ARN"] = "arn:aws:iam::1:role/ovpress";
  const auto provider = Make(sts.endpoint());
  EXPECT_EQ(provider->Get()->access_key_id, "k1");
  EXPECT_EQ(provider->Get()->access_key_id, "k1");
  EXPECT_EQ(sts.requests().size(), 1);
  EXPECT_THAT(
      sts.requests()[0].body,
      AllOf(HasSubstr("Action=AssumeRoleWithWebIdentity"),
            HasSubstr("WebIdentityToken=first%2Btoken"),
            HasSubstr("RoleArn=arn%3Aaws%3Aiam%3A%3A1%3Arole%2Fovpress"),
            Not(HasSubstr("%0A"))));
  Write("token", "second");
  now_ += absl::Minutes(56);  // four minutes before the end
  EXPECT_EQ(provider->Get()->access_key_id, "k2");
  EXPECT_THAT(sts.requests()[1].body, HasSubstr("WebIdentityToken=second"));
  now_ += absl::Minutes(57);
  EXPECT_EQ(provider->Get()->access_key_id, "k2");  // some minutes are left
  now_ += absl::Minutes(3);
  EXPECT_EQ(provider->Get()->access_key_id, "k4");
}

// --- the client ---

class S3ClientTest : public ::testing::Test {
 protected:
  std::unique_ptr<S3Client> Make(const std::string& endpoint) {
    S3ClientOptions options;
    options.endpoint = endpoint;
    options.path_style = true;
    options.credentials = MakeStaticCredentials(
        {.access_key_id = "key", .secret_access_key = "secret"});
    options.first_backoff = absl::Milliseconds(1);
    options.silence_limit = absl::Seconds(1);
    options.max_attempts = 4;
    return *S3Client::Create(options);
  }
  static FakeAnswer Error(int status, const std::string& code) {
    return {.status = status,
            .headers = {{"x-amz-request-id", "R1"}},
            .body = absl::StrCat("<?xml version=\"1.0\"?><Error><Code>", code,
                                 "</Code><Message>why</Message></Error>")};
  }
  // Serves `content` as S3 does, by the request's range.
  static FakeAnswer Range(const FakeRequest& request,
                          const std::string& content) {
    const std::string range = request.headers.at("range");
    const std::pair<std::string, std::string> ends =
        absl::StrSplit(range.substr(6), '-');
    size_t first = 0, last = 0;
    EXPECT_TRUE(absl::SimpleAtoi(ends.first, &first));
    EXPECT_TRUE(absl::SimpleAtoi(ends.second, &last));
    FakeAnswer answer;
    answer.status = 206;
    answer.body = content.substr(first, last - first + 1);
    answer.headers = {{"Content-Range", absl::StrCat("bytes ", first, "-", last,
                                                     "/", content.size())}};
    return answer;
  }
  static std::string Content(size_t size) {
    std::string content(size, '\0');
    for (size_t i = 0; i < size; ++i) {
      content[i] = static_cast<char>((i * 31 + i / 251) & 0xff);
    }
    return content;
  }
};

TEST_F(S3ClientTest, GoesOnBehindWhatABrokenTransferBrought) {
  const std::string content = Content(1'000'000);
  FakeHttpServer server([&](const FakeRequest& request) {
    FakeAnswer answer = Range(request, content);
    if (request.number == 1) answer.cut_after = 300'000;  // orderly, short
    if (request.number == 2) {
      answer.cut_after = 200'000;
      answer.reset = true;
    }
    if (request.number == 3) return Error(503, "SlowDown");
    if (request.number == 4) {
      answer.cut_after = 100'000;
      answer.stall = true;
    }
    return answer;
  });
  const auto client = Make(server.endpoint());
  std::string out(900'000, '\0');
  const absl::Status status =
      client->GetRange("bucket", "key", 50'000, AsWritableBytes(out), {});
  ASSERT_TRUE(status.ok()) << status;
  EXPECT_EQ(out, content.substr(50'000, 900'000));
  const auto requests = server.requests();
  ASSERT_EQ(requests.size(), 5);
  EXPECT_EQ(requests[0].headers.at("range"), "bytes=50000-949999");
  EXPECT_EQ(requests[1].headers.at("range"), "bytes=350000-949999");
  EXPECT_EQ(client->Stats().retries, 4);
}

TEST_F(S3ClientTest, AnAnswerWithAnotherRangeIsNotBelieved) {
  const std::string content = Content(1000);
  int mode = 0;
  FakeHttpServer server([&](const FakeRequest& request) {
    FakeAnswer answer = Range(request, content);
    if (mode == 0) answer.headers[0].second = "bytes 1-100/1000";
    if (mode == 1) {
      answer.status = 200;
      answer.headers.clear();
      answer.body = content;
    }
    if (mode == 2) answer.body += "more";
    return answer;
  });
  const auto client = Make(server.endpoint());
  std::string out(100, '\0');
  for (mode = 0; mode < 3; ++mode) {
    EXPECT_THAT(client->GetRange("bucket", "key", 0, AsWritableBytes(out), {}),
                StatusIs(StatusCode::kDataLoss, HasSubstr("s3://bucket/key")))
        << mode;
  }
}

TEST_F(S3ClientTest, GivesUpAfterItsTriesAndSaysSo) {
  FakeHttpServer server(
      [&](const FakeRequest&) { return Error(503, "SlowDown"); });
  const auto client = Make(server.endpoint());
  EXPECT_THAT(client->Put("bucket", "key", {}),
              StatusIs(StatusCode::kUnavailable,
                       AllOf(HasSubstr("503 SlowDown: why (request R1)"),
                             HasSubstr("4 tries"))));
  EXPECT_EQ(server.requests().size(), 4);
}

// The store asks for ten seconds of pause, or says nothing, or stops in the
// middle of a body.
TEST_F(S3ClientTest, ACallThatIsNotWantedAnyMoreEndsSoon) {
  enum class Trouble { kSlowDown, kSilence, kHalf };
  for (const Trouble trouble :
       {Trouble::kSlowDown, Trouble::kSilence, Trouble::kHalf}) {
    FakeHttpServer server([&](const FakeRequest& request) {
      FakeAnswer answer = Error(503, "SlowDown");
      answer.headers.emplace_back("Retry-After", "10");
      if (trouble == Trouble::kSlowDown) return answer;
      answer = Range(request, Content(1000));
      answer.cut_after = trouble == Trouble::kSilence ? 0 : 500;
      answer.stall = true;
      return answer;
    });
    S3ClientOptions options;
    options.endpoint = server.endpoint();
    options.path_style = true;
    options.credentials = MakeStaticCredentials(
        {.access_key_id = "key", .secret_access_key = "secret"});
    const auto client = *S3Client::Create(options);
    std::atomic<bool> stop{false};
    std::thread stopper([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      stop = true;
    });
    const absl::Time start = absl::Now();
    {
      const Patience patience(&stop);
      std::string out(1000, ' ');
      EXPECT_THAT(
          client->GetRange("bucket", "key", 0, AsWritableBytes(out), {}),
          StatusIs(StatusCode::kCancelled, HasSubstr("not wanted")));
      // Nothing is begun any more, either.
      EXPECT_THAT(client->Put("bucket", "key", {}),
                  StatusIs(StatusCode::kCancelled, HasSubstr("not wanted")));
    }
    EXPECT_LT(absl::Now() - start, absl::Seconds(5));  // the machine is busy
    EXPECT_GE(absl::Now() - start, absl::Seconds(0.3));
    EXPECT_EQ(server.requests().size(), 1);
    EXPECT_EQ(client->Stats().failures, 0);
    stopper.join();
  }
}

TEST_F(S3ClientTest, NobodyListens) {
  int port = 0;
  {
    FakeHttpServer gone([](const FakeRequest&) { return FakeAnswer(); });
    port = gone.port();
  }
  const auto client = Make(absl::StrCat("http://127.0.0.1:", port));
  EXPECT_THAT(client->Head("bucket", "key", {}),
              StatusIs(StatusCode::kUnavailable,
                       HasSubstr("HeadObject s3://bucket/key")));
}

TEST_F(S3ClientTest, CodesBecomeStatuses) {
  struct Case {
    int status;
    const char* code;
    StatusCode expected;
  };
  const Case cases[] = {
      {404, "NoSuchKey", StatusCode::kNotFound},
      {403, "AccessDenied", StatusCode::kPermissionDenied},
      {403, "SignatureDoesNotMatch", StatusCode::kPermissionDenied},
      {412, "PreconditionFailed", StatusCode::kFailedPrecondition},
      {416, "InvalidRange", StatusCode::kOutOfRange},
      {400, "InvalidPart", StatusCode::kInvalidArgument},
      {501, "NotImplemented", StatusCode::kUnimplemented},
      {507, "InsufficientStorage", StatusCode::kResourceExhausted},
      {403, "QuotaExceeded", StatusCode::kResourceExhausted},
      {301, "PermanentRedirect", StatusCode::kUnavailable},
  };
  Case now = cases[0];
  FakeHttpServer server(
      [&](const FakeRequest&) { return Error(now.status, now.code); });
  const auto client = Make(server.endpoint());
  for (const Case& one : cases) {
    now = one;
    EXPECT_THAT(client->Put("bucket", "key", {}),
                StatusIs(one.expected, HasSubstr(one.code)))
        << one.code;
  }
}

TEST_F(S3ClientTest, ASuccessWithAnErrorInsideIsAnError) {
  FakeHttpServer server([&](const FakeRequest& request) {
    FakeAnswer answer = Error(200, "InternalError");
    if (request.number > 1) {
      answer.body =
          "<CompleteMultipartUploadResult><ETag>\"e-1\"</ETag>"
          "</CompleteMultipartUploadResult>";
    }
    return answer;
  });
  const auto client = Make(server.endpoint());
  const auto etag = client->CompleteMultipart(
      {.bucket = "bucket", .key = "key", .upload_id = "u"},
      {{.number = 1, .etag = "\"e\"", .size_bytes = 1}});
  ASSERT_TRUE(etag.ok()) << etag.status();
  EXPECT_EQ(*etag, "\"e-1\"");
  EXPECT_EQ(server.requests().size(), 2);
  EXPECT_THAT(server.requests()[1].body,
              HasSubstr("<Part><PartNumber>1</PartNumber><ETag>\"e\"</ETag>"));
}

// MD5 sums of "a" and "b" and of both sums behind one another, by md5sum.
TEST_F(S3ClientTest, ACompletionWhoseAnswerWasLostIsFoundOut) {
  std::string etag;
  FakeHttpServer server([&](const FakeRequest& request) {
    FakeAnswer answer;
    if (request.number % 3 == 1) {
      answer.no_answer = true;
      answer.reset = true;
      return answer;
    }
    if (request.method == "POST") return Error(404, "NoSuchUpload");
    answer.headers = {{"ETag", etag}};
    answer.body = "ab";
    return answer;
  });
  const std::vector<S3Part> parts = {
      {.number = 1,
       .etag = "\"0cc175b9c0f1b6a831c399e269772661\"",
       .size_bytes = 1},
      {.number = 2,
       .etag = "\"92eb5ffee6ae2fec3ad71c777531578f\"",
       .size_bytes = 1}};
  const S3Client::PartOf upload{
      .bucket = "bucket", .key = "key", .upload_id = "u"};
  const auto client = Make(server.endpoint());
  // An object of somebody else.
  etag = "\"00000000000000000000000000000000-2\"";
  EXPECT_THAT(client->CompleteMultipart(upload, parts),
              StatusIs(StatusCode::kNotFound, HasSubstr("NoSuchUpload")));
  etag = "\"96e024ba2074fe77e8e965ba43a704be-2\"";
  const auto completed = client->CompleteMultipart(upload, parts);
  EXPECT_TRUE(completed.ok()) << completed.status();
}

TEST_F(S3ClientTest, RefusedCredentialsAreAskedForAnew) {
  struct Provider final : CredentialsProvider {
    absl::StatusOr<S3Credentials> Get() override {
      return S3Credentials{.access_key_id = absl::StrCat("key", refusals),
                           .secret_access_key = "s"};
    }
    void Refused() override { ++refusals; }
    int refusals = 0;
  };
  FakeHttpServer server([&](const FakeRequest& request) {
    if (absl::StrContains(request.headers.at("authorization"),
                          "Credential=key0")) {
      return Error(400, "ExpiredToken");
    }
    return FakeAnswer{.headers = {{"ETag", "\"e\""}}};
  });
  S3ClientOptions options;
  options.endpoint = server.endpoint();
  options.path_style = true;
  options.credentials = std::make_shared<Provider>();
  const auto client = *S3Client::Create(options);
  EXPECT_TRUE(client->Put("bucket", "key", {}).ok());
  EXPECT_EQ(server.requests().size(), 2);
}

TEST_F(S3ClientTest, AClockThatIsOffIsCorrectedByTheStores) {
  FakeHttpServer server([&](const FakeRequest& request) {
    if (request.number == 1) {
      FakeAnswer answer = Error(403, "RequestTimeTooSkewed");
      answer.headers.emplace_back("Date", "Fri, 24 May 2013 00:00:00 GMT");
      return answer;
    }
    EXPECT_THAT(request.headers.at("x-amz-date"), HasSubstr("20130524T00"));
    return FakeAnswer{.headers = {{"ETag", "\"e\""}}};
  });
  const auto client = Make(server.endpoint());
  EXPECT_TRUE(client->Put("bucket", "key", {}).ok());
  EXPECT_EQ(server.requests().size(), 2);
}

TEST_F(S3ClientTest, SendsKeysAndQueriesAsTheyWereSigned) {
  FakeHttpServer server([](const FakeRequest&) {
    return FakeAnswer{.headers = {{"ETag", "\"e\""}}};
  });
  const auto client = Make(server.endpoint());
  ASSERT_TRUE(client
                  ->UploadPart({.bucket = "bucket",
                                .key = "a b/../c+d$\xc3\xa4",
                                .upload_id = "u/=+",
                                .number = 7},
                               {.bytes = AsBytes("xyz")})
                  .ok());
  const FakeRequest request = server.requests()[0];
  EXPECT_EQ(request.target,
            "/bucket/a%20b/../c%2Bd%24%C3%A4?partNumber=7&uploadId=u%2F%3D%2B");
  EXPECT_EQ(request.body, "xyz");
  EXPECT_EQ(request.headers.count("expect"), 0);
  EXPECT_EQ(request.headers.at("x-amz-content-sha256"), Sha256Hex("xyz"));
}

TEST_F(S3ClientTest, VirtualHostsPutTheBucketIntoTheName) {
  FakeHttpServer server([](const FakeRequest&) {
    return FakeAnswer{.headers = {{"ETag", "\"e\""}}};
  });
  S3ClientOptions options;
  // libcurl resolves names below localhost itself, to loopback.
  options.endpoint = absl::StrCat("http://localhost:", server.port());
  options.credentials = MakeStaticCredentials(
      {.access_key_id = "key", .secret_access_key = "secret"});
  const auto client = *S3Client::Create(options);
  ASSERT_TRUE(client->Put("bucket", "key", {}).ok());
  EXPECT_EQ(server.requests()[0].target, "/key");
  EXPECT_EQ(server.requests()[0].headers.at("host"),
            absl::StrCat("bucket.localhost:", server.port()));
}

TEST_F(S3ClientTest, EndpointsAndLocationsAreChecked) {
  for (const char* bad : {"ftp://x", "http://", "http://h/path", "x:80"}) {
    S3ClientOptions options;
    options.endpoint = bad;
    EXPECT_THAT(S3Client::Create(options).status(),
                StatusIs(StatusCode::kInvalidArgument, HasSubstr(bad)));
  }
  const auto location = ParseS3Url("s3://my-bucket/a/b.xml");
  ASSERT_TRUE(location.ok());
  EXPECT_EQ(location->bucket, "my-bucket");
  EXPECT_EQ(location->key, "a/b.xml");
  for (const char* bad : {"s3:/x/y", "http://b/k", "s3://B/k", "s3://ab/k",
                          "s3://a_b_c/k", "s3://a@evil.com/k"}) {
    EXPECT_FALSE(ParseS3Url(bad).ok()) << bad;
  }
}

}  // namespace
}  // namespace ovpress
