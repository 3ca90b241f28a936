// The wire contract's form (the rules of buf's DEFAULT and COMMENTS lists that
// apply) and its history: what was released keeps number, type and meaning.
//
// released.txt has one line for each field, enum value and method. After a
// deliberate addition write it anew with
//   OVPRESS_WRITE_RELEASED=1 build/ci/tests/proto/proto_test
// and read the difference: lines may come, none may go or change.
#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <functional>
#include <set>
#include <string>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "absl/strings/str_replace.h"
#include "absl/strings/str_split.h"
#include "gmock/gmock.h"
#include "google/protobuf/descriptor.h"
#include "google/protobuf/descriptor.pb.h"
#include "gtest/gtest.h"

namespace ovpress {
namespace {

namespace pb = google::protobuf;

constexpr const char* kFiles[] = {
    "ovpress/v1/compression.proto", "google/bytestream/bytestream.proto",
    "google/longrunning/operations.proto", "google/rpc/status.proto",
    "google/rpc/error_details.proto"};

// .proto files as they are, comments included, from what protoc made of them.
class Contract {
 public:
  Contract(const std::string& set_name, const std::vector<std::string>& names) {
    std::ifstream in(absl::StrCat(OVPRESS_DESCRIPTOR_DIR, "/", set_name),
                     std::ios::binary);
    pb::FileDescriptorSet set;
    EXPECT_TRUE(set.ParseFromIstream(&in)) << set_name;
    for (const pb::FileDescriptorProto& file : set.file()) {
      EXPECT_NE(pool_.BuildFile(file), nullptr) << file.name();
    }
    for (const std::string& name : names) {
      files_.push_back(pool_.FindFileByName(name));
      EXPECT_NE(files_.back(), nullptr) << name;
    }
  }
  Contract()
      : Contract("contract.pb", {std::begin(kFiles), std::end(kFiles)}) {}
  const std::vector<const pb::FileDescriptor*>& files() const { return files_; }

 private:
  pb::DescriptorPool pool_;
  std::vector<const pb::FileDescriptor*> files_;
};

template <typename Descriptor>
std::string CommentOf(const Descriptor* descriptor) {
  pb::SourceLocation location;
  if (!descriptor->GetSourceLocation(&location)) return "";
  return absl::StrJoin(
      absl::StrSplit(location.leading_comments, absl::ByAnyChar(" \n"),
                     absl::SkipWhitespace()),
      " ");
}

void ForEachMessage(const pb::FileDescriptor* file,
                    const std::function<void(const pb::Descriptor*)>& visit) {
  const std::function<void(const pb::Descriptor*)> walk =
      [&](const pb::Descriptor* message) {
        if (message->options().map_entry()) return;
        visit(message);
        for (int i = 0; i < message->nested_type_count(); ++i) {
          walk(message->nested_type(i));
        }
      };
  for (int i = 0; i < file->message_type_count(); ++i) {
    walk(file->message_type(i));
  }
}

void ForEachEnum(const pb::FileDescriptor* file,
                 const std::function<void(const pb::EnumDescriptor*)>& visit) {
  for (int i = 0; i < file->enum_type_count(); ++i) visit(file->enum_type(i));
  ForEachMessage(file, [&](const pb::Descriptor* message) {
    for (int i = 0; i < message->enum_type_count(); ++i) {
      visit(message->enum_type(i));
    }
  });
}

// --- form ---

bool IsPascal(absl::string_view name) {
  return !name.empty() && absl::ascii_isupper(name[0]) &&
         !absl::StrContains(name, '_');
}

bool IsSnake(absl::string_view name) {
  return !name.empty() && absl::ascii_islower(name[0]) && name.back() != '_' &&
         !absl::StrContains(name, "__") &&
         std::all_of(name.begin(), name.end(), [](char c) {
           return absl::ascii_islower(c) || absl::ascii_isdigit(c) || c == '_';
         });
}

std::string UpperSnake(absl::string_view pascal) {
  std::string out;
  for (size_t i = 0; i < pascal.size(); ++i) {
    if (i > 0 && absl::ascii_isupper(pascal[i])) out += '_';
    out += absl::ascii_toupper(pascal[i]);
  }
  return out;
}

class Linter {
 public:
  std::vector<std::string> Lint(const pb::FileDescriptor* file) {
    LintFile(file);
    ForEachMessage(file, [&](const pb::Descriptor* m) { LintMessage(m); });
    ForEachEnum(file, [&](const pb::EnumDescriptor* e) { LintEnum(e); });
    for (int i = 0; i < file->service_count(); ++i) {
      LintService(file->service(i));
    }
    return std::move(found_);
  }

