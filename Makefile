# ctguard: make prints the targets.
SHELL    := /bin/bash -o pipefail
GO       ?= go
VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
LDFLAGS  := -s -w -X ctguard/agent.Version=$(VERSION)
FUZZTIME ?= 30s

TOOLS        := $(CURDIR)/.tools
LINT_VERSION := v2.6.2
LINT         := $(TOOLS)/golangci-lint-$(LINT_VERSION)

# What the tests and the lab use besides Go: program names and the Debian packages they are in.
PROGRAMS := nft:nftables conntrack:conntrack ip:iproute2 iptables-legacy:iptables ufw:ufw promtool:prometheus tmux:tmux rsvg-convert:librsvg2-bin firewalld:firewalld fail2ban-server:fail2ban systemd-analyze:systemd strace:strace

.PHONY: help
help: ## print the targets
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-8s %s\n", $$1, $$2}'

.PHONY: build
build: ## static bin/ctguard and bin/ctlab
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ctguard ./cmd/ctguard
	CGO_ENABLED=0 $(GO) build -trimpath -ldflags '$(LDFLAGS)' -o bin/ctlab ./cmd/ctlab

.PHONY: deps
deps: ## install the Debian packages that the tests and the lab use
	@# These two must never begin to rule this host: the tests start some of their own.
	@mkdir -p /etc/systemd/system; for s in firewalld:firewalld fail2ban-server:fail2ban; do \
		command -v "$${s%%:*}" >/dev/null || ln -sf /dev/null "/etc/systemd/system/$${s##*:}.service"; done
	@missing=(); for p in $(PROGRAMS); do \
		command -v "$${p%%:*}" >/dev/null || missing+=("$${p##*:}"); done; \
	if [ $${#missing[@]} -gt 0 ]; then \
		echo "installing: $${missing[*]}"; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$${missing[@]}" >/dev/null; \
	fi
	@[ -e /proc/sys/net/netfilter/nf_conntrack_max ] || modprobe nf_conntrack

.PHONY: touches
touches:
	@echo "make test: what it does to this machine"
	@for p in $(PROGRAMS); do command -v "$${p%%:*}" >/dev/null || echo "  installs the Debian package $${p##*:}"; done; \
	for s in firewalld:firewalld fail2ban-server:fail2ban; do \
		command -v "$${s%%:*}" >/dev/null || echo "  masks the service $${s##*:}, so that it never begins to rule this host"; done
	@[ -e /proc/sys/net/netfilter/nf_conntrack_max ] || echo "  loads the module nf_conntrack"
	@[ -x $(LINT) ] || echo "  builds golangci-lint in .tools"
	@echo "  changes net.netfilter.nf_conntrack_max and nf_conntrack_buckets for some seconds at a time, and puts them back"
	@echo "  works in network namespaces of its own, which it removes; nothing reaches your network"

.PHONY: check
check: ## what needs neither root nor anything installed: vet, format, unit tests; the linter if it is there
	$(GO) vet -tags man ./...
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	@if [ -x $(LINT) ]; then $(LINT) run ./...; else echo "no linter in .tools: make lint brings it"; fi
	CTGUARD_REQUIRE_PRIVILEGED= $(GO) test -short -timeout 5m ./...

.PHONY: test
test: touches deps lint build ## every test, on the real kernel: needs root
	CTGUARD_REQUIRE_PRIVILEGED=1 $(GO) test -count=1 -p 1 -timeout 20m ./...

.PHONY: race
race: deps build ## the tests that fit, under the race detector; policy has one goroutine, and needs none of it
	CTGUARD_REQUIRE_PRIVILEGED=1 $(GO) test -race -short -count=1 -p 1 -timeout 20m ./agent/... ./nft/... ./cmd/ctguard/...

.PHONY: lint
lint: $(LINT) ## go vet, gofmt and the linter
	$(GO) vet -tags man ./...
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	$(LINT) run ./...

$(LINT):
	GOBIN=$(TOOLS) $(GO) install github.com/golangci/golangci-lint/v2/cmd/golangci-lint@$(LINT_VERSION)
	mv $(TOOLS)/golangci-lint $@

# What is known of faults in dependencies, as a module: it needs the registry of modules, and nothing else.
VULN_VERSION    := v1.9.0
VULN_DATA       := golang.org/x/vulndb
VULN_DATE       := v0.0.0-20261105234957-e22db6528018
VULN_DB         := $(TOOLS)/vulndb-$(VULN_DATE)
VULN            := $(TOOLS)/govulncheck-$(VULN_VERSION)
SBOM_VERSION    := v1.10.0
SBOM            := $(TOOLS)/cyclonedx-gomod-$(SBOM_VERSION)
# Licences under which what is linked into ctguard may be passed on with it. BSD-Source-Code is what the tool takes
# golang.org/x's BSD-3-Clause with its Google names for.
LICENCES        := Apache-2.0 BSD-2-Clause BSD-3-Clause BSD-Source-Code ISC MIT

.PHONY: deps-check
deps-check: $(VULN) $(VULN_DB) sbom ## dependencies: as they were published, without known faults that reach ctguard, with licences that allow it
	$(GO) mod verify
	@# Faults of Go itself are mended by building with a newer one: they are shown, and are no reason to fail.
	@$(VULN) -db file://$(VULN_DB) ./... > $(TOOLS)/vulnerabilities.txt; code=$$?; \
	grep -E '^Vulnerability|Found in|Fixed in|^Your code|^No vuln' $(TOOLS)/vulnerabilities.txt; \
	if [ $$code -ne 0 ] && ! grep -qE 'affected by [0-9]+ vulnerabilit(y|ies) from the Go standard library' $(TOOLS)/vulnerabilities.txt; then \
		cat $(TOOLS)/vulnerabilities.txt; exit 1; fi
	@found=$$(grep -A2 '"license": {' bin/ctguard.cdx.json | sed -n 's/.*"id": "\(.*\)".*/\1/p' | sort -u); echo "licences:" $$found; \
	for one in $$found; do case " $(LICENCES) " in *" $$one "*) ;; *) echo "$$one is not among $(LICENCES)"; exit 1;; esac; done; \
	components=$$(grep -c '"type": "library"' bin/ctguard.cdx.json); licences=$$(grep -c '"license": {' bin/ctguard.cdx.json); \
	[ $$licences -ge $$components ] || { echo "$$components components, but $$licences licences are known"; exit 1; }

