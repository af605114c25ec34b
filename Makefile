# The front door. `make demo` and `make test` install what is missing and say so.
SHELL := /bin/bash
SWIFT ?= swift
JOBS  ?= $(shell nproc)

.PHONY: help setup build build-release install deb deb-test walk demo test test-long test-quick soak bench bench-qcow bench-nbd bench-rbd bench-vhd count check fuzz models fmt clean
.PHONY: xen-setup xen-test xen-shell xen-bench

help: ## what can be done here
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):[^#]*## /  make \1\t/' | expand -t 22

setup: ## install Debian packages that are missing
	@scripts/setup.sh

build: setup ## everything, debug, staged in build/debug
	@$(SWIFT) build --build-tests -j $(JOBS)
	@scripts/stage.sh debug

build-release: setup ## what is installed, release, staged in build/release
	@scripts/build-release.sh
	@scripts/stage.sh release

install: ## what build-release built, below DESTDIR and PREFIX (/usr/local)
	@scripts/install-tree.sh

deb: ## the Debian packages, in build/deb
	@scripts/deb.sh

deb-test: deb ## install, use, upgrade, remove and purge them in a Debian without Swift (root)
	@scripts/deb-test.sh

walk: deb ## the commands of docs/operating.md, as they stand there, in a Debian without Swift (root)
	@scripts/deb-test.sh walk

demo: build-release ## a real disk image through a shared ring, without Xen (needs no root but for a loop device)
	@scripts/demo.sh

test: $(if $(SANITIZE),setup,build) ## all tests; with SANITIZE=address, thread or undefined those that can run under it
	@$(if $(SANITIZE),scripts/sanitize.sh $(SANITIZE),scripts/test.sh)

test-long: build build-release deb ## a thousand kills and upgrades, all kinds of QCOW images and all hostile ones: minutes
	@scripts/test-long.sh

soak: build ## guests, kills and administrators at random for HOURS= (1), beside a model; SEED= repeats one (root)
	@Tests/Soak/soak.py --hours $(or $(HOURS),1) $(if $(SEED),--seed $(SEED))

bench-qcow: build-release ## figures of QCOW images beside libqcow and qemu-nbd
	@scripts/bench-qcow.sh

bench-nbd: build-release ## figures of NBD exports beside fio's nbd engine
	@scripts/bench-nbd.sh

bench-rbd: build-release ## figures of images of Ceph beside fio's rbd engine, on a Ceph of this machine
	@scripts/bench-rbd.sh

bench-vhd: build-release ## figures of VHD images beside qemu-nbd
	@scripts/bench-qcow.sh --format vhd

bench: build-release ## figures beside the peers, as a table and as JSON in build/bench.json
	@scripts/bench.sh

count: build-release ## instructions of a request in the host, counted by valgrind
	@scripts/setup.sh valgrind
	@scripts/count.sh

xen-setup: setup ## install what the Xen lab needs
	@lab/setup.sh

xen-test: xen-setup deb ## a real Xen with guests, emulated: all tests, or TESTS="10 20"
	@lab/xen-lab test $(TESTS)

xen-bench: xen-setup deb ## figures beside xen-blkback and qdisk there, in build/xen-bench.json; ROWS= ROUNDS= RUNTIME= CLOCK=, see benchmarks.md
	@lab/xen-lab bench

xen-shell: xen-setup deb ## the same machine, and a prompt in its dom0
	@lab/xen-lab shell

fuzz: setup ## attack it with inputs that a machine makes: TARGET= (docs/testing.md has their names; all) SECONDS= (60 for each)
	@scripts/fuzz.sh run $(or $(TARGET),all) $(or $(SECONDS),60)

models: setup ## the models of recovery and sleep, all states (SPIN), and that each planted error is found
	@scripts/models.py --long

check: setup ## formatting, shell scripts, header as C11 and C++17
	@scripts/check.sh

fmt: ## format the Swift sources in place
	@$(SWIFT) format format --in-place --recursive Package.swift Sources Formats Plugins Tests packaging examples

clean: ## remove all that was built
	@rm -rf .build build
