# make alone lists the targets. All of them work on a clean checkout, without a prior step.

VERSION  ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)
REVISION ?= $(shell git rev-parse HEAD 2>/dev/null)
IMAGE    ?= outbox-relay:latest

# Arguments for the tests: make test ARGS='-run TestCrash -v' PACKAGES=./store/...
PACKAGES ?= ./...
ARGS     ?=
FUZZTIME ?= 30s
DURATION ?= 3m

GOLANGCI_LINT_VERSION = 2.15.0
GOLANGCI_LINT_MODULE  = github.com/golangci/golangci-lint/v2/cmd/golangci-lint@v$(GOLANGCI_LINT_VERSION)

# The installed linter if it is of the right version, otherwise one that go builds and caches.
GOLANGCI_LINT = $(shell golangci-lint version 2>/dev/null | grep -q 'version $(GOLANGCI_LINT_VERSION) ' \
	&& echo golangci-lint || echo go run $(GOLANGCI_LINT_MODULE))

# Compose v2 is a plugin of docker, v1 a program of its own.
COMPOSE = $(shell docker compose version >/dev/null 2>&1 && echo docker compose || echo docker-compose)

# The race detector needs cgo and a C compiler.
RACE = $(shell [ "$$(go env CGO_ENABLED)" = 1 ] && command -v "$$(go env CC)" >/dev/null && echo -race)

# What takes times, and what compiles nats-servers beside it: one after the other, and without the race detector.
TIMED = .*/integration/\(field\|versions\)

# A module of its own, so that the library has none of Kubernetes' dependencies.
KUBERNETES = examples/kubernetes/check

.DEFAULT_GOAL := help
.PHONY: help build docker-build up sample-logs down demo test kubernetes chaos mutants lint bench fuzz clean need-go need-postgres need-docker

help: ## list the targets
	@echo 'Go Outbox, from Postgres to JetStream: in order, exactly once.'
	@echo
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

## Programs and images

build: need-go ## build bin/outbox-relay
	CGO_ENABLED=0 go build -trimpath -ldflags '-s -w -X main.version=$(VERSION)' -o bin/ ./relay/cmd/outbox-relay

docker-build: need-docker ## build the image outbox-relay:latest
	docker build --build-arg VERSION='$(VERSION)' --build-arg REVISION='$(REVISION)' --tag $(IMAGE) .

## Trying it out

demo: need-go ## show it all in one process, nothing to install but Postgres
	go run ./examples/demo

define PORT_HINT
If a port is taken, by a server of your own or by another checkout, choose another one for what is in the way:

  make up POSTGRES_PORT=5433 NATS_PORT=4223 NATS_MONITOR_PORT=8223 PRODUCER_1_PORT=8083 PRODUCER_2_PORT=8084

A file .env with such lines makes the choice last. A second checkout whose folder has the same name also needs
COMPOSE_PROJECT_NAME.
endef
export PORT_HINT

up: need-docker ## start Postgres, NATS, two producers and a consumer in containers
	$(COMPOSE) --profile relay build --build-arg VERSION='$(VERSION)' --build-arg REVISION='$(REVISION)'
	@$(COMPOSE) up --detach || { printf '\n%s\n' "$$PORT_HINT" >&2; exit 1; }
	@echo 'Waiting until all are healthy.'
	@for i in $$(seq 60); do \
		docker inspect --format '{{.State.Health.Status}}' $$($(COMPOSE) ps --all -q) | grep -qv '^healthy$$' || exit 0; \
		sleep 1; \
	done; $(COMPOSE) ps; $(COMPOSE) logs --tail 20; exit 1
	@echo
	@echo "Create a user through the first producer, verify it through the second (see: make sample-logs):"
	@echo
	@echo "  curl -H 'Content-Type: application/json' -d '{\"name\":\"john.doe\",\"email\":\"john@example.com\"}' $$($(COMPOSE) port sample-server-1 8080)/users"
	@echo "  curl -X PATCH $$($(COMPOSE) port sample-server-2 8080)/users/1/verify"
	@echo
	@echo "Stop one producer, and the other takes over the leadership of the relay, if it was there:"
	@echo
	@echo "  $(COMPOSE) stop sample-server-1"
	@echo
	@echo "Three relays of their own, and the health of one of them:"
	@echo
	@echo "  $(COMPOSE) --profile relay up --detach --scale relay=3"
	@echo "  curl \$$($(COMPOSE) --profile relay port --index=1 relay 8080)/healthz"

