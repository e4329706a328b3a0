# make demo    the main job on real input, from nothing
# make up-secure  all processes on Apache Kafka and Redis with TLS, passwords and ACLs
# make test    the tests, from nothing, JOBS=4 files at a time
# make test-list  the tests' names
# make test-fast  the quick ones, without a server, JOBS=4 processes at a time
# make fuzz    a poison corpus through a real deployment, SEED=1, within SECONDS=600
# make soak    the live index under everything at once, for SECONDS=3600; every answer is checked
# make chaos   random faults by SEED=1 under RECORDS=20000 messages; an oracle checks what came out
# make mutants  changes guarded modules one place at a time: a test must notice each change
#               (MODULE=scan for one of them; SAMPLE=50 SEED=1 for so many of each)
# make bench   figures of speed and their targets, in about 20 minutes; ARGS="--only throughput"
# make bench-peers  the same texts through other software, each in an environment of its own
# make check   format, lint, types, directions of imports, the documentation's links
# make reference  docs/reference/ anew, from the code
# make docs    the documentation as a web site, in site/
# make screenshots  the pictures of the page in docs/images; ARGS="--url URL" of a node that runs
# make format  repair format and lint
# make clean   remove the environment and what the demo left
#
# On a machine with a GPU: make demo EXTRAS=gpu,embedded,demo,dev (after make clean).

PYTHON ?= python3
EXTRAS ?= cpu,embedded,demo,milvus-lite,dev
ARGS ?=
JOBS ?= 4
SEED ?= 1
RECORDS ?= 20000
MODULE ?=
SAMPLE ?= 0
VENV := .venv
BIN := $(VENV)/bin
SOURCES := braid braid/encoders braid/index braid/integrations braid/stream tests benchmarks docs examples
READY := $(VENV)/.ready-$(EXTRAS)

# With it each of some hundred processes compiles all of this anew.
unexport PYTHONDONTWRITEBYTECODE
export NO_MKDOCS_2_WARNING = 1

.PHONY: ready demo up-secure test test-list test-fast fuzz soak chaos mutants bench bench-peers screenshots check docs reference format clean

ready: $(READY)

demo: $(READY)
	$(BIN)/braid demo $(ARGS)

up-secure: $(READY)
	$(BIN)/braid up --secured $(ARGS)

test: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile --no-loadscope-reorder $(ARGS)

test-list: $(READY)
	$(BIN)/python -m pytest --collect-only -q

test-fast: $(READY)
	$(BIN)/python -m pytest -n $(JOBS) -m 'not (kafka or redis or browser or slow)' $(ARGS)

fuzz: SECONDS ?= 600
fuzz: $(READY)
	$(BIN)/python -m tests.fuzz.run --seed $(SEED) --seconds $(SECONDS) $(ARGS)

soak: SECONDS ?= 60
soak: $(READY)
	$(BIN)/python -m tests.index.soak --seconds $(SECONDS)

chaos: $(READY)
	$(BIN)/python -m tests.chaos --seed $(SEED) --records $(RECORDS) $(ARGS)

mutants: $(READY)
	$(BIN)/python -m tests.mutants $(addprefix --module ,$(MODULE)) --sample $(SAMPLE) --seed $(SEED) $(ARGS)

bench: $(READY)
	$(BIN)/python -m benchmarks $(ARGS)

bench-peers: $(READY)
	$(BIN)/python -m benchmarks.peers.compare $(ARGS)

screenshots: $(READY)
	$(BIN)/python docs/screenshots.py $(ARGS)

check: $(READY)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/mkdocs build --strict --quiet

docs: $(READY)
	$(BIN)/mkdocs build --strict

reference: $(READY)
	$(BIN)/python docs/generate.py

format: $(READY)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) .braid .pytest_cache .mypy_cache .ruff_cache .import_linter_cache site *.egg-info

# uv installs torch in seconds where pip takes a minute, and hard-links from its cache.
$(READY): $(BIN)/uv pyproject.toml
	$(BIN)/uv pip install --python $(BIN)/python --editable '.[$(EXTRAS)]'
	@touch $@

$(BIN)/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo 'Python 3.11 or newer is needed: make PYTHON=/path/to/python3.12 $(MAKECMDGOALS)'; exit 1; }
	@$(PYTHON) -c 'import ensurepip' 2>/dev/null || \
		{ echo '$(PYTHON) cannot make virtual environments; on Debian and Ubuntu: apt-get install python3-venv'; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
