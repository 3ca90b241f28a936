#include "server/jobs/part_message.h"

#include <bit>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

using Json = nlohmann::json;

constexpr size_t kDigits = 16;  // of a double's bits

absl::Status Unreadable(absl::string_view what) {
  return absl::DataLossError(absl::StrCat("part of a job: ", what));
}

// nlohmann's exceptions end here.
template <typename Value, typename Function>
absl::StatusOr<Value> Read(absl::string_view text, const Function& read) {
  try {
    Value value;
    const absl::Status status =
        read(Json::parse(text.begin(), text.end()), &value);
    if (!status.ok()) return status;
    return value;
  } catch (const nlohmann::json::exception& error) {
    return Unreadable(error.what());
  }
}

Json ToJson(const Part& part) {
  return {part.unit_begin, part.unit_end, part.output_begin, part.output_end,
          part.input_bytes};
}

Part PartOf(const Json& json) {
  return {.unit_begin = json.at(0).get<uint64_t>(),
          .unit_end = json.at(1).get<uint64_t>(),
          .output_begin = json.at(2).get<uint64_t>(),
          .output_end = json.at(3).get<uint64_t>(),
          .input_bytes = json.at(4).get<uint64_t>()};
}

}  // namespace

std::string ToText(const PartOrder& order) {
  if (order.score.has_value()) {
    return Json({{"score", {order.score->begin, order.score->end}}}).dump();
  }
  return Json({{"part", ToJson(order.write->part)},
               {"range", order.write->range_handle}})
      .dump();
}

absl::StatusOr<PartOrder> PartOrderFromText(absl::string_view text) {
  return Read<PartOrder>(text, [](const Json& json, PartOrder* order) {
    if (json.contains("score")) {
      const Json& range = json.at("score");
      order->score = {.begin = range.at(0).get<uint64_t>(),
                      .end = range.at(1).get<uint64_t>()};
    } else {
      order->write = {.part = PartOf(json.at("part")),
                      .range_handle = json.at("range").get<std::string>()};
    }
    return absl::OkStatus();
  });
}

std::string ToText(const WrittenPart& written) {
  std::vector<double> sums;
  for (const PartResult::Sums& unit : written.result.errors) {
    sums.push_back(unit.error);
    sums.push_back(unit.signal);
  }
  return Json({{"part", ToJson(written.result.part)},
               {"errors", ScoresToText(sums)},
               {"receipt", written.receipt}})
      .dump();
}

absl::StatusOr<WrittenPart> WrittenPartFromText(absl::string_view text) {
  return Read<WrittenPart>(
      text, [](const Json& json, WrittenPart* written) -> absl::Status {
        written->result.part = PartOf(json.at("part"));
        written->receipt = json.at("receipt").get<std::string>();
        const auto sums = ScoresFromText(json.at("errors").get<std::string>());
        if (!sums.ok()) return sums.status();
        if (sums->size() % 2 != 0) return Unreadable("an odd number of sums");
        for (size_t i = 0; i < sums->size(); i += 2) {
          written->result.errors.push_back(
              {.error = (*sums)[i], .signal = (*sums)[i + 1]});
        }
        return absl::OkStatus();
      });
}

std::string ScoresToText(const std::vector<double>& scores) {
  std::string text;
  for (const double score : scores) {
    absl::StrAppend(
        &text, absl::Hex(std::bit_cast<uint64_t>(score), absl::kZeroPad16));
  }
  return text;
}

absl::StatusOr<std::vector<double>> ScoresFromText(absl::string_view text) {
  if (text.size() % kDigits != 0) return Unreadable("a number is cut off");
  std::vector<double> scores;
  for (size_t at = 0; at < text.size(); at += kDigits) {
    uint64_t bits = 0;
    if (!absl::SimpleHexAtoi(text.substr(at, kDigits), &bits)) {
      return Unreadable("a number has other than hexadecimal digits");
    }
    scores.push_back(std::bit_cast<double>(bits));
  }
  return scores;
}

}  // namespace ovpress
