# The one place for warnings, floating-point rules, hardening and sanitizers.
add_library(ovpress_build_flags INTERFACE)
add_library(ovpress::build_flags ALIAS ovpress_build_flags)

target_include_directories(ovpress_build_flags INTERFACE
  "${PROJECT_SOURCE_DIR}" "${PROJECT_BINARY_DIR}/generated")
target_compile_options(ovpress_build_flags INTERFACE
  -Wall -Wextra -Wpedantic -Wshadow -Wnon-virtual-dtor -Wno-missing-field-initializers
  # Bits are promised: without this the compiler fuses multiply and add on some
  # targets only, and the same model gives different bytes on two machines.
  -ffp-contract=off -fno-fast-math)
if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU" AND CMAKE_CXX_COMPILER_VERSION VERSION_LESS 13)
  # GCC 12 sees an overlap in std::string's operator+ that is not there (PR 105651).
  target_compile_options(ovpress_build_flags INTERFACE -Wno-restrict)
endif()
if(CMAKE_CXX_COMPILER_ID MATCHES "Clang")
  target_compile_options(ovpress_build_flags INTERFACE -Wthread-safety -Wno-c99-designator)
endif()

# Hardening, apart from the rest because generated code gets it too: that code
# reads what comes from the network. _FORTIFY_SOURCE needs optimization;
# sanitizers bring their own checks. tests/package holds the programs against it.
add_library(ovpress_hardening INTERFACE)
add_library(ovpress::hardening ALIAS ovpress_hardening)
target_link_libraries(ovpress_build_flags INTERFACE ovpress::hardening)
if(NOT OVPRESS_SANITIZE)
  target_compile_options(ovpress_hardening INTERFACE
    -fstack-protector-strong "$<$<NOT:$<CONFIG:Debug>>:-U_FORTIFY_SOURCE>"
    "$<$<NOT:$<CONFIG:Debug>>:-D_FORTIFY_SOURCE=2>")
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "x86_64|AMD64")
    target_compile_options(ovpress_hardening INTERFACE -fcf-protection=full)
  endif()
  target_link_options(ovpress_hardening INTERFACE -Wl,-z,relro,-z,now)
  set(CMAKE_EXE_LINKER_FLAGS "${CMAKE_EXE_LINKER_FLAGS} -pie")
else()
  add_compile_options(-fsanitize=${OVPRESS_SANITIZE} -fno-omit-frame-pointer -fno-sanitize-recover=all)
  add_link_options(-fsanitize=${OVPRESS_SANITIZE})
endif()
if(OVPRESS_FUZZERS)
  if(NOT CMAKE_CXX_COMPILER_ID MATCHES "Clang")
    message(FATAL_ERROR "OVPRESS_FUZZERS needs clang: use the preset fuzz")
  endif()
  # Coverage counters in our own code, so that libFuzzer sees where it goes.
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
