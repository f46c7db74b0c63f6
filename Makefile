# The two commands of the README, and what CI runs. Everything is installed into .venv, nothing elsewhere.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
OUTPUT ?= runs/demo
WEB := sample_apps/web

.PHONY: demo site test test-slow test-docs test-tensorflow test-coreai test-web test-apps lint format clean runtimes runtime-x86-sparse runtime-arm64 runtime-browser

demo: $(VENV)/installed
	$(BIN)/python recipes/mobilenet_v3_small.py --output $(OUTPUT)

# The documentation, in build/docs/site: a broken link fails it.
site: $(VENV)/docs
	$(BIN)/python docs/site.py

# Its commands and code, the built pages, and the notebooks from top to bottom.
test-docs: $(VENV)/docs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/test_docs.py tests/test_notebooks.py -m "slow or not slow"

$(VENV)/docs: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,docs]'
	@touch $@

# Two processes of one thread each.
test: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup

# What the tests above check on one model, checked on many; what takes minutes.
test-slow: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadgroup -m "slow and not coreai"

# With an extra of 570 MB: TensorFlow's own interpreter as a second opinion on the files, and Keras models.
test-tensorflow: $(VENV)/tensorflow
	$(BIN)/python -m pytest -m tensorflow

$(VENV)/tensorflow: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,tensorflow]'
	@touch $@

# With Apple's Core AI packages: its files written, read back and run by Apple's own runtime.
test-coreai: $(VENV)/coreai
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "coreai and not slow"

$(VENV)/coreai: $(VENV)/installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,coreai]'
	@touch $@

# Where edgeprune bench and verify run LiteRT besides this machine's own processor: emulators.
runtimes: runtime-x86-sparse runtime-arm64 runtime-browser

runtime-x86-sparse runtime-arm64: runtime-%: $(VENV)/installed
	$(BIN)/python -m converters.runtimes.prepare $*

# LiteRT.js and the page around it, which any browser shows; bench and verify run it in Chromium.
runtime-browser:
	@command -v node > /dev/null && command -v npm > /dev/null || { echo "Node.js is not installed: install version 20 or later, with npm (https://nodejs.org; Debian: apt-get install nodejs npm)" >&2; exit 2; }
	cd $(WEB) && npm ci --no-audit --no-fund && npm run --silent bundle
	@cd $(WEB) && node browser.mjs

test-web: runtime-browser $(VENV)/installed
	rm -rf $(WEB)/build
	$(BIN)/python $(WEB)/test/make_run.py $(WEB)/build/run
	$(BIN)/python sample_apps/vectors/write_vectors.py $(WEB)/build $(WEB)/build/run/files/*.tflite $(WEB)/build/told.tflite \
	    --images $(WEB)/build/run/*.png
	cd $(WEB) && EDGEPRUNE_VECTORS=build/vectors.json npm test

# What the apps for phones do without a phone's framework, against the same vectors: on a JVM (Java 17; the Kotlin
# compiler comes from npm), and in Swift where there is a compiler.
test-apps: $(VENV)/installed
	rm -rf sample_apps/vectors/build
	$(BIN)/python $(WEB)/test/make_run.py sample_apps/vectors/build/run
	$(BIN)/python sample_apps/vectors/write_vectors.py sample_apps/vectors/build sample_apps/vectors/build/run/files/*.tflite \
	    sample_apps/vectors/build/told.tflite --images sample_apps/vectors/build/run/*.png
	cd sample_apps/vectors && npm ci --no-audit --no-fund && node run.mjs build/vectors.json

lint: $(VENV)/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

format: $(VENV)/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Touched last: an installation that was stopped is done again.
$(VENV)/installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 10) <= v <= (3, 13) else "Python 3.10 to 3.13 is needed, this is %d.%d: make PYTHON=python3.11 ..." % v)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade --constraint constraints.txt --editable '.[dev]'
	@touch $@

clean:
	rm -rf $(VENV) .runtimes runs build sample_apps/vectors/build .mypy_cache .ruff_cache .pytest_cache
