#include "server/jobs/job_store.h"

#include <limits>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"

namespace ovpress {
namespace {

std::string FilterMark(const JobFilter& filter) {
  std::string key = filter.owner.has_value() ? "o" + *filter.owner : "a";
  for (const JobState state : filter.states) {
    absl::StrAppend(&key, "|", static_cast<int>(state));
  }
  for (const auto& [name, value] : filter.labels) {
    absl::StrAppend(&key, "|", name, "=", value);
  }
  return Sha256Hex(key).substr(0, 16);
}

}  // namespace

std::string MakePageToken(const JobFilter& filter, int64_t before) {
  return absl::StrCat(before, "-", FilterMark(filter));
}

absl::StatusOr<int64_t> ReadPageToken(const JobFilter& filter,
                                      absl::string_view token) {
  int64_t before = std::numeric_limits<int64_t>::max();
  if (token.empty()) return before;
  const std::vector<absl::string_view> parts = absl::StrSplit(token, '-');
  if (parts.size() != 2 || parts[1] != FilterMark(filter) ||
      !absl::SimpleAtoi(parts[0], &before)) {
    return absl::InvalidArgumentError(
        "page_token is not of a page with this filter");
  }
  return before;
}

std::vector<BlobRef> BlobsHeldBy(const JobRecord& job) {
  if (!IsFinal(job.state)) return {job.spec.xml, job.spec.bin};
  if (job.state != JobState::kSucceeded) return {};
  return {job.result.xml, job.result.bin, job.result.report};
}

}  // namespace ovpress
