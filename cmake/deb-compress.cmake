# Debian's policy: man pages and changelogs are compressed, without a time in
# them. CPack runs this on the staged files of each package.
file(GLOB_RECURSE files
  "${CPACK_TEMPORARY_INSTALL_DIRECTORY}/*/usr/share/man/*.[1-9]"
  "${CPACK_TEMPORARY_INSTALL_DIRECTORY}/*/usr/share/doc/*/changelog"
  "${CPACK_TEMPORARY_INSTALL_DIRECTORY}/*/usr/share/doc/*/changelog.Debian"
  "${CPACK_TEMPORARY_INSTALL_DIRECTORY}/usr/share/man/*.[1-9]"
  "${CPACK_TEMPORARY_INSTALL_DIRECTORY}/usr/share/doc/*/changelog"
  "${CPACK_TEMPORARY_INSTALL_DIRECTORY}/usr/share/doc/*/changelog.Debian")
if(NOT files)
  message(FATAL_ERROR "no man page and no changelog below ${CPACK_TEMPORARY_INSTALL_DIRECTORY}")
endif()
execute_process(COMMAND gzip -9 --no-name --force ${files} COMMAND_ERROR_IS_FATAL ANY)
