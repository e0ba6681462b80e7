# What a user types: make demo, make test. `make help` says the rest.
# Everything needed is installed or built on the way, once: downloads and builds are kept in target/ and ~/.cache/nestling.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

OUT     := target/x86_64-unknown-linux-gnu
QUICK   := $(OUT)/quick
ASSETS  := $(CURDIR)/target/assets
KERNELS := debian-6.1 debian-6.12 nestling
NODE    := $(CURDIR)/$(QUICK)/nestling-node

export NESTLING_ASSETS := $(ASSETS)

say = @printf '\n\033[1m==> %s\033[0m\n' $(1)

.PHONY: help
help:
	@echo 'make demo    boot a stock Debian kernel on VT-x and watch it through the status socket'
	@echo 'make test    all tests; guests run on this machine'"'"'s VT-x, or on an emulated one where it has none'
	@echo 'make bench   what Nestling costs: exits, memory, size, time to the first KVM_RUN; beside QEMU'
	@echo 'make fuzz    hostile guests by the million, SECONDS=60 for each target'
	@echo 'make lint    formatting, clippy, documentation, licences'
	@echo 'make build   the release binary: $(OUT)/release/nestling'
	@echo 'make clean   forget target/ (~/.cache/nestling stays)'

# ---- what has to be there ------------------------------------------------------------------------------------------

# Debian packages by the command or file they bring. None is installed at the cost of another.
PACKAGES := cc:gcc /usr/include/stdio.h:libc6-dev qemu-img:qemu-utils busybox:busybox-static lz4:lz4 zstd:zstd xz:xz-utils dpkg-deb:dpkg