.PHONY: sbom
sbom: build $(SBOM) ## what is linked into bin/ctguard, with licences: bin/ctguard.cdx.json (CycloneDX)
	$(SBOM) bin -json -licenses -version $(VERSION) -output bin/ctguard.cdx.json bin/ctguard 2>/dev/null

$(VULN):
	GOBIN=$(TOOLS) $(GO) install golang.org/x/vuln/cmd/govulncheck@$(VULN_VERSION)
	mv $(TOOLS)/govulncheck $@

$(SBOM):
	GOBIN=$(TOOLS) $(GO) install github.com/CycloneDX/cyclonedx-gomod/cmd/cyclonedx-gomod@$(SBOM_VERSION)
	mv $(TOOLS)/cyclonedx-gomod $@

$(VULN_DB):
	data=$$($(GO) mod download -json $(VULN_DATA)@$(VULN_DATE) | sed -n 's/.*"Dir": "\(.*\)".*/\1/p') && \
	$(GO) run $(VULN_DATA)/cmd/indexdb@$(VULN_DATE) -vulns $$data/data/osv -out $@.new && mv $@.new $@

.PHONY: fuzz
fuzz: ## fuzz every parser for FUZZTIME (30s) each
	@for f in $$(grep -rlE '^func Fuzz' --include '*_test.go' .); do \
		for name in $$(grep -oE '^func Fuzz[A-Za-z0-9]*' $$f | cut -d' ' -f2); do \
			$(GO) test -run '^$$' -fuzz "^$$name$$" -fuzztime $(FUZZTIME) -fuzzminimizetime 10x ./$$(dirname $$f) || exit 1; done; done

