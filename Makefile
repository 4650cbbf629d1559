# make run     build, mount a node of your own on ./gears, print a tour
# make cluster three nodes of one volume, each with its own mount: ./gears1 to 3
# make test    install what the tests need and run all of them
# make build   the two binaries, static, into bin/
# The others: install, generate, torture, bench.

GO ?= go
export CGO_ENABLED := 0

VERSION := $(shell git describe --tags --always --dirty 2>/dev/null)
LDFLAGS := -s -w -X github.com/gearsfs/gearsfs/cmd/internal/node.version=$(VERSION)
GOBUILD := -trimpath -ldflags '$(LDFLAGS)'

# Where `make run` mounts, and keeps the data.
MOUNTPOINT ?= gears
DATA ?= gears-data

# install-missing installs Debian packages for the commands that are missing;
# its argument is a list of command:package.
define install-missing
need=; \
for pair in $(1); do command -v "$${pair%%:*}" >/dev/null || [ -x "/usr/sbin/$${pair%%:*}" ] || need="$$need $${pair#*:}"; done; \
if [ -n "$$need" ]; then \
	sudo=; [ "$$(id -u)" = 0 ] || sudo=sudo; \
	echo "installing$$need"; \
	$$sudo apt-get -qq update && DEBIAN_FRONTEND=noninteractive $$sudo apt-get -qq install -y --no-install-recommends $$need >/dev/null; \
fi
endef

.PHONY: run cluster build install test check torture bench generate

build:
	@mkdir -p bin
	$(GO) build $(GOBUILD) -o bin/ ./cmd/...

install:
	$(GO) install $(GOBUILD) ./cmd/...

run: build
	@[ "$$(id -u)" = 0 ] || { $(call install-missing,fusermount3:fuse3); }
	@mkdir -p $(MOUNTPOINT)
	@echo
	@echo "To try in another terminal (^C here unmounts):"
	@echo
	@sed -n '/^<!-- tour -->/,/^<!-- end -->/s/^    //p' README.md | sed "s|^cd gearsfs|cd '$(CURDIR)'|"
	@echo
	@exec bin/gearsfs mount --data $(DATA) $(MOUNTPOINT)

cluster: build
	@[ "$$(id -u)" = 0 ] || { $(call install-missing,fusermount3:fuse3); }
	@exec ./cluster.sh

check:
	@bad=$$(gofmt -l $$(git ls-files '*.go' 2>/dev/null || find . -name '*.go')); \
	[ -z "$$bad" ] || { echo "not gofmt'ed:" $$bad; exit 1; }
	$(GO) vet ./...

# What the tests run besides Go.
TESTTOOLS := fusermount3:fuse3 rsync:rsync sqlite3:sqlite3 git:git vim:vim getfattr:attr mkfs.ext4:e2fsprogs ip:iproute2 fio:fio

test: check
	@$(call install-missing,$(TESTTOOLS))
	$(GO) test -timeout 40m ./tests ./... # what takes longest begins first

# The tests at full size: more kills, more records, for longer.
torture:
	@$(call install-missing,$(TESTTOOLS))
	GEARSFS_TORTURE=1 $(GO) test -count 1 -timeout 12h ./...

# What the bench runs besides Go.
BENCHTOOLS := redis-server:redis-server beanstalkd:beanstalkd fusermount3:fuse3 gcc:build-essential

# The figures of the README and of docs/performance.md; the packages' own
# benchmarks run by go test -bench.
bench:
	@$(call install-missing,$(BENCHTOOLS))
	$(GO) run ./bench start queue work mount wordcount

# protoc's Go plugins, of the versions that go.mod names.
PLUGINS := $(CURDIR)/bin/plugins

generate:
	@$(call install-missing,protoc:protobuf-compiler)
	GOBIN=$(PLUGINS) $(GO) install google.golang.org/protobuf/cmd/protoc-gen-go
	GOBIN=$(PLUGINS) $(GO) install github.com/planetscale/vtprotobuf/cmd/protoc-gen-go-vtproto
	PATH=$(PLUGINS):$$PATH $(GO) generate ./wire
