# `make` alone prints the targets. Everything is built under bin/ and build/.

export CGO_ENABLED ?= 0
VERSION := $(shell git describe --tags --always --long --dirty 2>/dev/null || echo unknown)
AGENT   := internal/guest/blob/bin/creel-guest
LINK    := -s -w -buildid=
STATE   := $(CURDIR)/build/state
FUZZTIME ?= 10s

.PHONY: help deps build kernel check test demo tour bench fuzz dist clean

help: ## print this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' Makefile

deps: ## install the Debian packages that are missing
	@scripts/deps

build: ## build bin/creel with its guest agent inside
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$(LINK)" -o $(AGENT) ./cmd/creel-guest
	CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "$(LINK) -X main.version=$(VERSION)" -o bin/creel ./cmd/creel

# The guest kernel is downloaded through apt and unpacked, never installed.
kernel: deps build
	@CREEL_STATE_DIR=$(STATE) bin/creel kernel show 2>/dev/null || CREEL_STATE_DIR=$(STATE) bin/creel kernel fetch

check: build ## format, vet, staticcheck, unit tests with the race detector
	@unformatted=$$(gofmt -l cmd internal scripts test); if [ -n "$$unformatted" ]; then echo "run gofmt -w on:"; echo "$$unformatted"; exit 1; fi
	go vet ./...
	go tool -modfile=scripts/tools.mod staticcheck ./...
	CGO_ENABLED=1 go test -race -short -timeout 10m ./cmd/... ./internal/...

test: deps build kernel ## install what is missing and run every test, real VMs included
	@scripts/deps npm:npm # for an image of agents; it is much, and only tests want it
	@scripts/servers
	CREEL_TEST_KERNEL=$(STATE)/kernels CREEL_TEST_BIN=$(CURDIR)/bin/creel CGO_ENABLED=1 go test -race -timeout 40m ./...

demo: deps build kernel ## run a real task in a MicroVM, step by step
	@CGO_ENABLED=0 go build -o build/creel-demoapi ./scripts/demoapi
	@CREEL_STATE_DIR=$(STATE) scripts/demo

tour: deps build kernel ## run every command of docs/tour.md and write it anew
	@CGO_ENABLED=0 go build -o build/creel-demoapi ./scripts/demoapi
	@scripts/tour

bench: deps build kernel ## measure, print a table, write build/bench.json
	@scripts/docker
	@scripts/peers
	go build -o build/creel-bench ./test/bench
	build/creel-bench -creel bin/creel -json build/bench.json

fuzz: build ## fuzz every target for FUZZTIME (10s) each
	@scripts/fuzz $(FUZZTIME)

dist: build ## pack bin/creel: Debian package, bill of materials, checksums, all reproducible
	@scripts/dist $(VERSION)

clean: ## remove what was built, downloaded and cached here
	rm -rf bin build dist $(AGENT)
