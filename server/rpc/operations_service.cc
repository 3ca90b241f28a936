#include "server/rpc/operations_service.h"

#include <algorithm>
#include <optional>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "absl/time/time.h"
#include "core/base/status_macros.h"
#include "server/rpc/call.h"
#include "server/rpc/convert.h"

namespace ovpress {
namespace {

namespace lro = google::longrunning;

// Longest WaitOperation: each blocks a thread.
constexpr absl::Duration kWaitMax = absl::Minutes(10);

// "state=RUNNING AND labels.team=search": terms joined by AND.
absl::StatusOr<JobFilter> ParseFilter(const std::string& text) {
  JobFilter filter;
  if (text.empty()) return filter;
  for (absl::string_view term : absl::StrSplit(text, " AND ")) {
    const std::vector<std::string> parts =
        absl::StrSplit(term, absl::MaxSplits('=', 1));
    absl::string_view key = parts[0];
    const auto state =
        parts.size() == 2 ? ParseJobState(parts[1]) : std::nullopt;
    if (key == "state" && state.has_value()) {
      filter.states.push_back(*state);
    } else if (parts.size() == 2 && absl::ConsumePrefix(&key, "labels.")) {
      filter.labels[std::string(key)] = parts[1];
    } else {
      return absl::InvalidArgumentError(absl::StrCat(
          "filter term '", term.substr(0, 80),
          "' must be state=QUEUED|RUNNING|SUCCEEDED|FAILED|CANCELLED or "
          "labels.KEY=VALUE; terms are joined by ' AND '"));
    }
  }
  return filter;
}

}  // namespace

grpc::Status OperationsService::ListOperations(
    grpc::ServerContext* context, const lro::ListOperationsRequest* request,
    lro::ListOperationsResponse* response) {
  return RunCall(options_,
                 {"google.longrunning.Operations/ListOperations", Scope::kRead},
                 *context, [&](const Caller& caller) -> absl::Status {
                   OVPRESS_ASSIGN_OR_RETURN(const JobFilter filter,
                                            ParseFilter(request->filter()));
                   OVPRESS_ASSIGN_OR_RETURN(
                       const JobManager::Page page,
                       options_.manager->List(JobsSeenBy(caller), filter,
                                              request->page_size(),
                                              request->page_token()));
                   for (const JobView& view : page.jobs) {
                     *response->add_operations() = OperationFromView(view);
                   }
                   response->set_next_page_token(page.next_page_token);
                   return absl::OkStatus();
                 });
}

grpc::Status OperationsService::GetOperation(
    grpc::ServerContext* context, const lro::GetOperationRequest* request,
    lro::Operation* response) {
  return RunCall(
      options_, {"google.longrunning.Operations/GetOperation", Scope::kRead},
      *context, [&](const Caller& caller) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(const std::string id,
                                 JobIdOf(request->name()));
        OVPRESS_ASSIGN_OR_RETURN(const JobView view,
                                 options_.manager->Get(JobsSeenBy(caller), id));
        *response = OperationFromView(view);
        return absl::OkStatus();
      });
}

grpc::Status OperationsService::DeleteOperation(
    grpc::ServerContext* context, const lro::DeleteOperationRequest* request,
    google::protobuf::Empty*) {
  return RunCall(
      options_,
      {"google.longrunning.Operations/DeleteOperation", Scope::kSubmit},
      *context, [&](const Caller& caller) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(const std::string id,
                                 JobIdOf(request->name()));
        return options_.manager->Delete(JobsSeenBy(caller), id);
      });
}

grpc::Status OperationsService::CancelOperation(
    grpc::ServerContext* context, const lro::CancelOperationRequest* request,
    google::protobuf::Empty*) {
  return RunCall(
      options_,
      {"google.longrunning.Operations/CancelOperation", Scope::kSubmit},
      *context, [&](const Caller& caller) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(const std::string id,
                                 JobIdOf(request->name()));
        return options_.manager->Cancel(JobsSeenBy(caller), id);
      });
}

grpc::Status OperationsService::WaitOperation(
    grpc::ServerContext* context, const lro::WaitOperationRequest* request,
    lro::Operation* response) {
  return RunCall(
      options_, {"google.longrunning.Operations/WaitOperation", Scope::kRead},
      *context, [&](const Caller& caller) -> absl::Status {
        OVPRESS_ASSIGN_OR_RETURN(const std::string id,
                                 JobIdOf(request->name()));
        absl::Duration left = kWaitMax;
        if (request->has_timeout()) {
          left =
              std::min(left, absl::Seconds(request->timeout().seconds()) +
                                 absl::Nanoseconds(request->timeout().nanos()));
        }
        OVPRESS_ASSIGN_OR_RETURN(const Watchers::Handle place,
                                 watchers_->Open(caller.identity));
        // In slices, to see that the client is still there.
        while (true) {
          const absl::Duration slice = std::min(left, absl::Milliseconds(500));
          OVPRESS_ASSIGN_OR_RETURN(
              const JobView view,
              options_.manager->Wait(JobsSeenBy(caller), id, slice));
          left -= slice;
          if (IsFinal(view.record.state) || left <= absl::ZeroDuration()) {
            *response = OperationFromView(view);
            return absl::OkStatus();
          }
          if (context->IsCancelled()) {
            return absl::CancelledError("the client went away");
          }
        }
      });
}

}  // namespace ovpress
