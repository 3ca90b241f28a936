// What a job's holder and the servers that help it tell each other about a
// part: JSON in ASCII, between servers of one engine version only. Doubles
// travel as the hexadecimal digits of their bits, so that they arrive as they
// were, infinities and NaN included.
#ifndef OVPRESS_SERVER_JOBS_PART_MESSAGE_H_
#define OVPRESS_SERVER_JOBS_PART_MESSAGE_H_

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "absl/strings/string_view.h"
#include "core/engine/compression.h"

namespace ovpress {

// Score the weights [begin, end) of Compression::score_count(), or write a
// part to the range of a shared output that `range_handle` names.
struct PartOrder {
  struct Score {
    uint64_t begin = 0;
    uint64_t end = 0;
  };
  struct Write {
    Part part;
    std::string range_handle;
  };
  std::optional<Score> score;  // one of both
  std::optional<Write> write;
};

// What a written part comes to.
struct WrittenPart {
  PartResult result;
  std::string receipt;  // RangeWriter::Finish()
};

// The readers are for what the writers made; all else is kDataLoss.
std::string ToText(const PartOrder& order);
absl::StatusOr<PartOrder> PartOrderFromText(absl::string_view text);
std::string ToText(const WrittenPart& written);
absl::StatusOr<WrittenPart> WrittenPartFromText(absl::string_view text);
std::string ScoresToText(const std::vector<double>& scores);
absl::StatusOr<std::vector<double>> ScoresFromText(absl::string_view text);

}  // namespace ovpress

#endif  // OVPRESS_SERVER_JOBS_PART_MESSAGE_H_
