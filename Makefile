# Everything works on a fresh machine with Python 3.11 or newer and a package registry; no other step.
PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
DEMO ?= demo
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: run test test-slow faults soak fuzz bench manual lint venv wheel clean

venv: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml constraints.txt
	@echo "setting up $(VENV): pip downloads torch, torchtitan, transformers and the tools; 2.4 GB on disk, more with a CUDA"
	@echo "build of torch; some minutes, depending on the network"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install $(if $(CI),--quiet) --constraint constraints.txt --editable '.[dev]'
	touch $@

# make run ROOT=/path watches a root; without ROOT it makes a small run of its own and converts it live.
run: venv
ifdef ROOT
	@exec $(BIN)/dcp2hfd run "$(ROOT)"
else
	@exec $(BIN)/python -P examples/demo.py "$(DEMO)"
endif

test: venv
	$(BIN)/python -m pytest -m "not slow" -n 2 --dist loadfile --no-loadscope-reorder

test-slow: venv
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup

# A soak: training and accidents against real daemons (docs/soak.md). SEED=N plays again what that seed plays.
STEPS ?= 200
soak: venv
	$(BIN)/python -m tests.robustness.soak --steps $(STEPS) $(if $(SEED),--seed $(SEED))

# Every call fails once and kill -9 at every point, in every place; faults in content too. Writes docs/survival.md.
faults: venv
	ALL_POINTS=1 WRITE_DOCS=1 $(BIN)/python -m pytest tests/robustness/calls tests/robustness/faults

# Thousands of mutated checkpoints, the same ones each time (make test tries 250). Writes docs/fuzzing.md.
TRIALS ?= 5000
fuzz: venv
	FUZZ_TRIALS=$(TRIALS) WRITE_DOCS=1 $(BIN)/python -m pytest tests/robustness/fuzz

# Against TorchTitan's own conversion and the floor, in one run: SIZE=1.7B, SHAPE=moe, DTYPE=bfloat16, ADAM=no, RUNS=N,
# LIMIT=BYTES (once more inside a memory control group; root). Nothing else should run.
SIZE ?= $(if $(filter moe,$(SHAPE)),moe-3b,0.6B)
DTYPE ?= $(if $(filter moe,$(SHAPE)),bfloat16,float32)
ADAM ?= $(if $(filter moe,$(SHAPE)),no,yes)
RUNS ?= 3
LIMIT ?= 0
bench: venv
	$(BIN)/python -m bench --size $(SIZE) --dtype $(DTYPE) $(if $(filter no,$(ADAM)),--no-adam) --runs $(RUNS) --limit $(LIMIT)

# Man pages and completion from the parsers and settings, into share/ (a test compares).
manual: venv
	$(BIN)/python -m manual

# A release, in dist/: the wheel and the versions of all that an installation brings. Needs pip, no virtual environment.
wheel:
	rm -rf build dist
	$(PYTHON) -m pip wheel --quiet --no-deps --wheel-dir dist .
	cp constraints.txt dist/

lint: venv
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache
