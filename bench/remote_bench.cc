// Remote compression against the plain transfer of the same bytes: what goes in
// is uploaded and what comes out is downloaded by the same ByteStream code, but
// nothing is compressed. The contestants take turns; ratios are of one round.
// An upload hashes the bytes before it sends them, CompressStream does not: the
// time of that pass, measured beside the others, is taken off for a second
// ratio, against the bytes alone.
//
//   ovpress-server --max-store-bytes 8GB --min-blob-age 0.1 --data-dir DIR &
//   remote_bench big.xml --server 127.0.0.1:8470 --server-pid $!
#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

#include "CLI/CLI.hpp"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "client/lib/client.h"
#include "core/base/heap.h"
#include "core/base/io.h"
#include "core/base/sha256.h"
#include "core/base/status_macros.h"
#include "core/engine/compression.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

namespace lro = google::longrunning;

struct Flags {
  std::string input;
  std::string server;
  std::string work = ".";
  std::string mode = "int8_asym";
  int64_t group_size = 0;
  double ratio = 1;
  int rounds = 3;
  int server_pid = 0;
  bool json = false;
};

double Seconds() {
  return std::chrono::duration<double>(
             std::chrono::steady_clock::now().time_since_epoch())
      .count();
}

double Median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// The .bin and eight bytes behind it that no constant uses: each upload is of
// new content, and the compressed bytes stay the same.
class Salted final : public ByteSource {
 public:
  Salted(ByteSource* bin, uint64_t salt) : bin_(bin), salt_(salt) {}
  uint64_t size_bytes() const override {
    return bin_->size_bytes() + sizeof(salt_);
  }
  absl::Status ReadAt(uint64_t offset, std::span<std::byte> out) override {
    const uint64_t size = bin_->size_bytes();
    const size_t inside = static_cast<size_t>(
        std::min<uint64_t>(out.size(), offset < size ? size - offset : 0));
    if (inside > 0) {
      OVPRESS_RETURN_IF_ERROR(bin_->ReadAt(offset, out.first(inside)));
    }
    const auto salt = std::as_bytes(std::span(&salt_, 1));
    for (size_t i = inside; i < out.size(); ++i) {
      out[i] = salt[offset + i - size];
    }
    return absl::OkStatus();
  }

 private:
  ByteSource* const bin_;
  const uint64_t salt_;
};

// Written and not synced: the disk's speed is not the question.
class PlainFile final : public ByteSink {
 public:
  explicit PlainFile(const std::string& path)
      : fd_(::open(path.c_str(), O_CREAT | O_TRUNC | O_WRONLY, 0600)) {}
  ~PlainFile() override { ::close(fd_); }
  absl::Status WriteAt(uint64_t offset,
                       std::span<const std::byte> bytes) override {
    while (!bytes.empty()) {
      const ssize_t n =
          ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
      if (n <= 0) return ErrnoToStatus(errno, "writing the output");
      offset += static_cast<uint64_t>(n);
      bytes = bytes.subspan(static_cast<size_t>(n));
    }
    return absl::OkStatus();
  }

 private:
  const int fd_;
};

class Bench {
 public:
  Bench(Flags flags, std::unique_ptr<Client> client, std::string xml,
        std::unique_ptr<ByteSource> bin)
      : flags_(std::move(flags)),
        xml_(std::move(xml)),
        bin_(std::move(bin)),
        out_path_(flags_.work + "/remote-bench.bin"),
        client_(std::move(client)),
        salt_(static_cast<uint64_t>(
            std::chrono::system_clock::now().time_since_epoch().count())) {
    options_.set_mode(flags_.mode);
    if (flags_.group_size != 0) options_.set_group_size(flags_.group_size);
    if (flags_.ratio < 1) options_.set_ratio(flags_.ratio);
  }