sample-logs: need-docker ## follow the logs of the producers and the consumer
	$(COMPOSE) logs --follow sample-server-1 sample-server-2 sample-consumer

down: need-docker ## remove the containers and their data
	$(COMPOSE) --profile relay down --volumes --remove-orphans

## Working on it

test: need-go need-postgres ## run all tests (ARGS, PACKAGES)
	@set -e; timed=$$(go list $(PACKAGES) | grep -x '$(TIMED)' || true); others=$$(go list $(PACKAGES) | grep -vx '$(TIMED)' || true); set -x; \
	[ -z "$$others" ] || go test $(RACE) -count=1 -timeout 40m $(ARGS) $$others; \
	[ -z "$$timed" ] || go test -p 1 -count=1 -timeout 40m $(ARGS) $$timed; \
	[ '$(PACKAGES)$(ARGS)' != ./... ] || $(MAKE) --no-print-directory kubernetes

# The race detector would compile all of helm and Kubernetes once more. What it could find is tested elsewhere.
kubernetes: need-go need-postgres ## check the Kubernetes manifests and the chart, and run their containers (ARGS)
	cd $(KUBERNETES) && go test -count=1 -timeout 20m $(ARGS) ./...

chaos: need-go need-postgres ## break all there is for DURATION, then relays without a safeguard for as long at most (SEED)
	go test -count=1 -v -timeout 0 -run '^TestChaos$$' ./integration/chaos -duration $(DURATION) $(if $(SEED),-seed $(SEED))
	go test -count=1 -v -timeout 15m -run '^TestMutants$$' ./integration/chaos -mutants -duration $(DURATION)

mutants: need-go need-postgres ## take out one safeguard at a time, and see that a test fails (ARGS)
	go test -count=1 -v -timeout 15m -run '^TestKilled$$' $(ARGS) ./integration/mutants -kill

lint: need-go ## check style, layers and formatting
	$(GOLANGCI_LINT) fmt --diff
	$(GOLANGCI_LINT) run
	cd $(KUBERNETES) && $(GOLANGCI_LINT) run

bench: need-go need-postgres ## run the benchmarks (ARGS, PACKAGES)
	go test -run '^$$' -bench . -benchmem -timeout 60m $(ARGS) $(PACKAGES)

fuzz: need-go ## fuzz each fuzz test for FUZZTIME
	@grep -r --include='*_test.go' -E '^func Fuzz' . | sed -E 's|/[^/]*_test.go:func (Fuzz[A-Za-z0-9_]*).*| \1|' | sort \
	| while read -r package target; do \
		echo "$$package $$target"; \
		go test -run '^$$' -fuzz "^$$target\$$" -fuzztime $(FUZZTIME) "$$package" || exit 1; \
	done

clean: ## remove what was built
	rm -rf bin
	go clean -testcache

need-go:
	@command -v go >/dev/null || { echo 'Go 1.26 or newer is missing: https://go.dev/dl' >&2; exit 1; }

# The places are those of package store/storetest/postgres.
need-postgres:
	@[ -n "$$OUTBOX_TEST_DSN" ] || command -v initdb >/dev/null || ls /usr/lib/postgresql/*/bin/initdb \
		/usr/pgsql-*/bin/initdb /usr/libexec/postgresql*/initdb /opt/homebrew/opt/postgresql*/bin/initdb \
		/usr/local/opt/postgresql*/bin/initdb /home/linuxbrew/.linuxbrew/opt/postgresql*/bin/initdb \
		/Applications/Postgres.app/Contents/Versions/*/bin/initdb 2>/dev/null | grep -q . \
	|| { echo 'Postgres is missing: apt-get install postgresql, brew install postgresql, or set OUTBOX_TEST_DSN' >&2; exit 1; }

need-docker:
	@command -v docker >/dev/null || { echo 'Docker is missing: https://docs.docker.com/get-docker' >&2; exit 1; }
