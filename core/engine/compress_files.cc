// The local job: files in, files out, whole or not at all.
#include <sys/stat.h>

#include <filesystem>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/strip.h"
#include "core/base/gathering_sink.h"
#include "core/base/memory.h"
#include "core/base/status_macros.h"
#include "core/engine/compression.h"

namespace ovpress {
namespace {

// True if both names lead to the same file (links followed).
bool IsSameFile(const std::string& a, const std::string& b) {
  struct stat sa;
  struct stat sb;
  if (::stat(a.c_str(), &sa) != 0 || ::stat(b.c_str(), &sb) != 0) return false;
  return sa.st_dev == sb.st_dev && sa.st_ino == sb.st_ino;
}

}  // namespace

std::string BinPathOf(const std::string& xml_path) {
  return absl::StrCat(absl::StripSuffix(xml_path, ".xml"), ".bin");
}

absl::Status CheckOutputName(const std::string& out_xml) {
  if (!absl::EndsWith(out_xml, ".xml")) {
    return absl::InvalidArgumentError(
        absl::StrCat("the output '", out_xml,
                     "' must be named NAME.xml; the weights go "
                     "to NAME.bin beside it"));
  }
  return absl::OkStatus();
}

absl::Status CheckFileNames(const FileJob& job) {
  OVPRESS_RETURN_IF_ERROR(CheckOutputName(job.out_xml));
  if (job.in_bin.empty() && !absl::EndsWith(job.in_xml, ".xml")) {
    return absl::InvalidArgumentError(absl::StrCat(
        "the input '", job.in_xml, "' must be the .xml of an OpenVINO IR"));
  }
  const std::string in_bin =
      job.in_bin.empty() ? BinPathOf(job.in_xml) : job.in_bin;
  const std::string out_bin = BinPathOf(job.out_xml);
  for (const std::string* in : {&job.in_xml, &in_bin}) {
    for (const std::string* out : {&job.out_xml, &out_bin}) {
      if (IsSameFile(*in, *out)) {
        return absl::InvalidArgumentError(
            absl::StrCat("output '", *out, "' is the input '", *in,
                         "'; the input is never overwritten, choose another "
                         "output name"));
      }
    }
  }
  return absl::OkStatus();
}

namespace {

absl::StatusOr<Report> CompressFilesOrThrow(const FileJob& job,
                                            const CompressionOptions& options,
                                            const RunOptions& run) {
  const auto report_phase = [&run](Phase phase) {
    if (run.progress) run.progress({.phase = phase});
  };
  OVPRESS_RETURN_IF_ERROR(CheckFileNames(job));
  const std::string in_bin =
      job.in_bin.empty() ? BinPathOf(job.in_xml) : job.in_bin;
  const std::string out_bin = BinPathOf(job.out_xml);

  report_phase(Phase::kPlanning);
  OVPRESS_ASSIGN_OR_RETURN(std::string xml,
                           ReadSmallFile(job.in_xml, IrLimits().xml_bytes_max));
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<Compression> compression,
                           Compression::Create(std::move(xml), options));
  // A model without constants may come without a .bin.
  std::unique_ptr<ByteSource> bin;
  if (compression->model().constants().empty() &&
      !std::filesystem::exists(in_bin)) {
    bin = MakeMemorySource({});
  } else {
    OVPRESS_ASSIGN_OR_RETURN(bin, OpenFileSource(in_bin));
  }
  OVPRESS_RETURN_IF_ERROR(
      compression->model().CheckConstantRanges(bin->size_bytes()));
  if (compression->needs_scores()) {
    OVPRESS_RETURN_IF_ERROR(compression->ComputeScores(*bin, run));
  }
  OVPRESS_ASSIGN_OR_RETURN(
      std::unique_ptr<AtomicFile> bin_file,
      AtomicFile::Create(out_bin, compression->output_bin_bytes()));
  OVPRESS_ASSIGN_OR_RETURN(std::unique_ptr<AtomicFile> xml_file,
                           AtomicFile::Create(job.out_xml, 0));
  GatheringSink out(bin_file.get(), compression->output_bin_bytes());
  OVPRESS_RETURN_IF_ERROR(compression->Run(*bin, out, run));
  OVPRESS_RETURN_IF_ERROR(out.Flush());
  report_phase(Phase::kFinishing);
  const std::string out_xml = compression->OutputXml();
  OVPRESS_RETURN_IF_ERROR(xml_file->WriteAt(0, AsBytes(out_xml)));
  OVPRESS_RETURN_IF_ERROR(bin_file->Sync());
  OVPRESS_RETURN_IF_ERROR(xml_file->Sync());
  if (run.stop != nullptr && run.stop->load()) {
    return absl::CancelledError("the compression was cancelled");
  }
  // Made before: from here on nothing but the names can fail.
  Report report = compression->report();
  // The .bin first: who sees the new .xml finds its weights.
  AtomicFile* const files[] = {bin_file.get(), xml_file.get()};
  OVPRESS_RETURN_IF_ERROR(PublishTogether(files));
  report_phase(Phase::kDone);
  return report;
}

}  // namespace

absl::StatusOr<Report> CompressFiles(const FileJob& job,
                                     const CompressionOptions& options,
                                     const RunOptions& run) {
  return CatchOutOfMemory(
      [&] { return CompressFilesOrThrow(job, options, run); });
}

}  // namespace ovpress
