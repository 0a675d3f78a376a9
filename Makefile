# The front door. Every target is one line that calls `gatepost` or a standard tool; `make` alone lists them.
#   INVENTORY=inventory/prod   another environment directory     LISTENERS=FILE   another listener table
#   V=1                        show all output                   PYTHON=python3   the Python that makes .venv
.DEFAULT_GOAL := help
SHELL := /bin/sh
PYTHON ?= python3
INVENTORY ?=
LISTENERS ?=
V ?=

BIN := .venv/bin
# The toolchain is made afresh when the locks, the Python or this directory's path are others. Its stamp is written
# last, so a half-made one is never used.
STAMP := .venv/.made-$(shell (cat requirements.lock pyproject.toml; $(PYTHON) -V; pwd) 2>&1 | sha256sum | cut -c1-16)
DEV := .venv/.dev-$(shell (cat requirements-dev.lock; echo $(STAMP)) 2>&1 | sha256sum | cut -c1-16)
GATEPOST = $(BIN)/gatepost
ENVIRONMENT = $(if $(INVENTORY),--inventory "$(INVENTORY)") $(if $(LISTENERS),--listeners "$(LISTENERS)") $(if $(filter-out 0,$(V)),--verbose)
PIP = $(BIN)/python -m pip --disable-pip-version-check --no-input install --quiet --no-compile --use-pep517

.PHONY: help
help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "  INVENTORY=DIR another environment · LISTENERS=FILE another listener table · V=1 all output"

.PHONY: deploy plan converge verify check destroy ssh info
deploy: $(STAMP) ## Build, configure and verify the mail server (with nothing set: in a lab on this machine)
	@$(GATEPOST) deploy $(ENVIRONMENT)
plan: $(STAMP) ## Show what deploy would change, and change nothing
	@$(GATEPOST) plan $(ENVIRONMENT)
converge: $(STAMP) ## Configure again: Ansible only
	@$(GATEPOST) converge $(ENVIRONMENT)
verify: $(STAMP) ## Judge the running server from outside, on every port
	@$(GATEPOST) verify $(ENVIRONMENT)
check: $(STAMP) ## Ask the server itself (testinfra); changes nothing
	@$(GATEPOST) check $(ENVIRONMENT)
destroy: $(STAMP) ## Remove what deploy built; settings and secrets stay
	@$(GATEPOST) destroy $(ENVIRONMENT)
ssh: $(STAMP) ## Log in to the server
	@$(GATEPOST) ssh $(ENVIRONMENT)
info: $(STAMP) ## Show what stands and how to reach it
	@$(GATEPOST) info $(ENVIRONMENT)

.PHONY: test test-full lint clean
test: $(DEV) ## Run the tests (those that boot machines need root)
	@$(BIN)/python -m pytest -m "not full" tests/unit tests/terraform tests/lab tests/mutants
test-full: $(DEV) ## Run all tests, also the long ones
	@$(BIN)/python -m pytest tests/unit tests/terraform tests/lab tests/mutants tests/bench
lint: $(DEV) ## Check style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy && PATH="$(CURDIR)/$(BIN):$$PATH" $(BIN)/ansible-lint --offline && $(BIN)/python -m gatepost.terraform fmt -check -recursive terraform
clean: ## Remove .venv and caches; environments stay
	rm -rf .venv .venv.lock .cache .mypy_cache .ruff_cache .pytest_cache .ansible dist
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: venv
venv: $(STAMP) ## Make the toolchain in .venv (the other targets do it when needed)

$(STAMP):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is missing or older than 3.11. Next: apt-get install python3 python3-venv (Debian 12 or later), or make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual environments. Next: apt-get install python3-venv" >&2; exit 2; }
	@echo "Making the toolchain in .venv from requirements.lock (PyPI, every file by its hash) …"
	@exec 9>.venv.lock && flock 9 && { test -e $@ || { rm -rf .venv && $(PYTHON) -m venv .venv && $(PIP) --require-hashes -r requirements.lock && $(PIP) --no-deps --no-build-isolation -e . && touch $@; }; } || { echo "The toolchain could not be made; the reason stands above. The next make starts afresh." >&2; exit 2; }

$(DEV): | $(STAMP)
	@echo "Adding the tools for tests and lint from requirements-dev.lock …"
	@exec 9>.venv.lock && flock 9 && { test -e $@ || { $(PIP) --require-hashes -r requirements-dev.lock && touch $@; }; }
