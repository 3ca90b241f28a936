// Runs a fuzz target over files and folders, without libFuzzer: the corpus as a
// plain test. Also cuts every file short at a few places, which costs little
// and is what broken transfers do.
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "tests/fuzz/input.h"

namespace {

void RunOne(const std::string& bytes) {
  // An exact copy, so that a sanitizer sees a read behind its end.
  const std::vector<uint8_t> copy(bytes.begin(), bytes.end());
  LLVMFuzzerTestOneInput(copy.data(), copy.size());
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<std::filesystem::path> files;
  for (int i = 1; i < argc; ++i) {
    if (std::filesystem::is_directory(argv[i])) {
      for (const auto& entry :
           std::filesystem::recursive_directory_iterator(argv[i])) {
        if (entry.is_regular_file()) files.push_back(entry.path());
      }
    } else if (std::filesystem::exists(argv[i])) {
      files.emplace_back(argv[i]);
    } else {
      std::fprintf(stderr, "%s: no such file or folder\n", argv[i]);
      return 2;
    }
  }
  if (files.empty()) {
    std::fprintf(stderr, "no input: nothing was checked\n");
    return 2;
  }
  std::sort(files.begin(), files.end());
  size_t runs = 0;
  for (const auto& file : files) {
    std::ifstream stream(file, std::ios::binary);
    const std::string bytes{std::istreambuf_iterator<char>(stream),
                            std::istreambuf_iterator<char>()};
    std::fprintf(stderr, "%s\n", file.c_str());
    RunOne(bytes);
    constexpr size_t kCuts = 8;
    for (size_t cut = 0; cut < kCuts; ++cut) {
      RunOne(bytes.substr(0, bytes.size() * cut / kCuts));
    }
    runs += 1 + kCuts;
  }
  std::printf("%zu files, %zu runs\n", files.size(), runs);
  return 0;
}
