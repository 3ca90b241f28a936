// Lack of memory in the body of a loop is a status, on every executor; it ended
// the process before.
#include <new>

#include "core/base/executor.h"
#include "core/base/memory.h"
#include "gmock/gmock.h"
#include "gtest/gtest.h"
#include "tests/testing/status_matchers.h"

namespace ovpress {
namespace {

using ::ovpress::testing::StatusIs;
using ::testing::HasSubstr;

TEST(OutOfMemory, IsAStatusOnEveryExecutor) {
  std::unique_ptr<Executor> executors[] = {
      MakeSerialExecutor(), MakeThreadsExecutor(3), MakeTbbExecutor(3)};
  for (const auto& executor : executors) {
    EXPECT_THAT(executor->ParallelFor(100,
                                      [](size_t i) -> absl::Status {
                                        if (i == 50) throw std::bad_alloc();
                                        return absl::OkStatus();
                                      }),
                StatusIs(absl::StatusCode::kResourceExhausted,
                         HasSubstr("out of memory")));
  }
}

}  // namespace
}  // namespace ovpress
