# The commands of this project. Each does its own set-up first and is quick the second time; the work is in .ci/.
#   make run ARGS='serve --listen 127.0.0.1:8080 --data-dir /tmp/sbx --no-auth'
MAKEFLAGS += --no-print-directory
ARGS ?= --help
SECONDS ?= 60
# $(value ARGS) below: as it was typed, so that a $ in it is for the job's shell, not for make.

.DEFAULT_GOAL := help
.PHONY: help demo run test test-thorough test-cgroup2 attack fuzz bench lint lock setup

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

demo: ## Set up, start the service as an ordinary user, run one job over HTTP, show what came back
	@.ci/prepare run .ci/demo

run: ## Set up, then run the sandboxd command as the service's user: make run ARGS="doctor"
	@.ci/prepare run python -m sandboxd $(value ARGS)

test: ## Set up with the development tools, then lint and run every test that does not take long
	@.ci/prepare dev .ci/test
	@if [ "$$(id -u)" = 0 ]; then .ci/prepare root python -m pytest -q -p no:cacheprovider -m as_root; fi

test-thorough: ## What takes long: crashes again and again, many jobs in a row, whole distributions, other programs to compare with
	@.ci/prepare dev .ci/test thorough

test-cgroup2: ## Tests of limits and walls, and an installation, on cgroup v2 in a small virtual machine
	@.ci/prepare machine .ci/cgroup2-machine $(filter-out --help,$(value ARGS))

attack: ## Set up, then try every attack of docs/attacks.md and show which wall held
	@.ci/prepare dev .ci/attack
	@if [ "$$(id -u)" = 0 ]; then .ci/prepare root python -m pytest -q -p no:cacheprovider --attacks -m as_root; fi

fuzz: ## Search for inputs that break what reads bytes of strangers: make fuzz SECONDS=60 (for each target)
	@.ci/prepare dev python tests/fuzz/search.py $(SECONDS)

bench: ## Measure everything next to bwrap, runc, podman and a floor in C: make bench ARGS="--quick --row parked"
	@.ci/prepare bench python bench/all.py $(filter-out --help,$(ARGS))

lint: ## Only the linters: ruff, mypy, import contracts
	@.ci/prepare dev .ci/lint

lock: ## Pin every dependency with its hashes: make lock ARGS=--upgrade for newer versions
	@.ci/lock $(filter-out --help,$(ARGS))

setup: ## As root: prepare this host for a user: make setup FOR=alice
	@.ci/prepare host $(FOR)
