# What `cmake --install` puts where, in three components: cli, server, dev.
# dev holds the static libraries, their headers and a CMake package:
#   find_package(ovpress CONFIG REQUIRED COMPONENTS core client)
#   target_link_libraries(app PRIVATE ovpress::core ovpress::client)
include(CMakePackageConfigHelpers)

install(TARGETS ovpress RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT cli)
if(TARGET ovpress-server)
  install(TARGETS ovpress-server RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}" COMPONENT server)
endif()

# Man pages and completion scripts are printed by the programs themselves.
# ovpress_documents(PROGRAM COMPONENT SECTION MAN_ARGUMENTS COMPLETION_ARGUMENTS)
function(ovpress_documents program component section man completion)
  set(folder "${PROJECT_BINARY_DIR}/documents")
  file(MAKE_DIRECTORY "${folder}")
  set(files "${folder}/${program}.${section}" "${folder}/${program}.bash" "${folder}/${program}.zsh" "${folder}/${program}.fish")
  set(commands COMMAND ${program} ${man} > "${program}.${section}")
  foreach(shell bash zsh fish)
    list(APPEND commands COMMAND ${program} ${completion} ${shell} > "${program}.${shell}")
  endforeach()
  add_custom_command(OUTPUT ${files} ${commands} DEPENDS ${program} WORKING_DIRECTORY "${folder}"
    COMMENT "Writing man page and completion of ${program}")
  add_custom_target(${program}_documents ALL DEPENDS ${files})
  add_dependencies(documents ${program}_documents)
  install(FILES "${folder}/${program}.${section}" COMPONENT ${component}
    DESTINATION "${CMAKE_INSTALL_MANDIR}/man${section}")
  install(FILES "${folder}/${program}.bash" RENAME ${program} COMPONENT ${component}
    DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions")
  install(FILES "${folder}/${program}.zsh" RENAME _${program} COMPONENT ${component}
    DESTINATION "${CMAKE_INSTALL_DATADIR}/zsh/vendor-completions")
  install(FILES "${folder}/${program}.fish" COMPONENT ${component}
    DESTINATION "${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d")
endfunction()
add_custom_target(documents)
# Only where the programs can run, and as they will be installed: under a
# sanitizer a build would fail for what a test is there to find.
if(NOT OVPRESS_SANITIZE AND (NOT CMAKE_CROSSCOMPILING OR CMAKE_CROSSCOMPILING_EMULATOR))
  ovpress_documents(ovpress cli 1 man completion)
  if(TARGET ovpress-server)
    ovpress_documents(ovpress-server server 8 --print=man --print)
  endif()
endif()

# Headers are included as in the sources ("core/engine/compression.h"), so they
# get a folder of their own that only our targets name.
set(ovpress_include "${CMAKE_INSTALL_INCLUDEDIR}/ovpress")
set(ovpress_package "${CMAKE_INSTALL_LIBDIR}/cmake/ovpress")

# ovpress_export(SET TARGET...): ovpress_NAME is seen outside as ovpress::NAME.
function(ovpress_export set)
  foreach(target ${ARGN})
    string(REPLACE "ovpress_" "" name "${target}")
    set_target_properties(${target} PROPERTIES EXPORT_NAME "${name}")
  endforeach()
  install(TARGETS ${ARGN} EXPORT ovpress-${set}
    ARCHIVE DESTINATION "${CMAKE_INSTALL_LIBDIR}" COMPONENT dev
    INCLUDES DESTINATION "${ovpress_include}")
  install(EXPORT ovpress-${set} FILE ovpress-${set}-targets.cmake NAMESPACE ovpress::
    DESTINATION "${ovpress_package}" COMPONENT dev)
endfunction()

ovpress_export(core ovpress_base ovpress_ir ovpress_quant ovpress_engine ovpress_analysis ovpress_core)
install(DIRECTORY core DESTINATION "${ovpress_include}" COMPONENT dev FILES_MATCHING PATTERN "*.h")
if(NOT OVPRESS_CORE_ONLY)
  ovpress_export(client ovpress_proto ovpress_client)
  install(DIRECTORY client/lib DESTINATION "${ovpress_include}/client" COMPONENT dev FILES_MATCHING PATTERN "*.h")
  install(DIRECTORY "${PROJECT_BINARY_DIR}/generated/google" "${PROJECT_BINARY_DIR}/generated/ovpress"
    DESTINATION "${ovpress_include}" COMPONENT dev FILES_MATCHING PATTERN "*.pb.h")
  install(DIRECTORY proto DESTINATION "${CMAKE_INSTALL_DATADIR}/ovpress" COMPONENT dev
    FILES_MATCHING PATTERN "*.proto")
endif()

configure_package_config_file(cmake/ovpress-config.cmake.in "${PROJECT_BINARY_DIR}/ovpress-config.cmake"
  INSTALL_DESTINATION "${ovpress_package}")
# Below 1.0 a minor version may break its users.
write_basic_package_version_file("${PROJECT_BINARY_DIR}/ovpress-config-version.cmake"
  COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/ovpress-config.cmake" "${PROJECT_BINARY_DIR}/ovpress-config-version.cmake"
  DESTINATION "${ovpress_package}" COMPONENT dev)
