// use_client HOST:PORT IN.xml OUT.xml: the same by a server.
#include <iostream>
#include <memory>
#include <string>

#include "client/lib/client.h"
#include "core/base/io.h"
#include "core/base/status_macros.h"

namespace {

absl::Status Fetch(ovpress::Client& client, const ovpress::v1::Blob& blob,
                   const std::string& path) {
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ovpress::AtomicFile> file,
                           ovpress::AtomicFile::Create(
                               path, static_cast<uint64_t>(blob.size_bytes())));
  OVPRESS_RETURN_IF_ERROR(
      client.Download(blob, *file, [](uint64_t, uint64_t) {}));
  return file->Commit();
}

absl::StatusOr<ovpress::v1::Blob> Send(ovpress::Client& client,
                                       const std::string& path) {
  OVPRESS_ASSIGN_OR_RETURN(const std::unique_ptr<ovpress::ByteSource> bytes,
                           ovpress::OpenFileSource(path));
  return client.Upload(*bytes, [](uint64_t, uint64_t) {});
}

// "NAME.xml" -> "NAME.bin".
std::string BinOf(const std::string& xml) {
  return xml.substr(0, xml.size() - 3) + "bin";
}

absl::Status Run(const std::string& server, const std::string& in_xml,
                 const std::string& out_xml) {
  OVPRESS_ASSIGN_OR_RETURN(
      const std::unique_ptr<ovpress::Client> client,
      ovpress::Client::Create(
          {.server = server, .retry_for = absl::Seconds(10)}));
  ovpress::v1::CompressModelRequest request;
  request.mutable_options()->set_mode("int8_sym");
  OVPRESS_ASSIGN_OR_RETURN(*request.mutable_model()->mutable_xml(),
                           Send(*client, in_xml));
  OVPRESS_ASSIGN_OR_RETURN(*request.mutable_model()->mutable_bin(),
                           Send(*client, BinOf(in_xml)));
  OVPRESS_ASSIGN_OR_RETURN(google::longrunning::Operation job,
                           client->Submit(request));
  OVPRESS_ASSIGN_OR_RETURN(
      job, client->Watch(job.name(),
                         [](const ovpress::v1::CompressModelMetadata&) {}));
  OVPRESS_ASSIGN_OR_RETURN(const ovpress::v1::CompressModelResponse result,
                           ovpress::ResultOf(job));
  OVPRESS_RETURN_IF_ERROR(Fetch(*client, result.model().xml(), out_xml));
  return Fetch(*client, result.model().bin(), BinOf(out_xml));
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const absl::Status status = Run(argv[1], argv[2], argv[3]);
  if (!status.ok()) std::cerr << status << "\n";
  return status.ok() ? 0 : 1;
}
