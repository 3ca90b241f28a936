# ovpress as an image: the server, the command, the libraries they load, nothing else.
#   scripts/build-image          docker, podman or buildah, whichever is there
#   scripts/test-image           compresses a model inside the image
#   docker run -p 127.0.0.1:8470:8470 -v ovpress:/data --read-only ovpress
# Without arguments it has no TLS and no login, hence the loopback above; docs/security.md shows both.
#
# Build arguments (scripts/build-image sets the ones marked *):
#   BASE, BASE_DIGEST*     what the builder starts from; a digest pins it
#   SOURCE_DATE_EPOCH*     the time that every file gets; the commit's
#   VERSION*, REVISION*, CREATED*   what the labels say
#   TESTS                  CTest's regular expression of what must pass; - for none
#   JOBS                   compilers at a time
# The architecture is the builder's: `--platform linux/arm64` (docker, podman) or `--arch arm64` (buildah).
ARG BASE=debian:bookworm-slim
ARG BASE_DIGEST=
FROM ${BASE}${BASE_DIGEST:+@${BASE_DIGEST}} AS build
WORKDIR /src
COPY scripts/install-deps scripts/install-deps
RUN scripts/install-deps build
COPY . .
# The programs that need no network, no Python and less than a minute: the
# arithmetic, the engine, the store and the queue, as built for this image.
ARG TESTS="^(base|quant|ir|engine|jobs)_test$"
ARG JOBS=
RUN --mount=type=cache,target=/root/.cache/ccache \
    targets="ovpress ovpress-server documents" \
 && if [ "${TESTS}" != - ]; then targets="${targets} base_test quant_test ir_test engine_test jobs_test"; fi \
 && cmake --preset release -DOVPRESS_BUILD_BENCH=OFF \
      -DCMAKE_C_COMPILER_LAUNCHER=ccache -DCMAKE_CXX_COMPILER_LAUNCHER=ccache \
 && cmake --build --preset release -j "${JOBS:-$(nproc)}" --target ${targets} \
 && if [ "${TESTS}" != - ]; then ctest --preset release -R "${TESTS}"; fi \
 && for component in cli server; do DESTDIR=/out cmake --install build/release --prefix /usr --strip --component "$component"; done
ARG SOURCE_DATE_EPOCH=0
RUN deploy/image/make-rootfs /rootfs build/release /out/usr/bin/ovpress /out/usr/bin/ovpress-server

FROM scratch
ARG VERSION=dev
ARG REVISION=unknown
ARG CREATED=
ARG BASE
ARG BASE_DIGEST
LABEL org.opencontainers.image.title="ovpress" \
      org.opencontainers.image.description="Weight compression of OpenVINO IR models as a gRPC service" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}" \
      org.opencontainers.image.base.name="${BASE}" \
      org.opencontainers.image.base.digest="${BASE_DIGEST}"
COPY --from=build /rootfs/ /
USER 65532:65532
WORKDIR /data
VOLUME /data
EXPOSE 8470 8471
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
  CMD ["/usr/bin/ovpress-server", "health", "--data-dir=/data"]
ENTRYPOINT ["/usr/bin/ovpress-server", "--data-dir=/data"]
CMD ["--listen=0.0.0.0:8470", "--insecure-listen", "--metrics=0.0.0.0:8471", "--log-format=json"]