  absl::Status Run() {
    // Warms up, and leaves the result that Plain() downloads.
    OVPRESS_RETURN_IF_ERROR(Job());
    for (int round = 0; round < flags_.rounds; ++round) {
      OVPRESS_ASSIGN_OR_RETURN(const double plain,
                               Time([this] { return Plain(); }));
      OVPRESS_ASSIGN_OR_RETURN(const double hash,
                               Time([this] { return Hash(); }));
      OVPRESS_ASSIGN_OR_RETURN(const double stream,
                               Time([this] { return Stream(); }));
      OVPRESS_ASSIGN_OR_RETURN(const double job,
                               Time([this] { return Job(); }));
      plain_.push_back(plain);
      stream_.push_back(stream);
      job_.push_back(job);
      bytes_.push_back(plain - hash);
      stream_ratio_.push_back(stream / plain);
      stream_bytes_ratio_.push_back(stream / (plain - hash));
      job_ratio_.push_back(job / plain);
    }
    Print();
    return absl::OkStatus();
  }

 private:
  template <typename Body>
  absl::StatusOr<double> Time(Body body) {
    ::unlink(out_path_.c_str());
    ::sync();
    const double start = Seconds();
    OVPRESS_RETURN_IF_ERROR(body());
    return Seconds() - start;
  }
  static void Silent(uint64_t, uint64_t) {}

  absl::Status Plain() {
    Salted bin(bin_.get(), ++salt_);
    OVPRESS_RETURN_IF_ERROR(client_->Upload(bin, Silent).status());
    PlainFile out(out_path_);
    return client_->Download(result_.bin(), out, Silent);
  }

  // What Upload() does before it sends the first byte.
  absl::Status Hash() {
    Salted bin(bin_.get(), ++salt_);
    Sha256Hasher hasher;
    std::vector<std::byte> block(1 << 20);
    for (uint64_t at = 0; at < bin.size_bytes(); at += block.size()) {
      const std::span<std::byte> bytes(
          block.data(), std::min<uint64_t>(block.size(), bin.size_bytes() - at));
      OVPRESS_RETURN_IF_ERROR(bin.ReadAt(at, bytes));
      hasher.Update(bytes);
    }
    (void)hasher.FinishHex();
    return absl::OkStatus();
  }

  absl::Status Stream() {
    Salted bin(bin_.get(), ++salt_);
    Client::StreamInput input{.xml = xml_, .bin = &bin};
    *input.open.mutable_options() = options_;
    PlainFile out(out_path_);
    OVPRESS_ASSIGN_OR_RETURN(
        const Client::StreamOutput output,
        client_->CompressStream(input, out,
                                [](const Client::StreamProgress&) {}));
    return CheckResult(output.result.model());
  }

  absl::Status Job() {
    Salted bin(bin_.get(), ++salt_);
    v1::CompressModelRequest request;
    OVPRESS_ASSIGN_OR_RETURN(*request.mutable_model()->mutable_bin(),
                             client_->Upload(bin, Silent));
    const auto xml = MakeMemorySource(AsBytes(xml_));
    OVPRESS_ASSIGN_OR_RETURN(*request.mutable_model()->mutable_xml(),
                             client_->Upload(*xml, Silent));
    *request.mutable_options() = options_;
    request.set_ignore_result_cache(true);
    OVPRESS_ASSIGN_OR_RETURN(const lro::Operation started,
                             client_->Submit(request));
    const double start = Seconds();
    OVPRESS_ASSIGN_OR_RETURN(
        const lro::Operation operation,
        client_->Watch(started.name(),
                       [](const v1::CompressModelMetadata&) {}));
    job_only_.push_back(Seconds() - start);
    OVPRESS_ASSIGN_OR_RETURN(const v1::CompressModelResponse response,
                             ResultOf(operation));
    PlainFile out(out_path_);
    OVPRESS_RETURN_IF_ERROR(
        client_->Download(response.model().bin(), out, Silent));
    return CheckResult(response.model());
  }

  // Every way gives the same bytes; the transfers checked them.
  absl::Status CheckResult(const v1::ModelBlobs& model) {
    if (result_.bin().sha256().empty()) result_ = model;
    if (model.bin().sha256() != result_.bin().sha256() ||
        model.xml().sha256() != result_.xml().sha256()) {
      return absl::InternalError("two ways gave different bytes");
    }
    return absl::OkStatus();
  }