CRASHES ?= 1000
.PHONY: crash
crash: deps ## end the daemon in every way at CRASHES (1000) random moments: needs root, ten minutes
	CTGUARD_REQUIRE_PRIVILEGED=1 CTGUARD_CRASH_POINTS=$(CRASHES) $(GO) test -count=1 -timeout 60m -v -run '^TestCrashes$$' ./cmd/ctguard

SPARED ?= 1000
.PHONY: spared
spared: deps ## SPARED (1000) random floods, of which those who must be spared may feel nothing: needs root, a quarter of an hour
	CTGUARD_REQUIRE_PRIVILEGED=1 CTGUARD_SPARED_CASES=$(SPARED) $(GO) test -count=1 -timeout 60m -v -run '^TestWhoIsSpared$$' ./cmd/ctguard

SOAK ?= 1h
.PHONY: soak
soak: deps ## floods on and off for SOAK (1h), in which nothing may grow: needs root
	CTGUARD_REQUIRE_PRIVILEGED=1 CTGUARD_SOAK=$(SOAK) $(GO) test -count=1 -timeout 3h -v -run '^TestSoak$$' ./cmd/ctguard

.PHONY: bench
bench: deps build ## every figure of docs/performance.md: needs root
	bin/ctlab bench-table --rounds 3
	bin/ctlab bench-data
	bin/ctlab bench-scale --svg bin/scale.svg

.PHONY: demo
demo: deps build ## a flood without and with ctguard, in under a minute: needs root
	bin/ctlab demo

.PHONY: e2e
e2e: deps build ## all attacks against all guards: needs root
	bin/ctlab matrix

# The packages. What goes into them comes from the commit alone, so that two builds have one hash. A commit without a tag
# of its own is a version after the last release.
NFPM_VERSION      := v2.45.2
NFPM              := $(TOOLS)/nfpm-$(NFPM_VERSION)
RELEASE           := bin/release
SOURCE_DATE_EPOCH ?= $(shell git log -1 --format=%ct)
TAG               := $(shell git describe --tags --exact-match 2>/dev/null)
PACKAGE_VERSION   ?= $(if $(TAG),$(TAG:v%=%),0.1.0+git$(shell TZ=UTC git log -1 --date=format-local:%Y%m%d%H%M%S --format=%cd.%h))
MAINTAINER        ?= ctguard maintainers <ctguard@localhost>
HOST_ARCH         := $(shell $(GO) env GOARCH)
REPRODUCIBLE      := TZ=UTC LC_ALL=C.UTF-8 SOURCE_DATE_EPOCH=$(SOURCE_DATE_EPOCH) CGO_ENABLED=0
RELEASE_FLAGS     := -trimpath -buildvcs=false -ldflags '-s -w -buildid= -X ctguard/agent.Version=$(PACKAGE_VERSION)'

.PHONY: deb
deb: $(RELEASE)/$(HOST_ARCH).deb ## a Debian package for this machine in bin/release

	@# Nobody who only builds needs lintian; where it is, it must have nothing to say.
	@if command -v lintian >/dev/null; then lintian --fail-on error,warning $(RELEASE)/ctguard_$(PACKAGE_VERSION)_$(HOST_ARCH).deb 2>/dev/null; \
	else echo "no lintian here: the package is not judged"; fi

.PHONY: rpm
rpm: $(RELEASE)/$(HOST_ARCH).rpm ## an RPM package for this machine in bin/release

.PHONY: release
release: ## deb, rpm and program for amd64 and arm64, with their hashes, in bin/release
	rm -rf $(RELEASE)
	$(MAKE) --no-print-directory $(foreach arch,amd64 arm64,$(RELEASE)/$(arch).deb $(RELEASE)/$(arch).rpm)
	for arch in amd64 arm64; do \
		tar --sort=name --mtime=@$(SOURCE_DATE_EPOCH) --owner=0 --group=0 --numeric-owner -C $(RELEASE)/$$arch -c ctguard | \
		gzip -9n > $(RELEASE)/ctguard_$(PACKAGE_VERSION)_linux_$$arch.tar.gz; done
	cd $(RELEASE) && sha256sum *.deb *.rpm *.tar.gz | tee SHA256SUMS

