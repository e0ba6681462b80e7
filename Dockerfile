# One image: Nestling, and a small Linux guest that it boots when it is told nothing else.
#
#   docker build -t nestling .
#   docker run --rm -it --device /dev/kvm nestling                  a shell in the guest; Ctrl-A x leaves
#   docker run --rm --device /dev/kvm nestling preflight            can a nested VM run here?
#   docker run --rm --device /dev/kvm -v $PWD/vm.yaml:/etc/nestling/vm.yaml:ro nestling
#
# The guest's kernel takes about ten CPU-minutes, once: it depends on images/kernel alone, and a build cache keeps it.

# Nestling, the guest's init, and the tool that packs its initramfs: static executables.
FROM rust:1 AS build
WORKDIR /src
COPY . .
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    --mount=type=cache,target=/src/target \
    cargo build --release --locked -p nestling -p nestling-init -p nestling-initramfs && \
    mkdir /out && \
    cp target/x86_64-unknown-linux-gnu/release/nestling \
       target/x86_64-unknown-linux-gnu/release/nestling-init \
       target/x86_64-unknown-linux-gnu/release/nestling-initramfs /out/

# The guest's kernel, from Debian's source.
FROM debian:bookworm-slim AS kernel
COPY images/kernel /src/images/kernel
RUN --mount=type=cache,target=/root/.cache/nestling \
    /src/images/kernel/build.sh /guest

# The guest's initramfs: our init and a busybox.
FROM debian:bookworm-slim AS guest
RUN apt-get update -qq && \
    apt-get install -y -qq --no-install-recommends busybox-static && \
    rm -rf /var/lib/apt/lists/*
COPY --from=build /out/nestling-init /out/nestling-initramfs /build/
RUN mkdir /guest && \
    /build/nestling-initramfs --init /build/nestling-init --busybox /bin/busybox --out /guest/initramfs.cpio

# The other end of --share: static too.
FROM rust:1 AS virtiofsd
RUN apt-get update -qq && \
    apt-get install -y -qq --no-install-recommends libcap-ng-dev libseccomp-dev && \
    rm -rf /var/lib/apt/lists/*
COPY images/virtiofsd /src/images/virtiofsd
RUN --mount=type=cache,target=/usr/local/cargo/registry \
    /src/images/virtiofsd/build.sh /out

FROM scratch
LABEL org.opencontainers.image.title="nestling" \
      org.opencontainers.image.description="One nested VM in one pod" \
      org.opencontainers.image.licenses="Apache-2.0 AND BSD-3-Clause AND LGPL-2.1-or-later AND GPL-2.0-only"
COPY --from=build /out/nestling /nestling
COPY --from=virtiofsd /out/virtiofsd /virtiofsd
COPY --from=kernel /guest/vmlinux /guest/vmlinux
COPY --from=guest /guest/initramfs.cpio /guest/initramfs.cpio
COPY k8s/base/vm.yaml /etc/nestling/vm.yaml
# So that `kubectl exec POD -- nestling status` finds it.
ENV PATH=/
ENTRYPOINT ["/nestling"]
CMD ["run", "/etc/nestling/vm.yaml"]