  std::string ServerPeak() const {
    std::ifstream in(absl::StrCat("/proc/", flags_.server_pid, "/status"));
    for (std::string line; std::getline(in, line);) {
      if (line.rfind("VmHWM:", 0) == 0) return line.substr(6);
    }
    return "unknown";
  }

  void Print() const {
    nlohmann::ordered_json json;
    json["mode"] = flags_.mode;
    json["input_bytes"] = bin_->size_bytes();
    json["output_bytes"] = result_.bin().size_bytes();
    json["rounds"] = flags_.rounds;
    json["plain_seconds"] = Median(plain_);
    json["plain_without_hash_seconds"] = Median(bytes_);
    json["stream_seconds"] = Median(stream_);
    json["stream_ratio"] = Median(stream_ratio_);
    json["stream_ratio_without_hash"] = Median(stream_bytes_ratio_);
    json["job_seconds"] = Median(job_);
    json["job_ratio"] = Median(job_ratio_);
    json["job_without_transfers_seconds"] = Median(job_only_);
    json["server_peak"] = ServerPeak();
    if (flags_.json) {
      std::cout << json.dump(2) << "\n";
      return;
    }
    std::cout << absl::StrFormat(
        "%s, %.2f GB in, %.2f GB out, %d rounds, medians\n"
        "plain transfer            %6.2f s, without the client's hash %.2f s\n"
        "CompressStream            %6.2f s   %.2f x, %.2f x\n"
        "upload + job + download   %6.2f s   %.2f x (%.2f s from submission "
        "to end)\n"
        "server's peak memory   %s\n",
        flags_.mode, static_cast<double>(bin_->size_bytes()) / 1e9,
        static_cast<double>(result_.bin().size_bytes()) / 1e9, flags_.rounds,
        Median(plain_), Median(bytes_), Median(stream_),
        Median(stream_ratio_), Median(stream_bytes_ratio_), Median(job_),
        Median(job_ratio_), Median(job_only_), ServerPeak());
  }

  const Flags flags_;
  const std::string xml_;
  const std::unique_ptr<ByteSource> bin_;
  const std::string out_path_;
  const std::unique_ptr<Client> client_;
  uint64_t salt_;
  v1::CompressionOptions options_;
  v1::ModelBlobs result_;
  std::vector<double> plain_, bytes_, stream_, job_, job_only_;
  std::vector<double> stream_ratio_, stream_bytes_ratio_, job_ratio_;
};

absl::Status Main(const Flags& flags) {
  OVPRESS_ASSIGN_OR_RETURN(std::string xml,
                           ReadSmallFile(flags.input, 256 << 20));
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<ByteSource> bin,
                           OpenFileSource(BinPathOf(flags.input)));
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<Client> client,
                           Client::Create({.server = flags.server}));
  Bench bench(flags, std::move(client), std::move(xml), std::move(bin));
  return bench.Run();
}

}  // namespace
}  // namespace ovpress

int main(int argc, char** argv) {
  ovpress::KeepMessageBuffers();
  CLI::App app{"Remote compression against the plain transfer", "remote_bench"};
  ovpress::Flags flags;
  app.add_option("input", flags.input, "An .xml, e.g. from make_ir")
      ->required();
  app.add_option("--server", flags.server, "HOST:PORT")->required();
  app.add_option("--server-pid", flags.server_pid, "To tell its peak memory");
  app.add_option("--work", flags.work, "Where the output goes")
      ->capture_default_str();
  app.add_option("--mode", flags.mode)->capture_default_str();
  app.add_option("--group-size", flags.group_size, "0: the mode's default");
  app.add_option("--ratio", flags.ratio)->capture_default_str();
  app.add_option("--rounds", flags.rounds)->capture_default_str();
  app.add_flag("--json", flags.json);
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = ovpress::Main(flags);
  if (!status.ok()) {
    std::cerr << "remote_bench: " << status.message() << "\n";
    return 1;
  }
  return 0;
}
