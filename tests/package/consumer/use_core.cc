// use_core IN.xml OUT.xml: compresses with the engine as a library.
#include <iostream>
#include <memory>

#include "core/base/executor.h"
#include "core/engine/compression.h"

int main(int argc, char** argv) {
  if (argc != 3) return 2;
  ovpress::CompressionOptions options;
  options.mode = ovpress::Mode::kInt8Sym;
  const std::unique_ptr<ovpress::Executor> executor =
      ovpress::MakeTbbExecutor(2);
  ovpress::RunOptions run;
  run.executor = executor.get();
  const absl::StatusOr<ovpress::Report> report =
      ovpress::CompressFiles({argv[1], "", argv[2]}, options, run);
  if (!report.ok()) {
    std::cerr << report.status() << "\n";
    return 1;
  }
  std::cout << report->ToTable();
  return 0;
}