# Never files: nfpm names the packages in full.
nfpm = ARCH=$* VERSION=$(PACKAGE_VERSION) MAINTAINER='$(MAINTAINER)' $(REPRODUCIBLE) $(NFPM) package \
	-f .package/nfpm.yaml -t $(RELEASE)/ -p
$(RELEASE)/%.deb: $(RELEASE)/%/ctguard $(RELEASE)/share $(NFPM)
	$(nfpm) deb
$(RELEASE)/%.rpm: $(RELEASE)/%/ctguard $(RELEASE)/share $(NFPM)
	$(nfpm) rpm

.PHONY: $(RELEASE)/amd64/ctguard $(RELEASE)/arm64/ctguard
$(RELEASE)/amd64/ctguard $(RELEASE)/arm64/ctguard:
	$(REPRODUCIBLE) GOARCH=$(notdir $(@D)) $(GO) build $(RELEASE_FLAGS) -o $@ ./cmd/ctguard

# Manual pages and completions come from the commands themselves.
.PHONY: $(RELEASE)/share
$(RELEASE)/share:
	rm -rf $@ && mkdir -p $@
	$(REPRODUCIBLE) $(GO) build $(RELEASE_FLAGS) -tags man -o $@/build ./cmd/ctguard
	$(REPRODUCIBLE) $@/build man $@/man docs/examples/ctguard.toml && gzip -9n $@/man/*/*
	$@/build completion bash > $@/ctguard.bash
	$@/build completion zsh > $@/_ctguard
	$@/build completion fish > $@/ctguard.fish
	gzip -9nc docs/changelog.md > $@/NEWS.md.gz
	printf 'ctguard (%s) unstable; urgency=medium\n\n  * What is new: NEWS.md.gz.\n\n -- %s  %s\n' '$(PACKAGE_VERSION)' \
		'$(MAINTAINER)' "$$(TZ=UTC LC_ALL=C date -R -d @$(SOURCE_DATE_EPOCH))" | gzip -9n > $@/changelog.gz
	GO=$(GO) .package/copyright > $@/copyright
	rm $@/build

.PHONY: release-check
release-check: release ## a second release from a copy of this commit elsewhere: the hashes must be the same
	dir=$$(mktemp -d) && trap "rm -rf $$dir" EXIT && git clone -q . $$dir/copy && mkdir -p $$dir/copy/.tools && \
	cp $(NFPM) $$dir/copy/.tools/ && $(MAKE) -C $$dir/copy --no-print-directory release PACKAGE_VERSION=$(PACKAGE_VERSION) && \
	diff $(RELEASE)/SHA256SUMS $$dir/copy/$(RELEASE)/SHA256SUMS && echo "two builds, one hash"

RELEASES ?= bullseye bookworm trixie
PARTS    ?= life life-rpm docker firewalls tunnels vrf balancers openvswitch offload bridge module boot clock shrunk
.PHONY: vm
vm: ## PARTS of what only real machines show, on Debian RELEASES, in virtual machines: skipped without QEMU
	$(MAKE) --no-print-directory $(RELEASE)/amd64.deb $(RELEASE)/amd64.rpm PACKAGE_VERSION=0.0.1
	$(MAKE) --no-print-directory $(RELEASE)/amd64.deb $(RELEASE)/amd64.rpm
	CGO_ENABLED=0 $(GO) test -c -o $(RELEASE)/ctguard.test ./cmd/ctguard
	.package/vm $(RELEASE)/ctguard_0.0.1_amd64.deb $(RELEASE)/ctguard_$(PACKAGE_VERSION)_amd64.deb \
		$(RELEASE)/ctguard-0.0.1-1.x86_64.rpm $(RELEASE)/ctguard-$(PACKAGE_VERSION)-1.x86_64.rpm $(TOOLS)/vm "$(RELEASES)" "$(PARTS)"

$(NFPM):
	GOBIN=$(TOOLS) $(GO) install github.com/goreleaser/nfpm/v2/cmd/nfpm@$(NFPM_VERSION)
	mv $(TOOLS)/nfpm $@

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .tools
