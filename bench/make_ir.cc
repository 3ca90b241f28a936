// make_ir PREFIX [--layers N] [--hidden N] ... : writes a synthetic model.
#include <iostream>

#include "CLI/CLI.hpp"
#include "bench/synthetic_ir.h"

int main(int argc, char** argv) {
  CLI::App app{"Writes a synthetic transformer-like IR", "make_ir"};
  ovpress::SyntheticModel model;
  std::string prefix;
  app.add_option("prefix", prefix, "Writes PREFIX.xml and PREFIX.bin")
      ->required();
  app.add_option("--layers", model.layers)->capture_default_str();
  app.add_option("--hidden", model.hidden)->capture_default_str();
  app.add_option("--intermediate", model.intermediate)->capture_default_str();
  app.add_option("--vocabulary", model.vocabulary)->capture_default_str();
  app.add_option("--seed", model.seed)->capture_default_str();
  app.add_flag("--sparse", model.sparse, "All zeros, without disk space");
  CLI11_PARSE(app, argc, argv);
  const absl::Status status = ovpress::WriteSynthetic(model, prefix);
  if (!status.ok()) {
    std::cerr << "make_ir: " << status.message() << "\n";
    return 1;
  }
  std::cout << prefix << ".bin: " << ovpress::SyntheticBinBytes(model)
            << " bytes\n";
  return 0;
}
