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
PROGRAMS := nft:nftables conntrack:conntrack ip:iproute2 iptables-legacy:iptables ufw:ufw promtool:prometheus tmux:tmux rsvg-convert:librsvg2-bin firewalld:firewalld fail2ban-server:fail2ban systemd-analyze:systemd

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

.PHONY: check
check: ## what needs neither root nor anything installed: vet, format, unit tests; the linter if it is there
	$(GO) vet ./...
	@test -z "$$(gofmt -l $$(git ls-files '*.go'))" || { echo "gofmt would change:"; gofmt -l $$(git ls-files '*.go'); exit 1; }
	@if [ -x $(LINT) ]; then $(LINT) run ./...; else echo "no linter in .tools: make lint brings it"; fi
	CTGUARD_REQUIRE_PRIVILEGED= $(GO) test -short -timeout 5m ./...

.PHONY: test
test: deps lint build ## every test, on the real kernel: needs root
	CTGUARD_REQUIRE_PRIVILEGED=1 $(GO) test -count=1 -p 1 -timeout 20m ./...

.PHONY: race
race: deps build ## the tests that fit, under the race detector
	CTGUARD_REQUIRE_PRIVILEGED=1 $(GO) test -race -short -count=1 -p 1 -timeout 20m ./policy/... ./agent/... ./nft/... ./cmd/ctguard/...

.PHONY: lint
lint: $(LINT) ## go vet, gofmt and the linter
	$(GO) vet ./...
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

.PHONY: bench
bench: deps build ## every figure of docs/performance.md: needs root
	bin/ctlab bench-table
	bin/ctlab bench-data

.PHONY: demo
demo: deps build ## a flood without and with ctguard, in under a minute: needs root
	bin/ctlab demo

.PHONY: e2e
e2e: deps build ## all attacks against all guards: needs root
	bin/ctlab matrix

DEB := bin/deb
.PHONY: deb
deb: build ## a Debian package in bin/
	rm -rf $(DEB)
	install -D bin/ctguard $(DEB)/usr/sbin/ctguard
	install -D -m 644 docs/examples/ctguard.service $(DEB)/usr/lib/systemd/system/ctguard.service
	install -D -m 644 docs/examples/ctguard.toml $(DEB)/etc/ctguard/ctguard.toml
	install -D -m 644 docs/examples/sysusers.conf $(DEB)/usr/lib/sysusers.d/ctguard.conf
	install -D -m 755 docs/examples/debian/postinst $(DEB)/DEBIAN/postinst
	install -D -m 755 docs/examples/debian/prerm $(DEB)/DEBIAN/prerm
	install -D -m 644 docs/examples/debian/conffiles $(DEB)/DEBIAN/conffiles
	sed -e 's/@VERSION@/0.1.0+$(VERSION)/' -e "s/@ARCH@/$$(dpkg --print-architecture)/" docs/examples/debian/control > $(DEB)/DEBIAN/control
	dpkg-deb --root-owner-group --build $(DEB) bin/

.PHONY: clean
clean: ## remove what was built
	rm -rf bin .tools