 private:
  void Expect(bool holds, absl::string_view rule, const std::string& where) {
    if (!holds) found_.push_back(absl::StrCat(rule, ": ", where));
  }
  template <typename Descriptor>
  void ExpectComment(const Descriptor* descriptor) {
    Expect(!CommentOf(descriptor).empty(), "COMMENT", descriptor->full_name());
  }

  void LintFile(const pb::FileDescriptor* file) {
    const std::vector<std::string> parts = absl::StrSplit(file->name(), '/');
    const std::vector<std::string> folder(parts.begin(), parts.end() - 1);
    Expect(absl::StrJoin(folder, ".") == file->package(),
           "PACKAGE_DIRECTORY_MATCH", file->name());
    Expect(IsSnake(parts.back().substr(0, parts.back().find('.'))),
           "FILE_LOWER_SNAKE_CASE", file->name());
    Expect(!folder.empty() && folder.back().size() > 1 &&
               folder.back()[0] == 'v' && absl::ascii_isdigit(folder.back()[1]),
           "PACKAGE_VERSION_SUFFIX", file->package());
    Expect(file->syntax() == pb::FileDescriptor::SYNTAX_PROTO3, "SYNTAX_PROTO3",
           file->name());
    Expect(file->public_dependency_count() == 0, "IMPORT_NO_PUBLIC",
           file->name());
  }

  void LintMessage(const pb::Descriptor* message) {
    Expect(IsPascal(message->name()), "MESSAGE_PASCAL_CASE",
           message->full_name());
    ExpectComment(message);
    for (int i = 0; i < message->field_count(); ++i) {
      LintField(message->field(i));
    }
    for (int i = 0; i < message->real_oneof_decl_count(); ++i) {
      Expect(IsSnake(message->oneof_decl(i)->name()), "ONEOF_LOWER_SNAKE_CASE",
             message->oneof_decl(i)->full_name());
      ExpectComment(message->oneof_decl(i));
    }
  }

  void LintField(const pb::FieldDescriptor* field) {
    const std::string& name = field->name();
    Expect(IsSnake(name), "FIELD_LOWER_SNAKE_CASE", field->full_name());
    Expect(!absl::StrContains(name, "descriptor"), "FIELD_NO_DESCRIPTOR",
           field->full_name());
    ExpectComment(field);
    // Of our own: whoever reads a size must know what is counted.
    const bool is_size =
        field->cpp_type() == pb::FieldDescriptor::CPPTYPE_INT64 &&
        absl::EndsWith(name, "_size") && !absl::StartsWith(name, "group");
    const std::string comment = CommentOf(field);
    Expect(!is_size || absl::StrContains(comment, "bytes") ||
               absl::StrContains(comment, "lements"),
           "UNIT_IN_NAME_OR_COMMENT", field->full_name());
  }

  void LintEnum(const pb::EnumDescriptor* type) {
    Expect(IsPascal(type->name()), "ENUM_PASCAL_CASE", type->full_name());
    ExpectComment(type);
    const std::string prefix = UpperSnake(type->name()) + "_";
    for (int i = 0; i < type->value_count(); ++i) {
      const pb::EnumValueDescriptor* const value = type->value(i);
      Expect(absl::StartsWith(value->name(), prefix), "ENUM_VALUE_PREFIX",
             value->full_name());
      Expect(value->name() == absl::AsciiStrToUpper(value->name()),
             "ENUM_VALUE_UPPER_SNAKE_CASE", value->full_name());
      Expect(
          (value->number() == 0) == (value->name() == prefix + "UNSPECIFIED"),
          "ENUM_ZERO_VALUE_SUFFIX", value->full_name());
      ExpectComment(value);
    }
    Expect(!type->options().allow_alias(), "ENUM_NO_ALLOW_ALIAS",
           type->full_name());
  }

  void LintService(const pb::ServiceDescriptor* service) {
    Expect(IsPascal(service->name()), "SERVICE_PASCAL_CASE",
           service->full_name());
    ExpectComment(service);
    for (int i = 0; i < service->method_count(); ++i) {
      const pb::MethodDescriptor* const method = service->method(i);
      Expect(IsPascal(method->name()), "RPC_PASCAL_CASE", method->full_name());
      Expect(method->input_type()->name() == method->name() + "Request",
             "RPC_REQUEST_STANDARD_NAME", method->full_name());
      const std::string answer = method->output_type()->full_name();
      // Long-running work answers with an operation (AIP-151).
      Expect(answer == "google.longrunning.Operation" ||
                 method->output_type()->name() == method->name() + "Response",
             "RPC_RESPONSE_STANDARD_NAME", method->full_name());
      ExpectComment(method);
    }
  }

