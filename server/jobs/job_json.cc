#include "server/jobs/job_json.h"

#include <limits>

#include "absl/strings/cord.h"
#include "absl/strings/escaping.h"
#include "absl/strings/str_cat.h"
#include "nlohmann/json.hpp"

namespace ovpress {
namespace {

using Json = nlohmann::json;

Json ToJson(const BlobRef& ref) { return {ref.sha256, ref.size_bytes}; }
BlobRef RefOf(const Json& json) {
  return {json.at(0).get<std::string>(), json.at(1).get<uint64_t>()};
}

std::string Text(const Json& json) {
  // ASCII only: a label may hold a NUL, which PostgreSQL's text may not.
  return json.dump(-1, ' ', true, Json::error_handler_t::replace);
}

// nlohmann's exceptions end here.
template <typename Function>
absl::Status Read(absl::string_view text, const Function& read) {
  try {
    read(Json::parse(text.begin(), text.end()));
    return absl::OkStatus();
  } catch (const nlohmann::json::exception& error) {
    return absl::DataLossError(absl::StrCat("stored job: ", error.what()));
  }
}

}  // namespace

int64_t ToStoredMicros(absl::Time time) {
  if (time == absl::InfinitePast()) return std::numeric_limits<int64_t>::min();
  if (time == absl::InfiniteFuture()) {
    return std::numeric_limits<int64_t>::max();
  }
  return absl::ToUnixMicros(time);
}

absl::Time FromStoredMicros(int64_t micros) {
  if (micros == std::numeric_limits<int64_t>::min()) {
    return absl::InfinitePast();
  }
  if (micros == std::numeric_limits<int64_t>::max()) {
    return absl::InfiniteFuture();
  }
  return absl::FromUnixMicros(micros);
}

std::string SpecToJson(const JobSpec& spec) {
  return Text({{"xml", ToJson(spec.xml)},
               {"bin", ToJson(spec.bin)},
               {"options", spec.options_json},
               {"canonical", spec.canonical_options},
               {"mode", spec.mode},
               {"memory", spec.memory_budget_bytes},
               {"measure", spec.measure_error},
               {"labels", spec.labels},
               {"ttl_us", absl::ToInt64Microseconds(spec.ttl)},
               {"max_run_us", absl::ToInt64Microseconds(spec.max_run_time)},
               {"no_cache", spec.ignore_result_cache},
               {"out_xml", spec.output_xml_address},
               {"out_bin", spec.output_bin_address}});
}

absl::Status SpecFromJson(absl::string_view text, JobSpec* spec) {
  return Read(text, [spec](const Json& json) {
    spec->xml = RefOf(json.at("xml"));
    spec->bin = RefOf(json.at("bin"));
    json.at("options").get_to(spec->options_json);
    json.at("canonical").get_to(spec->canonical_options);
    json.at("mode").get_to(spec->mode);
    json.at("memory").get_to(spec->memory_budget_bytes);
    json.at("measure").get_to(spec->measure_error);
    json.at("labels").get_to(spec->labels);
    spec->ttl = absl::Microseconds(json.at("ttl_us").get<int64_t>());
    spec->max_run_time =
        absl::Microseconds(json.at("max_run_us").get<int64_t>());
    json.at("no_cache").get_to(spec->ignore_result_cache);
    // Not in records of version 0.1.
    spec->output_xml_address = json.value("out_xml", "");
    spec->output_bin_address = json.value("out_bin", "");
  });
}

std::string EndToJson(const JobRecord& job) {
  Json payloads = Json::object();
  job.error.ForEachPayload([&](absl::string_view url, const absl::Cord& value) {
    payloads[std::string(url)] = absl::Base64Escape(std::string(value));
  });
  Json json = {{"code", static_cast<int>(job.error.code())},
               {"message", job.error.message()},
               {"payloads", payloads}};
  const JobResult& result = job.result;
  if (job.state == JobState::kSucceeded) {
    json["result"] = {
        {"xml", ToJson(result.xml)},       {"bin", ToJson(result.bin)},
        {"report", ToJson(result.report)}, {"before", result.bin_bytes_before},
        {"after", result.bin_bytes_after}, {"elements", result.weight_elements},
        {"bits", result.bits_per_weight},  {"share", result.primary_share},
        {"hit", result.cache_hit},         {"engine", result.engine_version},
        {"warnings", result.warnings}};
  }
  return Text(json);
}

absl::Status EndFromJson(absl::string_view text, JobRecord* job) {
  return Read(text, [job](const Json& json) {
    const int code = json.at("code").get<int>();
    job->error = absl::OkStatus();
    if (code != 0) {
      job->error = absl::Status(static_cast<absl::StatusCode>(code),
                                json.at("message").get<std::string>());
      for (const auto& [url, value] : json.at("payloads").items()) {
        std::string bytes;
        if (absl::Base64Unescape(value.get<std::string>(), &bytes)) {
          job->error.SetPayload(url, absl::Cord(bytes));
        }
      }
    }
    if (job->state != JobState::kSucceeded) return;
    const Json& result = json.at("result");
    job->result.xml = RefOf(result.at("xml"));
    job->result.bin = RefOf(result.at("bin"));
    job->result.report = RefOf(result.at("report"));
    result.at("before").get_to(job->result.bin_bytes_before);
    result.at("after").get_to(job->result.bin_bytes_after);
    result.at("elements").get_to(job->result.weight_elements);
    result.at("bits").get_to(job->result.bits_per_weight);
    result.at("share").get_to(job->result.primary_share);
    result.at("hit").get_to(job->result.cache_hit);
    result.at("engine").get_to(job->result.engine_version);
    result.at("warnings").get_to(job->result.warnings);
  });
}

std::string ProgressToJson(const JobProgress& progress) {
  return Text(
      {{"phase", progress.phase},
       {"elapsed_us", absl::ToInt64Microseconds(progress.phase_elapsed)},
       {"done", progress.bytes_done},
       {"total", progress.bytes_total},
       {"weights_done", progress.weights_done},
       {"weights_total", progress.weights_total},
       {"warnings", progress.warnings}});
}

absl::Status ProgressFromJson(absl::string_view text, JobProgress* progress) {
  return Read(text, [progress](const Json& json) {
    json.at("phase").get_to(progress->phase);
    progress->phase_elapsed =
        absl::Microseconds(json.at("elapsed_us").get<int64_t>());
    json.at("done").get_to(progress->bytes_done);
    json.at("total").get_to(progress->bytes_total);
    json.at("weights_done").get_to(progress->weights_done);
    json.at("weights_total").get_to(progress->weights_total);
    json.at("warnings").get_to(progress->warnings);
  });
}

}  // namespace ovpress
