// `ovpress compare`: what it prints. The comparison is in core/analysis.
#ifndef OVPRESS_CLIENT_CLI_COMPARE_H_
#define OVPRESS_CLIENT_CLI_COMPARE_H_

#include <optional>
#include <string>

#include "CLI/CLI.hpp"
#include "absl/status/statusor.h"
#include "core/analysis/compare.h"

namespace ovpress {

struct CompareFlags {
  std::string a_xml;
  std::string b_xml;
  size_t worst = 10;
  bool json = false;
  std::string html_file;
  std::optional<double> min_sqnr_db;
  int threads = 0;
  bool quiet = false;

  void Register(CLI::App* app);
};

struct CompareOutcome {
  std::string text;     // for stdout
  std::string html;     // empty unless asked for
  std::string failure;  // why --min-sqnr is not met; empty if it is
};

// Reads both models with their .bin files and compares them. kNotFound if no
// weight of one is in the other.
absl::StatusOr<CompareOutcome> RunCompare(const CompareFlags& flags);

// The parts, for tests. `a` and `b` name the models.
std::string CompareText(const ModelComparison& comparison, const std::string& a,
                        const std::string& b, size_t worst);
std::string CompareJson(const ModelComparison& comparison, const std::string& a,
                        const std::string& b);
// One page without any external resource.
std::string CompareHtml(const ModelComparison& comparison, const std::string& a,
                        const std::string& b);
// Why a model falls short of the limit; empty if it does not. A weight without
// a partner of its shape falls short.
std::string BelowSqnr(const ModelComparison& comparison, double min_sqnr_db);

// Counts of weights over ranges of SQNR.
struct SqnrHistogram {
  struct Bin {
    double low = 0;
    double high = 0;
    size_t count = 0;
  };
  std::vector<Bin> bins;  // ascending, neighbouring, at most 24
  size_t equal = 0;       // no error at all
  size_t unusable = 0;    // no finite SQNR: w is 0, or d is not finite
};
SqnrHistogram MakeSqnrHistogram(const ModelComparison& comparison);

}  // namespace ovpress

#endif  // OVPRESS_CLIENT_CLI_COMPARE_H_