  std::vector<std::string> found_;
};

TEST(ProtoLintTest, OurFileFollowsTheRules) {
  const Contract contract;
  ASSERT_EQ(contract.files().size(), std::size(kFiles));
  EXPECT_THAT(Linter().Lint(contract.files()[0]), testing::IsEmpty());
}

TEST(ProtoLintTest, EachRuleFindsItsBreach) {
  const Contract contract("breaches.pb", {"odd/BadFile.proto"});
  std::set<std::string> rules;
  for (const std::string& line : Linter().Lint(contract.files()[0])) {
    rules.insert(line.substr(0, line.find(':')));
  }
  EXPECT_THAT(rules,
              testing::IsSupersetOf(
                  {"PACKAGE_DIRECTORY_MATCH", "FILE_LOWER_SNAKE_CASE",
                   "PACKAGE_VERSION_SUFFIX", "MESSAGE_PASCAL_CASE", "COMMENT",
                   "FIELD_LOWER_SNAKE_CASE", "UNIT_IN_NAME_OR_COMMENT",
                   "ONEOF_LOWER_SNAKE_CASE", "ENUM_VALUE_PREFIX",
                   "ENUM_ZERO_VALUE_SUFFIX", "ENUM_VALUE_UPPER_SNAKE_CASE",
                   "SERVICE_PASCAL_CASE", "RPC_PASCAL_CASE",
                   "RPC_REQUEST_STANDARD_NAME", "RPC_RESPONSE_STANDARD_NAME"}));
}

// --- history ---

std::string TypeOf(const pb::FieldDescriptor* field) {
  std::string type = field->type_name();
  if (field->message_type() != nullptr && !field->is_map()) {
    type = field->message_type()->full_name();
  } else if (field->enum_type() != nullptr) {
    type = field->enum_type()->full_name();
  } else if (field->is_map()) {
    type = absl::StrCat("map<", TypeOf(field->message_type()->map_key()), ",",
                        TypeOf(field->message_type()->map_value()), ">");
    return type;
  }
  if (field->is_repeated()) return "repeated " + type;
  if (field->real_containing_oneof() != nullptr) {
    return absl::StrCat("oneof ", field->real_containing_oneof()->name(), " ",
                        type);
  }
  return field->has_optional_keyword() ? "optional " + type : type;
}

// Everything a client relies on. What our own fields mean is what their
// comments say; the public files are declared without theirs.
std::vector<std::string> Released(const Contract& contract) {
  std::vector<std::string> lines;
  for (const pb::FileDescriptor* file : contract.files()) {
    const bool ours = absl::StartsWith(file->package(), "ovpress.");
    const auto add = [&](std::string line, const std::string& comment) {
      if (ours) absl::StrAppend(&line, "  // ", comment);
      lines.push_back(std::move(line));
    };
    ForEachMessage(file, [&](const pb::Descriptor* message) {
      for (int i = 0; i < message->field_count(); ++i) {
        const pb::FieldDescriptor* const field = message->field(i);
        add(absl::StrCat(field->full_name(), " = ", field->number(), " ",
                         TypeOf(field), " json:", field->json_name()),
            CommentOf(field));
      }
    });
    ForEachEnum(file, [&](const pb::EnumDescriptor* type) {
      for (int i = 0; i < type->value_count(); ++i) {
        add(absl::StrCat(type->full_name(), ".", type->value(i)->name(), " = ",
                         type->value(i)->number()),
            CommentOf(type->value(i)));
      }
    });
    for (int i = 0; i < file->service_count(); ++i) {
      for (int k = 0; k < file->service(i)->method_count(); ++k) {
        const pb::MethodDescriptor* const method = file->service(i)->method(k);
        add(absl::StrCat(method->full_name(), "(",
                         method->client_streaming() ? "stream " : "",
                         method->input_type()->full_name(), ") returns (",
                         method->server_streaming() ? "stream " : "",
                         method->output_type()->full_name(), ")"),
            CommentOf(method));
      }
    }
  }
  return lines;
}

TEST(ProtoHistoryTest, WhatWasReleasedStays) {
  const Contract contract;
  const std::vector<std::string> now = Released(contract);
  if (std::getenv("OVPRESS_WRITE_RELEASED") != nullptr) {
    std::ofstream(OVPRESS_PROTO_RELEASED) << absl::StrJoin(now, "\n") << "\n";
  }
  std::vector<std::string> released;
  std::ifstream file(OVPRESS_PROTO_RELEASED);
  for (std::string line; std::getline(file, line);) released.push_back(line);
  ASSERT_GT(released.size(), 150u);
  const std::set<std::string> present(now.begin(), now.end());
  for (const std::string& line : released) {
    EXPECT_TRUE(present.contains(line))
        << "released, but now gone or changed in number, type or meaning: "
        << line;
  }
  const std::set<std::string> known(released.begin(), released.end());
  for (const std::string& line : now) {
    EXPECT_TRUE(known.contains(line))
        << "not in released.txt (this file says how to add it): " << line;
  }
}

}  // namespace
}  // namespace ovpress
