# Two commands do everything: `make demo` and `make test`. The first run creates .venv and installs into it; a later one
# starts at once, until pyproject.toml, constraints.txt or the kernels change. `make help` lists the rest.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --constraint constraints.txt $(if $(CI),--quiet)
DEMO_ARGS ?=
PEER_DRAWS ?= 80
BENCH_ARGS ?=
BENCH := -W ignore -m benchmarks.speed
KERNELS := $(wildcard gradscope/kernels/*.[ch])
SMOKE := $(VENV)/smoke
SANITIZED := $(VENV)/sanitized
CC := gcc
FOREIGN ?= $(VENV)/foreign
SIMULATED := $(abspath $(VENV))/simulated.so
DEVICE ?= $(SIMULATED)
TEST_ARGS ?= --numprocesses auto --maxprocesses 8

.DEFAULT_GOAL := help
.PHONY: help demo test sanitize test-peers test-families test-trainers test-scripts test-devices lint format types contract examples readme picture build bench bench-smoke bench-gpu check clean

help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1|/p' $(MAKEFILE_LIST) | while IFS='|' read -r target what; do printf '  make %-14s %s\n' "$$target" "$$what"; done

demo: $(VENV)/.demo-installed ## train on real data and print the report  (DEMO_ARGS="--task text")
	@$(BIN)/gradscope demo $(DEMO_ARGS)

test: $(VENV)/.dev-installed ## run the tests  (TEST_ARGS="-k accumulator")
	$(BIN)/python -m pytest $(TEST_ARGS)

test-peers: $(VENV)/.dev-installed ## the layers and shapes that Opacus and BackPACK test, more of them  (PEER_DRAWS=200)
	GRADSCOPE_PEER_DRAWS=$(PEER_DRAWS) $(BIN)/python -m pytest tests/peers $(TEST_ARGS)

test-families: $(VENV)/.families-installed ## the models of docs/families.md, those of transformers and peft included
	$(BIN)/python -m pytest tests/families $(TEST_ARGS)

test-trainers: $(VENV)/.trainers-installed ## Lightning, transformers, Accelerate and experiment trackers, the real ones
	$(BIN)/python -m pytest tests/integrations $(TEST_ARGS)

test-scripts: $(VENV)/.dev-installed ## unmodified training scripts of others under gradscope run, fetched if need be  (FOREIGN=folder)
	$(PIP) --group scripts
	@test -d $(FOREIGN)/nanoGPT || git clone --quiet --depth 1 https://github.com/karpathy/nanoGPT $(FOREIGN)/nanoGPT
	@test -d $(FOREIGN)/examples || git clone --quiet --depth 1 https://github.com/pytorch/examples $(FOREIGN)/examples
	GRADSCOPE_FOREIGN=$(abspath $(FOREIGN)) $(BIN)/python -m pytest tests/run/test_foreign_scripts.py

test-devices: $(VENV)/.dev-installed ## another device than the processor: a simulated one, or a real one  (DEVICE=cuda, DEVICE=mps)
	@test "$(DEVICE)" != "$(SIMULATED)" || $(MAKE) --no-print-directory $(SIMULATED)
	GRADSCOPE_DEVICE=$(DEVICE) $(BIN)/python -m pytest tests/devices $(TEST_ARGS)

$(SIMULATED): tests/devices/simulated/device.cpp $(VENV)/.dev-installed
	$(BIN)/python tests/devices/simulated/build.py $@

sanitize: $(VENV)/.dev-installed ## the compiled kernels, built so that each read and write beyond its memory ends the run
	@if ! command -v $(CC) > /dev/null; then echo "no $(CC) here, so there are no kernels"; else set -e; \
	rm -rf $(SANITIZED); mkdir -p $(SANITIZED); cp -r gradscope $(SANITIZED); \
	$(CC) -shared -fPIC -std=gnu11 -O2 -g -fopenmp -fsanitize=address \
		-I$$($(BIN)/python -c "import sysconfig; print(sysconfig.get_paths()['include'])") \
		gradscope/kernels/kernels.c -o $(SANITIZED)/gradscope/kernels/_kernels.abi3.so; \
	LD_PRELOAD=$$($(CC) -print-file-name=libasan.so) ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=$(SANITIZED) \
		$(BIN)/pytest tests/kernels; fi

lint: $(VENV)/.dev-installed ## style: ruff check and ruff format --check
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(VENV)/.dev-installed ## rewrite the files in the house style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(VENV)/.dev-installed ## mypy --strict
	$(BIN)/mypy --strict

contract: $(VENV)/.dev-installed ## which part may import which (setup.cfg)
	$(BIN)/lint-imports --no-logo

examples: $(VENV)/.dev-installed ## run every example
	@for example in examples/*.py; do echo "== $$example"; $(BIN)/python "$$example" || exit 1; done

readme: $(VENV)/.dev-installed ## run what the README and CONTRIBUTING show
	$(BIN)/python -m pytest tests/test_readme.py

picture: $(VENV)/.dev-installed ## draw docs/report.svg, the README's picture, from a real run
	$(BIN)/gradscope demo --task text --seed 0 --log $(VENV)/picture.jsonl
	$(BIN)/gradscope report $(VENV)/picture.jsonl --svg docs/report.svg --width 90

build: $(VENV)/.dev-installed ## build wheel and sdist, install the wheel into a clean environment
	$(BIN)/python .ci/build.py

bench: $(VENV)/.bench-installed ## a plain step against every tool, two hours; writes docs/speed.md  (BENCH_ARGS="--models mlp")
	$(BIN)/python $(BENCH) all $(BENCH_ARGS)
	$(BIN)/python $(BENCH) write

bench-smoke: $(VENV)/.bench-installed ## the same on tiny shapes: shows that it runs, and that figures are right
	@rm -rf $(SMOKE) && mkdir -p $(SMOKE)
	$(BIN)/python $(BENCH) time --model mlp,3c3d,resnet,gpt,wide,depthwise,lstm,bert --tiny --threads 1 --rounds 1 --results $(SMOKE)/lines
	$(BIN)/python $(BENCH) memory --model mlp --tools plain,scope --tiny --threads 1 --results $(SMOKE)/lines
	$(BIN)/python $(BENCH) growth --axis gpt-length --tiny --threads 1 --rounds 1 --results $(SMOKE)/lines
	$(BIN)/python $(BENCH) write --results $(SMOKE)/lines --document $(SMOKE)/speed.md

bench-gpu: $(VENV)/.bench-installed ## the same on CUDA, GPT-2 and ResNet-50 too; writes docs/speed-gpu.md
	$(BIN)/python $(BENCH) all --device cuda --models all $(BENCH_ARGS)
	$(BIN)/python $(BENCH) write --device cuda --document docs/speed-gpu.md

check: test lint types contract examples readme ## what CI runs

clean: ## remove the environment and everything that was built
	rm -rf gradscope/kernels/*.so $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache

$(VENV)/.created: constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 10) else "gradscope needs Python 3.10 or newer; $(PYTHON) is %d.%d. Name a newer one: make PYTHON=python3.12 demo" % sys.version_info[:2])'
	@echo "Creating $(VENV) and installing into it: a few minutes, once."
	$(PYTHON) -m venv $(VENV)
	$(PIP) --upgrade pip
	@touch $@

$(VENV)/.demo-installed: pyproject.toml setup.py $(KERNELS) $(VENV)/.created
	$(PIP) --editable '.[demo]'
	@touch $@

$(VENV)/.dev-installed: pyproject.toml setup.py $(KERNELS) $(VENV)/.created
	$(PIP) --editable '.[demo]' --group dev
	@touch $(VENV)/.demo-installed $@

$(VENV)/.families-installed: $(VENV)/.dev-installed
	$(PIP) --group families
	@touch $@

$(VENV)/.trainers-installed: $(VENV)/.dev-installed
	$(PIP) --group trainers
	@touch $@

$(VENV)/.bench-installed: $(VENV)/.dev-installed
	$(PIP) --group bench
	$(PIP) --no-deps backpack-for-pytorch
	@touch $@
