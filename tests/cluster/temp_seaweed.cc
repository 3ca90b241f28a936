#include "tests/cluster/temp_seaweed.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <random>

#include "absl/strings/str_cat.h"
#include "absl/time/clock.h"

namespace ovpress::testing {
namespace {

namespace fs = std::filesystem;

bool IsFree(int port) {
  const int fd = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  address.sin_port = htons(static_cast<uint16_t>(port));
  const bool free =
      ::bind(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) == 0;
  ::close(fd);
  return free;
}

// weed takes no port 0, and adds 10000 to each for its own gRPC: a block of
// ten ports, free with and without that.
int FreeBlock() {
  std::random_device random;
  for (int i = 0; i < 200; ++i) {
    const int base = 10'000 + static_cast<int>(random() % 1'000) * 10;
    bool free = true;
    for (int k = 0; k < 10; ++k) {
      free = free && IsFree(base + k) && IsFree(base + k + 10'000);
    }
    if (free) return base;
  }
  std::cerr << "no ten free ports for weed\n";
  std::abort();
}

std::string Binary() {
  const char* const given = ::getenv("OVPRESS_WEED");
  return given != nullptr ? given : OVPRESS_WEED_DEFAULT;
}

}  // namespace

TempSeaweed& TempSeaweed::Get() {
  static TempSeaweed* const instance = [] {
    auto* const made = new TempSeaweed();
    std::atexit([] { delete &Get(); });
    return made;
  }();
  return *instance;
}

TempSeaweed::TempSeaweed() {
  if (!fs::exists(Binary())) {
    std::cerr << Binary() << " is missing: run scripts/install-deps cluster, "
              << "or let OVPRESS_WEED name it\n";
    std::abort();
  }
  std::string pattern = fs::temp_directory_path() / "seaweed_XXXXXX";
  folder_ = ::mkdtemp(pattern.data());
  port_base_ = FreeBlock();
  endpoint_ = absl::StrCat("http://127.0.0.1:", port_base_);
  std::ofstream(folder_ + "/s3.json")
      << R"({"identities":[{"name":"test","credentials":[{"accessKey":")"
      << kKey << R"(","secretKey":")" << kSecret
      << R"("}],"actions":["Admin","Read","Write","List","Tagging"]}]})";
  Start();
}

void TempSeaweed::Start() {
  const auto port = [this](int k) { return absl::StrCat(port_base_ + k); };
  const std::string binary = Binary();
  const std::vector<std::string> arguments = {
      binary,
      "server",
      "-dir=" + folder_,
      "-ip=127.0.0.1",
      "-ip.bind=127.0.0.1",
      "-s3",
      "-s3.port=" + port(0),
      "-s3.config=" + folder_ + "/s3.json",
      "-s3.port.iceberg=0",
      "-s3.port.lance=0",
      "-s3.port.grpc=" + port(5),
      "-filer",
      "-filer.port=" + port(1),
      "-master.port=" + port(2),
      "-volume.port=" + port(3),
      "-volume.max=200",
      "-master.volumeSizeLimitMB=64",
      "-master.electionTimeout=1s",
      "-master.telemetry=false"};
  pid_ = ::fork();
  if (pid_ == 0) {
    ::prctl(PR_SET_PDEATHSIG, SIGKILL);
    const int log =
        ::open((folder_ + "/log").c_str(), O_WRONLY | O_CREAT | O_APPEND, 0600);
    ::dup2(log, 1);
    ::dup2(log, 2);
    std::vector<char*> raw;
    for (const std::string& argument : arguments) {
      raw.push_back(const_cast<char*>(argument.c_str()));
    }
    raw.push_back(nullptr);
    ::execv(binary.c_str(), raw.data());
    ::_exit(127);
  }
  // Ready when a bucket can be made and written to.
  S3ClientOptions options = Options();
  options.max_attempts = 1;
  const auto client = *S3Client::Create(options);
  absl::Status status;
  for (int i = 0; i < 600; ++i) {
    status = client->CreateBucket("ready");
    if (status.ok()) {
      status = client->Put("ready", "probe", {.bytes = AsBytes("x")}).status();
    }
    if (status.ok()) return;
    absl::SleepFor(absl::Milliseconds(100));
  }
  std::cerr << "weed does not get ready: " << status << "\n"
            << std::ifstream(folder_ + "/log").rdbuf() << "\n";
  std::abort();
}

TempSeaweed::~TempSeaweed() {
  ::kill(pid_, SIGKILL);
  ::waitpid(pid_, nullptr, 0);
  std::error_code ignored;
  fs::remove_all(folder_, ignored);
}

void TempSeaweed::Signal(int signal) {
  ::kill(pid_, signal);
  if (signal == SIGKILL) ::waitpid(pid_, nullptr, 0);
}

S3ClientOptions TempSeaweed::Options() const {
  S3ClientOptions options;
  options.endpoint = endpoint_;
  options.path_style = true;
  options.credentials = MakeStaticCredentials(
      {.access_key_id = kKey, .secret_access_key = kSecret});
  options.first_backoff = absl::Milliseconds(20);
  return options;
}

std::string TempSeaweed::NewBucket() {
  const std::string bucket = absl::StrCat("bucket-", ++buckets_);
  const absl::Status status =
      (*S3Client::Create(Options()))->CreateBucket(bucket);
  if (!status.ok()) {
    std::cerr << status << "\n";
    std::abort();
  }
  return bucket;
}

}  // namespace ovpress::testing