.PHONY: packages
packages:
	@missing=(); for entry in $(PACKAGES); do command -v "$${entry%%:*}" >/dev/null || [ -e "$${entry%%:*}" ] || missing+=("$${entry##*:}"); done; \
	if [ $${#missing[@]} -gt 0 ]; then \
	  echo "==> installing Debian packages: $${missing[*]}"; \
	  as_root=(); [ "$$(id -u)" = 0 ] || as_root=(sudo); \
	  "$${as_root[@]}" apt-get update -qq; \
	  DEBIAN_FRONTEND=noninteractive "$${as_root[@]}" apt-get install -y -qq \
	    --no-install-recommends --no-remove -o DPkg::Lock::Timeout=300 "$${missing[@]}" >/dev/null; \
	fi

.PHONY: binaries
binaries: packages
	$(call say,'building nestling and the guest'"'"'s init')
	cargo build --profile quick --workspace --bins
	@mkdir -p $(ASSETS)/bin && cp -u $(QUICK)/nestling $(QUICK)/nestling-probe "$$(command -v busybox)" $(ASSETS)/bin/

.PHONY: node
node: binaries
	$(call say,'the machine with VT-x')
	$(NODE) setup

# A kernel and the initramfs that goes with it; and devices.cpio, which has what tests of all devices need besides.
.SECONDARY:
.PHONY: assets
assets: binaries
	$(call say,'guest kernels and their initramfs')
	@$(MAKE) packages PACKAGES='/sbin/mke2fs:e2fsprogs'
	@for kernel in $(KERNELS); do $(MAKE) $(ASSETS)/$$kernel/{initramfs,devices}.cpio; done

$(ASSETS)/debian-%/vmlinux: images/kernel/debian.sh images/kernel/archive.sh
	images/kernel/debian.sh $* $(CURDIR)/target/kernels/debian-$*
	@mkdir -p $(@D) && ln -f target/kernels/debian-$*/{vmlinux,bzImage,release} $(@D) && touch $(@D)/vmlinux

$(ASSETS)/nestling/vmlinux: images/kernel/build.sh images/kernel/archive.sh images/kernel/nestling.config
	images/kernel/build.sh $(CURDIR)/target/kernels/nestling
	@mkdir -p $(@D) && ln -f target/kernels/nestling/{vmlinux,bzImage,release} $(@D) && touch $(@D)/vmlinux

INITRAMFS = $(QUICK)/nestling-initramfs --init $(QUICK)/nestling-init --busybox $$(command -v busybox)

$(ASSETS)/debian-%/initramfs.cpio: $(ASSETS)/debian-%/vmlinux $(QUICK)/nestling-init $(QUICK)/nestling-initramfs
	$(INITRAMFS) --kernel target/kernels/debian-$* --out $@

$(ASSETS)/nestling/initramfs.cpio: $(ASSETS)/nestling/vmlinux $(QUICK)/nestling-init $(QUICK)/nestling-initramfs
	$(INITRAMFS) --out $@

# The other end of virtio-fs: upstream's, as one static file that runs in the node too.
.PHONY: virtiofsd
virtiofsd: $(ASSETS)/bin/virtiofsd

$(ASSETS)/bin/virtiofsd: images/virtiofsd/build.sh
	$(call say,'virtiofsd')
	@$(MAKE) packages PACKAGES='/usr/include/cap-ng.h:libcap-ng-dev /usr/include/seccomp.h:libseccomp-dev'
	images/virtiofsd/build.sh $(@D)

# Modules that a guest of the tests loads by name (`probe load NAME`); those that one kernel has and the other has not.
SPARE_MODULES      := virtio_net vmw_vsock_virtio_transport vsock_diag virtio_balloon virtiofs fuse \
                      pvpanic pvpanic_mmio pvpanic_pci wdat_wdt softdog button evdev ptp_kvm tun crc32c_intel
SPARE_MODULES_6.12 := vmgenid

DEVICES = $(INITRAMFS) --file $(QUICK)/nestling-probe=/bin/probe --program /sbin/mke2fs=/sbin/mke2fs \
          --symlink mke2fs=/sbin/mkfs.ext4

$(ASSETS)/debian-%/devices.cpio: $(ASSETS)/debian-%/initramfs.cpio $(QUICK)/nestling-probe Makefile
	$(DEVICES) --kernel target/kernels/debian-$* $(addprefix --spare-module ,$(SPARE_MODULES) $(SPARE_MODULES_$*)) --out $@

$(ASSETS)/nestling/devices.cpio: $(ASSETS)/nestling/initramfs.cpio $(QUICK)/nestling-probe Makefile
	$(DEVICES) --out $@

# ---- what a user asks for ------------------------------------------------------------------------------------------

.PHONY: demo
demo: binaries node
	@$(MAKE) $(ASSETS)/debian-6.1/initramfs.cpio
	$(call say,'the demo')
	@NESTLING_ASSETS= NESTLING_DEMO=$(ASSETS) \
	NESTLING_NODE_FILES="$(CURDIR)/tests/demo.sh:$(ASSETS)/bin/nestling:$(ASSETS)/debian-6.1/vmlinux:$(ASSETS)/debian-6.1/initramfs.cpio" \
	$(NODE) runner "$$(command -v busybox)" sh $(CURDIR)/tests/demo.sh

.PHONY: test
test: test-here test-guest

# Unit tests, the command line, the socket, and bare-metal guests on this machine's own /dev/kvm.
.PHONY: test-here
test-here: packages
	$(call say,'tests on this machine')
	cargo test --workspace --exclude nestling-node
	cargo test -p nestling-node --bins

# Linux guests, and the bare-metal ones once more, on VT-x. Bochs takes no interrupt from a guest that spins with its own
# switched off, so that one test runs on this machine's /dev/kvm alone; so do those of the commands, which need our binary,
# and those of disks in trouble, which need QEMU's tools.
.PHONY: test-guest
test-guest: assets virtiofsd node
	@cargo build --profile payload -p nestling-payload --features freestanding --target-dir target/payload
	@cp -u target/payload/x86_64-unknown-linux-gnu/payload/nestling-payload $(ASSETS)/bin/
	$(call say,'guests on VT-x')
	@cargo test --profile quick --features guest-tests --test guest --test payload --no-run
	@$(MAKE) --jobs=2 guests-1 guests-2

# Two machines at a time, for an emulated one uses one CPU. Each line says which it is of.
GUESTS_1 := storage:: vsock:: memory:: platform::
RUN_GUESTS = NESTLING_NODE_MODULES=$${NESTLING_NODE_MODULES-vhost_net:vhost_vsock:loop:fuse} \
	NESTLING_NODE_TIMEOUT=$${NESTLING_NODE_TIMEOUT-2400} \
	CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="$(NODE) runner" NESTLING_PAYLOAD=$(ASSETS)/bin/nestling-payload \
	cargo test --profile quick --features guest-tests
GUEST_OPTIONS := --test-threads=1 --nocapture

.PHONY: guests-1
guests-1:
	@$(RUN_GUESTS) --test guest -- $(GUEST_OPTIONS) $(GUESTS_1) 2>&1 | sed -u 's/^/1| /'

.PHONY: guests-2
guests-2:
	@{ $(RUN_GUESTS) --test guest -- $(GUEST_OPTIONS) $(addprefix --skip ,$(GUESTS_1)) && \
	$(RUN_GUESTS) --test payload -- $(GUEST_OPTIONS) --skip a_guest_that_never_exits_is_stopped --skip commands:: --skip disks::; } 2>&1 | sed -u 's/^/2| /'

.PHONY: bench
bench: binaries build node
	@$(MAKE) packages PACKAGES='as:binutils qemu-system-x86_64:qemu-system-x86'
	@$(MAKE) $(ASSETS)/debian-6.1/initramfs.cpio $(ASSETS)/nestling/initramfs.cpio
	$(call say,'what Nestling costs')
	@tests/bench.sh

# Not ?=, which would take the shell's own variable of that name for an answer.
SECONDS = $(or $(FUZZ_SECONDS),60)
.PHONY: fuzz
fuzz:
	@$(MAKE) packages PACKAGES='c++:g++ /usr/include/stdio.h:libc6-dev'
	$(call say,'hostile guests: $(SECONDS) s for each target')
	@fuzz/run.sh $(SECONDS)

.PHONY: lint
lint:
	$(call say,'formatting and clippy and documentation')
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --all-features -- -D warnings
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --document-private-items
	@if command -v cargo-deny >/dev/null; then cargo deny check licenses bans sources; \
	else echo 'cargo-deny is not installed: licences were not checked (cargo install cargo-deny)'; fi

.PHONY: build
build: packages
	cargo build --release --bin nestling
	@ls -l $(OUT)/release/nestling

.PHONY: clean
clean:
	cargo clean
