# ovpress: the server and the command, nothing else but their libraries.
#   docker build -t ovpress . && docker run -p 8470:8470 -v ovpress:/data ovpress
ARG BASE=debian:bookworm-slim
FROM ${BASE} AS build
WORKDIR /src
COPY scripts/install-deps scripts/install-deps
RUN scripts/install-deps build
COPY . .
RUN cmake --preset release -DOVPRESS_BUILD_BENCH=OFF -DOVPRESS_BUILD_TESTS=OFF \
 && cmake --build --preset release -j "$(nproc)" \
 && DESTDIR=/out cmake --install build/release --prefix /usr --strip \
 && mkdir -p /out/libs \
 && ldd /out/usr/bin/ovpress /out/usr/bin/ovpress-server | awk '$3 ~ /^\// { print $3 }' | sort -u \
  | grep -Ev '/(libc|libm|libdl|librt|libpthread|libresolv)\.so' | xargs -I{} cp -L {} /out/libs

FROM ${BASE}
LABEL org.opencontainers.image.title="ovpress" \
      org.opencontainers.image.description="Weight compression of OpenVINO IR models as a gRPC service" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /out/libs/ /usr/lib/ovpress/
ENV LD_LIBRARY_PATH=/usr/lib/ovpress
COPY --from=build /out/usr/bin/ovpress /out/usr/bin/ovpress-server /usr/bin/
RUN mkdir /data && chown 65532:65532 /data
USER 65532:65532
VOLUME /data
EXPOSE 8470 8471
HEALTHCHECK --interval=10s --timeout=5s CMD ["/usr/bin/ovpress", "health", "--server", "127.0.0.1:8470", "--retry-seconds", "0"]
ENTRYPOINT ["/usr/bin/ovpress-server", "--data-dir=/data"]
CMD ["--listen=0.0.0.0:8470", "--metrics=0.0.0.0:8471", "--log-format=json"]
