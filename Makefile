# boxlite: build, install, test. `make help` lists the targets.

PREFIX   ?= /usr/local
BINDIR   ?= $(PREFIX)/bin
LIBDIR   ?= $(PREFIX)/lib/boxlite
DATADIR  ?= $(PREFIX)/share
MANDIR   ?= $(DATADIR)/man
DOCDIR   ?= $(DATADIR)/doc/boxlite
UNITDIR  ?= $(PREFIX)/lib/systemd/system
DESTDIR  ?=
# COMPLETIONS are shells, with where their completions belong below DATADIR.
COMPLETIONS = bash:bash-completion/completions/boxlite zsh:zsh/site-functions/_boxlite fish:fish/vendor_completions.d/boxlite.fish

# sudo's PATH has neither Go's usual place nor, on some machines, sbin.
export PATH := $(PATH):/usr/local/go/bin:/usr/sbin:/sbin

RELEASE  := 0.1.0
VERSION  := $(shell git describe --tags --always --dirty 2>/dev/null || echo unknown)
COMMIT   := $(shell git rev-parse HEAD 2>/dev/null || echo unknown)
GO       ?= go
GOBUILD  := CGO_ENABLED=0 $(GO) build -trimpath -buildvcs=false
LDFLAGS  := -s -w
LINTER   := $(GO) tool -modfile=scripts/lint.mod
SCRIPTS  := scripts/*.sh kernels/*.sh images/*.sh kubernetes/*.sh e2e/engines/*.sh e2e/systemd/run images/dind/files/usr/local/sbin/dind images/programs/workloads/run .ci/run

# RUN chooses tests by name: make e2e RUN=TestStdin. TESTFLAGS are added to go test's.
RUN       ?=
TESTFLAGS ?=
# FUZZTIME is how long each fuzz target runs, as go test's -fuzztime has it.
FUZZTIME  ?= 1m
# COLD are the end-to-end tests that are repeated with VMs that boot.
COLD = TestRunByHand|TestLifecycleByHand|TestPrivilegedInItsOwnKernel|TestBridgeNetwork|TestVolumeBothWays|TestPartsKilled$$|TestCreateKilled
# TRIXIE are the end-to-end tests that differ most by engine, QEMU or virtiofsd.
TRIXIE = TestFileWrittenBeforeStart|TestPodmanBridge|TestCapabilityFlags|TestBuild|TestNetworkConnect|TestManyFiles|TestContainerd|TestProcessPowers|TestProgramsReadAgain|TestPodmanNetworkReload|TestPodmanPod
# OWN are the end-to-end tests that have a command of their own: make programs, make test-full, make test-systemd.
OWN = ^(Test(Real|Full).*|TestSystemd)$$
# FULL are the end-to-end tests for the third guest kernel, and those whose containers get it where it is built.
FULL = ^TestFull|^TestOwnKernel$$|^TestPrivilegedInItsOwnKernel$$|^TestHostUntouched$$|^TestDockerInDocker$$|^TestKernelOfItsNeeds$$
ALLTESTFLAGS = $(strip $(if $(RUN),-run '$(RUN)') $(TESTFLAGS))

.PHONY: all
all: bin/boxlite bin/initramfs.cpio kernels ## build everything into bin/

# Go decides what is out of date; its build cache makes a repetition quick.
.PHONY: bin/boxlite
bin/boxlite:
	$(GOBUILD) -ldflags '$(LDFLAGS) -X main.version=$(RELEASE)-$(VERSION) -X main.commit=$(COMMIT)' -o $@ .

.PHONY: bin/guestinit
bin/guestinit:
	$(GOBUILD) -ldflags '$(LDFLAGS)' -o $@ ./guestinit

bin/initramfs.cpio: bin/guestinit
	$(GO) run ./initramfs -o $@ bin/guestinit

.PHONY: kernels
kernels: ## build the two guest kernels; from the cache if nothing has changed
	kernels/build.sh --out bin lean net

# The program is beside its parts, so bin/prebuilt/boxlite starts containers with Debian's kernel.
.PHONY: prebuilt
prebuilt: bin/boxlite bin/guestinit ## build into bin/prebuilt, with the kernel that Debian has built in place of the guest kernels
	kernels/prebuilt.sh --out bin/prebuilt
	$(GO) run ./initramfs -o bin/prebuilt/initramfs.cpio -modules bin/prebuilt/modules/ -names kernels/prebuilt.modules bin/guestinit
	cp bin/boxlite bin/prebuilt/boxlite

# SOURCE_DATE_EPOCH is the pages' date.
.PHONY: man
man: bin/boxlite ## write the man pages to bin/man
	SOURCE_DATE_EPOCH=$$(git log -1 --format=%ct 2>/dev/null) bin/boxlite man bin/man

.PHONY: install
install: install-program install-kernels ## install below PREFIX (default /usr/local); DESTDIR is honoured

.PHONY: install-program
install-program: bin/boxlite bin/initramfs.cpio man
	install -D -m 0755 bin/boxlite $(DESTDIR)$(BINDIR)/boxlite
	install -D -m 0644 -t $(DESTDIR)$(LIBDIR) bin/initramfs.cpio
	install -D -m 0644 -t $(DESTDIR)$(MANDIR)/man8 bin/man/*.8
	install -D -m 0644 -t $(DESTDIR)$(MANDIR)/man7 bin/man/*.7
	$(foreach c,$(COMPLETIONS),mkdir -p $(DESTDIR)$(DATADIR)/$(dir $(word 2,$(subst :, ,$c))) && \
		bin/boxlite completion $(word 1,$(subst :, ,$c)) >$(DESTDIR)$(DATADIR)/$(word 2,$(subst :, ,$c)) &&) :
	install -D -m 0644 -t $(DESTDIR)$(DOCDIR) LICENSE CHANGELOG.md
	scripts/licenses.sh >$(DESTDIR)$(DOCDIR)/THIRD-PARTY-LICENSES
	mkdir -p $(DESTDIR)$(UNITDIR)
	sed 's|@BINDIR@|$(BINDIR)|' packaging/boxlite-standby.service.in >$(DESTDIR)$(UNITDIR)/boxlite-standby.service

.PHONY: install-kernels
install-kernels: kernels
	install -D -m 0644 -t $(DESTDIR)$(LIBDIR) bin/vmlinux-lean bin/vmlinux-net

.PHONY: install-kernel-full
install-kernel-full: kernel-full ## install the third guest kernel, which containers with CAP_SYS_ADMIN or CAP_BPF get from then on
	install -D -m 0644 -t $(DESTDIR)$(LIBDIR) bin/vmlinux-full

.PHONY: uninstall
uninstall: ## remove what install has put there
	rm -f $(DESTDIR)$(BINDIR)/boxlite $(DESTDIR)$(UNITDIR)/boxlite-standby.service
	rm -rf $(DESTDIR)$(LIBDIR) $(DESTDIR)$(DOCDIR)
	rm -f $(DESTDIR)$(MANDIR)/man8/boxlite.8 $(DESTDIR)$(MANDIR)/man8/boxlite-*.8 $(DESTDIR)$(MANDIR)/man7/boxlite-*.7
	rm -f $(foreach c,$(COMPLETIONS),$(DESTDIR)$(DATADIR)/$(word 2,$(subst :, ,$c)))

.PHONY: deb
deb: all ## Debian packages boxlite and boxlite-kernel, into bin/deb
	RELEASE=$(RELEASE) scripts/packages.sh deb

.PHONY: dist
dist: all ## a tarball for other distributions, into bin/dist
	RELEASE=$(RELEASE) scripts/packages.sh dist

.PHONY: deps
deps: ## install what is missing on a Debian machine (root)
	@scripts/install-deps.sh

.PHONY: test-packages
test-packages: all ## deb and dist: equal builds, lintian, installed on clean Debians (root)
	@scripts/install-deps.sh packages
	@scripts/test-packages.sh

.PHONY: demo
demo: ## run real containers in front of you, with a private Docker (root)
	@scripts/demo.sh

.PHONY: terminal
terminal: all ## draw docs/terminal.svg, the recorded terminal of README.md (root)
	@scripts/terminal.sh

# One after the other, also with -j: each part fills the machine.
.PHONY: test
test: deps ## everything: install what is missing, build, lint, unit and e2e tests, a little fuzzing (root)
	@echo '== build'
	@$(MAKE) --no-print-directory all
	@$(MAKE) --no-print-directory lint
	@$(MAKE) --no-print-directory unit
	@$(MAKE) --no-print-directory fuzz FUZZTIME=3s
	@$(MAKE) --no-print-directory e2e
	@$(MAKE) --no-print-directory trixie-check
	@$(MAKE) --no-print-directory conformance-check

.PHONY: unit
unit: ## tests beside the code; as root those that make namespaces run too
	@echo '== unit tests'
	$(GO) test -timeout 15m $(ALLTESTFLAGS) $$($(GO) list ./... | grep -v -e '/e2e' -e '/kubernetes')

.PHONY: fuzz
fuzz: ## each fuzz target for FUZZTIME (default 1m); RUN chooses some by name
	@echo '== fuzzing'
	@GO='$(GO)' scripts/fuzz.sh '$(FUZZTIME)' '$(RUN)'

.PHONY: kernel-full
kernel-full: ## build the third guest kernel, to trace and for more file systems; from the cache if nothing has changed
	kernels/build.sh --out bin full

.PHONY: images
images: ## build the images of images/ from Debian packages; from the cache if nothing has changed (root)
	images/build.sh dind machine

# Never from go test's cache: the binaries, dockerd and the kernel are not in its key.
.PHONY: e2e
e2e: all prebuilt images ## containers through a real dockerd, by hand and under KVM (root)
	@echo '== e2e tests'
	$(GO) test -count=1 -p 1 -v -timeout 75m $(if $(RUN),,-skip '$(OWN)') $(ALLTESTFLAGS) ./e2e/...
	$(if $(RUN),,BOXLITE_TEMPLATE=off E2E_RUNTIMES=boxlite $(GO) test -count=1 -v -timeout 30m -run '$(COLD)' ./e2e)

# Not in test: they take seven minutes more, and their image half an hour the first time.
.PHONY: programs
programs: all ## databases, servers, compilers, installers and debuggers in containers of runc and boxlite (root)
	images/build.sh programs
	$(GO) test -count=1 -v -timeout 40m $(or $(if $(RUN),$(ALLTESTFLAGS)),-run ^TestReal $(TESTFLAGS)) ./e2e

# Not in test: compiling this kernel takes half as long again as the two others together.
.PHONY: test-full
test-full: all kernel-full ## what the third guest kernel has, and that Docker in Docker and privileged containers work with it (root)
	images/build.sh dind tools
	E2E_RUNTIMES=boxlite $(GO) test -count=1 -v -timeout 60m $(or $(if $(RUN),$(ALLTESTFLAGS)),-run '$(FULL)' $(TESTFLAGS)) ./e2e

# The end-to-end tests in Debian 13, whose engines, QEMU and virtiofsd are others, with guest kernels of its source. Not in
# test: the kernels take twenty minutes the first time, and the tests as long as those of Debian 12.
.PHONY: test-trixie
test-trixie: all prebuilt cri-tools images ## the e2e tests in a Debian 13 userland, with its kernels; RUN chooses some by name (root)
	@echo '== e2e tests in Debian 13'
	scripts/test-trixie.sh --kernels -count=1 -p 1 -v -timeout 120m $(if $(RUN),,-skip '$(OWN)') $(ALLTESTFLAGS) ./e2e/...

.PHONY: trixie-check
trixie-check: all ## those that differ most by engine, QEMU or virtiofsd, in a Debian 13 userland (root)
	@echo '== some e2e tests in Debian 13'
	E2E_RUNTIMES=boxlite scripts/test-trixie.sh -count=1 -v -timeout 15m -run '^($(TRIXIE))$$' ./e2e

# Not in test: it takes twenty minutes.
.PHONY: test-systemd
test-systemd: all ## Debian 13 with systemd and cgroup v2 as a VM: its Docker, Podman, limits, a reboot (root)
	images/build.sh --suite trixie host
	CGO_ENABLED=0 $(GO) test -count=1 -v -timeout 60m -run '^TestSystemd$$' ./e2e/systemd

# Not in test: to build them takes ten minutes the first time.
.PHONY: test-engines
test-engines: all prebuilt images ## the e2e tests with the Docker, containerd and runc of e2e/engines/go.mod; RUN chooses some by name (root)
	@scripts/install-deps.sh engines
	engines=$$(e2e/engines/build.sh) && DOCKER=$$engines/docker PATH=$$engines:$$PATH \
		$(GO) test -count=1 -v -timeout 120m $(if $(RUN),,-skip '^Test(Real|Full|Podman)') $(ALLTESTFLAGS) ./e2e

.PHONY: soak
soak: all ## 200 mixed operations, some on hostile guests, nothing left behind; about 10 minutes emulated (root)
	E2E_SOAK=$${E2E_SOAK:-200} E2E_RUNTIMES=boxlite $(GO) test -count=1 -timeout 180m -v ./e2e -run TestSoak

.PHONY: conformance
conformance: all ## other projects' suites with runc and boxlite, into docs/conformance.md: OCI's, runc's, Kubernetes' (root)
	$(GO) run ./conformance -boxlite bin/boxlite
	@$(MAKE) --no-print-directory conformance-runc
	@$(MAKE) --no-print-directory conformance-cri

.PHONY: conformance-check
conformance-check: all ## what of the suite is ok in docs/conformance.md must be it still (root)
	@echo '== validation suite'
	$(GO) run ./conformance -boxlite bin/boxlite -check -j 2

# crictl and critest; the e2e tests have no network to build them with.
.PHONY: cri-tools
cri-tools: ## build crictl and critest; from the cache if nothing has changed
	@$(GO) run ./conformance -cri-tools >/dev/null

e2e: cri-tools

.PHONY: conformance-runc
conformance-runc: all ## runc's own tests with runc and boxlite, into docs/conformance.md (root)
	@scripts/install-deps.sh suites
	$(GO) run ./conformance -runc-tests -boxlite bin/boxlite

.PHONY: conformance-cri
conformance-cri: all ## Kubernetes' critest through containerd with runc and boxlite, into docs/conformance.md; half an hour emulated (root)
	$(GO) run ./conformance -cri -boxlite bin/boxlite

# Not in test: it builds Kubernetes first.
.PHONY: kubernetes
kubernetes: all ## scenarios in a real Kubernetes of one node, with runc and boxlite; builds it the first time, half an hour (root)
	@kubernetes/build.sh >/dev/null
	$(GO) test -count=1 -v -timeout 130m $(ALLTESTFLAGS) ./kubernetes

.PHONY: lint
lint: generate ## gofumpt, what is generated, scripts/lint.sh for each module, shellcheck
	@echo '== lint'
	@unformatted=$$($(LINTER) gofumpt -l .) && if [ -n "$$unformatted" ]; then \
		echo "not formatted (make format):" && echo "$$unformatted" && exit 1; fi
	git diff --exit-code -- $$(git grep -l '^// Code generated')
	scripts/lint.sh
	cd bench && ../scripts/lint.sh
	shellcheck $(SCRIPTS)

# Offline too: generators are of this module, and what they read is in go.mod.
.PHONY: generate
generate: ## go generate; lint wants what comes out to be committed
	$(GO) generate ./...

.PHONY: format
format: ## gofumpt -w
	$(LINTER) gofumpt -w .

# What bench runs in guests: in containers, and alone in an initramfs.
.PHONY: benchload
benchload:
	cd bench && $(GOBUILD) -ldflags '$(LDFLAGS)' -o ../bin/benchload ./load
	$(GO) run ./initramfs -o bin/benchload.cpio bin/benchload

.PHONY: bin/bench
bin/bench:
	cd bench && $(GOBUILD) -o ../$@ .

.PHONY: bench
bench: all bin/bench benchload ## boxlite beside runc, crun, runsc and bare QEMU, at most 10 minutes (root)
	bin/bench -json bench.json -plot docs/starts.svg

.PHONY: bench-quick
bench-quick: all bin/bench benchload ## the same with few repetitions, about a minute (root)
	bin/bench -quick

.PHONY: bench-pods
bench-pods: all bin/bench benchload ## members of pods beside their first container, and 110 pods at once, about 5 minutes (root)
	bin/bench -pods -json bench-pods.json

.PHONY: bench-dind
bench-dind: all bin/bench benchload ## Docker in Docker beside dockerd in bare QEMU, and where it keeps its files, about 6 minutes (root)
	images/build.sh dind
	bin/bench -dind -json bench-dind.json

.PHONY: bench-programs
bench-programs: all bin/bench benchload ## servers and tools in containers of runc, boxlite and runsc, half an hour emulated (root)
	images/build.sh programs
	bin/bench -programs -json bench-programs.json

.PHONY: clean
clean: ## remove bin/; the cache of kernels stays
	rm -rf bin

.PHONY: help
help: ## this list
	@sed -n 's/^\([a-z0-9-]*\):.*## \(.*\)/\1	\2/p' $(MAKEFILE_LIST) | expand -t 12
