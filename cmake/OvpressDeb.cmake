# Debian packages by CPack: ovpress (the command), ovpress-server (the service),
# libovpress-dev (libraries for C++). scripts/build-deb makes them; needs the
# preset deb, which installs to /usr and /etc.
if(NOT CMAKE_INSTALL_PREFIX STREQUAL "/usr")
  message(FATAL_ERROR "OVPRESS_DEB needs CMAKE_INSTALL_PREFIX=/usr (preset deb)")
endif()
set(debian "${PROJECT_SOURCE_DIR}/deploy/debian")
set(component_packages cli:ovpress server:ovpress-server dev:libovpress-dev)

install(FILES "${debian}/server.conf" DESTINATION /etc/ovpress COMPONENT server)
install(FILES "${debian}/ovpress-server.service" DESTINATION lib/systemd/system COMPONENT server)

# Debian's changelog has a form of its own; ours goes beside it.
string(TIMESTAMP date "%a, %d %b %Y %H:%M:%S +0000" UTC)  # SOURCE_DATE_EPOCH, if set
set(contact "ovpress maintainers <ovpress@packages.invalid>")
file(WRITE "${PROJECT_BINARY_DIR}/changelog.Debian"
  "ovpress (${PROJECT_VERSION}-1) bookworm; urgency=medium\n\n"
  "  * Version ${PROJECT_VERSION}; see changelog.gz.\n\n"
  " -- ${contact}  ${date}\n")
foreach(pair ${component_packages})
  string(REGEX REPLACE ":.*" "" component "${pair}")
  string(REGEX REPLACE ".*:" "" package "${pair}")
  set(doc "${CMAKE_INSTALL_DATADIR}/doc/${package}")
  install(FILES "${debian}/copyright" "${PROJECT_BINARY_DIR}/changelog.Debian" DESTINATION "${doc}" COMPONENT ${component})
  install(FILES CHANGELOG.md RENAME changelog DESTINATION "${doc}" COMPONENT ${component})
  string(TOUPPER "${component}" upper)
  set(CPACK_DEBIAN_${upper}_PACKAGE_NAME "${package}")
endforeach()

set(CPACK_GENERATOR DEB)
set(CPACK_PACKAGE_NAME ovpress)
set(CPACK_PACKAGE_CONTACT "${contact}")
set(CPACK_PACKAGING_INSTALL_PREFIX /usr)
# Files go to /etc too: everything is staged below one folder.
set(CPACK_SET_DESTDIR ON)
set(CPACK_STRIP_FILES ON)
set(CPACK_PACKAGE_DIRECTORY "${PROJECT_BINARY_DIR}/packages")
# Runs on the staged files: compresses what Debian wants compressed.
set(CPACK_PRE_BUILD_SCRIPTS "${PROJECT_SOURCE_DIR}/cmake/deb-compress.cmake")
set(CPACK_DEB_COMPONENT_INSTALL ON)
set(CPACK_COMPONENTS_ALL cli server dev)
set(CPACK_COMPONENTS_GROUPING IGNORE)
set(CPACK_DEBIAN_FILE_NAME DEB-DEFAULT)
set(CPACK_DEBIAN_PACKAGE_RELEASE 1)
set(CPACK_DEBIAN_PACKAGE_SOURCE ovpress)
set(CPACK_DEBIAN_COMPRESSION_TYPE xz)
# dpkg-shlibdeps: the libraries that the programs load, in the versions that have what they use.
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_DEV_PACKAGE_SHLIBDEPS OFF)
set(CPACK_DEBIAN_CLI_PACKAGE_SECTION science)
set(CPACK_DEBIAN_SERVER_PACKAGE_SECTION net)
set(CPACK_DEBIAN_DEV_PACKAGE_SECTION libdevel)
# What the descriptions say; the first line is the synopsis.
set(CPACK_COMPONENT_CLI_DESCRIPTION "compress the weights of OpenVINO models
The command line of ovpress: compresses the weights of OpenVINO IR models to
8, 4 or fewer bits without any data set, with the result of NNCF's
compress_weights, in this process or by an ovpress-server.")
set(CPACK_COMPONENT_SERVER_DESCRIPTION "compress OpenVINO models for others, by gRPC
A service that takes OpenVINO IR models, compresses their weights in queued
jobs and gives them back. Uploads, jobs and results survive a restart. Comes
with a systemd unit.")
set(CPACK_COMPONENT_DEV_DESCRIPTION "engine and client of ovpress for C++
Static libraries, headers and a CMake package with the targets ovpress::core,
the engine, and ovpress::client, the client of the service.")
set(CPACK_DEBIAN_SERVER_PACKAGE_DEPENDS "adduser, init-system-helpers (>= 1.54)")
set(CPACK_DEBIAN_SERVER_PACKAGE_SUGGESTS ovpress)
set(CPACK_DEBIAN_CLI_PACKAGE_SUGGESTS ovpress-server)
# What ovpress-config.cmake looks for.
set(CPACK_DEBIAN_DEV_PACKAGE_DEPENDS "libabsl-dev, libtbb-dev, libpugixml-dev, libssl-dev, pkg-config, libhwy-dev, libre2-dev, libprotobuf-dev, protobuf-compiler, libgrpc++-dev, protobuf-compiler-grpc")
set(CPACK_DEBIAN_SERVER_PACKAGE_CONTROL_EXTRA "${debian}/postinst;${debian}/prerm;${debian}/postrm;${PROJECT_BINARY_DIR}/conffiles")
file(WRITE "${PROJECT_BINARY_DIR}/conffiles" "/etc/ovpress/server.conf\n")
include(CPack)
