# Everything runs in the environment PYTHON belongs to; make PYTHON=.venv/bin/python test uses another one.
PYTHON ?= python
INTERPRETER := $(shell command -v $(PYTHON))

.PHONY: kernels sanitize check format test test-slow test-peers test-data bench targets

# Compiles csrc/ in place where it is newer than the library.
kernels:
	$(PYTHON) hatch_build.py

# Runs the kernels over buffers that end at a forbidden page, with sanitizers.
sanitize:
	$(PYTHON) hatch_build.py --program build/test_kernels --sanitize
	build/test_kernels

check:
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m ruff check .
	$(PYTHON) -m basedpyright --pythonpath $(INTERPRETER)

format:
	$(PYTHON) -m ruff format .
	$(PYTHON) -m ruff check --fix .

test:
	$(PYTHON) -m pytest -n 2

test-slow:
	$(PYTHON) -m pytest -n 2 -m "slow or (not data and not gpu and not peers)"

# Needs llama-cpp-python, transformers and gguf in the same environment; GEMSMITH_PEER_VLLM names the Python of one with vLLM.
test-peers:
	$(PYTHON) -m pytest -m peers

# GEMSMITH_DATA names the folder that holds the corpora.
test-data:
	$(PYTHON) -m pytest -m data

# GEMSMITH_BENCH_MODELS and GEMSMITH_PEER_* say where other programs and their models are (benchmarks/contestants.py).
bench:
	set -e; $(PYTHON) benchmarks/targets.py --commands | while read -r command; do $(PYTHON) benchmarks/$$command; done

targets:
	$(PYTHON) benchmarks/targets.py
