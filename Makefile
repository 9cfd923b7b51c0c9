PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes
LOCK = $(BIN)/uv pip compile --quiet --universal --generate-hashes --fork-strategy fewest \
  --annotation-style line --custom-compile-command "make lock" $(LOCKFLAGS) pyproject.toml

# Of the equations, saving, streaming and the command line.
QUICK := test_mhd_reference or flipped_bit or streamed_run_that_was_cut or train_saves_resumes

.PHONY: demo test slow fuzz notebooks outputs trackers tpu docs browser extra lint wheel installed licences lock vendor newest clean

demo: $(VENV)/installed  ## The main job on real digits, in one to two minutes.
	$(BIN)/python -m experiments.quickstart

test: $(VENV)/installed  ## The test suite, in under ten minutes on two cores; ARGS=tests/... for a part of it.
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder \
	  -m "not slow and not notebooks and not trackers" $(ARGS)

slow: $(VENV)/installed  ## Longer forms of some tests, which the suite leaves out.
	$(BIN)/python -m pytest -n 2 --dist loadfile -m slow

fuzz: $(VENV)/installed  ## 10,000 made inputs of every kind: taken or refused, never anything else.
	$(BIN)/python -m tests.fuzzing --inputs=10000 --seed=0

notebooks: $(VENV)/extra  ## All notebooks, at toy size.
	$(BIN)/python -m pytest -n 2 -m notebooks tests/test_notebooks.py

outputs: $(VENV)/extra  ## What the notebooks for any machine print and draw, anew, at full size: 5 minutes.
	JAX_PLATFORMS=cpu $(BIN)/python .ci/notebooks.py \
	  $(foreach name,quickstart bring_your_own your_own_algorithm open_runs,experiments/notebooks/$(name).ipynb)

trackers: $(VENV)/extra  ## What TensorBoard, Weights & Biases and Optuna are given.
	$(BIN)/python -m pytest -m trackers tests/runs/test_trackers.py tests/cli/test_search.py

tpu: build/tpu/installed  ## What the TPU's compiler says of MHD's programs: it needs 0.7 GB, and no TPU.
	PYTHONPATH=build/tpu JAX_PLATFORMS=cpu $(BIN)/python -m pytest -n 0 -k "chips" tests/studies/test_plan.py

docs: $(VENV)/extra  ## The documentation as a site, in build/docs.
	$(BIN)/python -m sphinx --builder html --fresh-env --nitpicky --fail-on-warning --keep-going --quiet docs build/docs

browser: $(VENV)/extra  ## Reports in headless Chromium, which it installs where it may.
	@command -v chromium >/dev/null && command -v chromedriver >/dev/null || \
	  { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && apt-get update --quiet && \
	    apt-get install --yes --quiet --no-install-recommends chromium chromium-driver; } || \
	  { echo "The browser test needs chromium and chromedriver: on Debian, as root,"; \
	    echo "apt-get install chromium chromium-driver"; exit 1; }
	$(BIN)/python -m pytest -n 0 tests/browser

extra: $(VENV)/extra  ## What the documentation, the notebooks and the browser test need, and maintainers.

lint: $(VENV)/installed  ## Formatting, lint, types, and that imports point down.
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

wheel: $(VENV)/extra  ## The wheel and the source archive, in dist/, and what twine says of them.
	rm -rf build/lib dist
	$(BIN)/uv build --quiet --out-dir dist
	$(BIN)/uvx --quiet twine@7.0.0 check --strict dist/*.whl dist/*.tar.gz

installed: wheel  ## A new user's first session with the wheel, outside the clone; RECORD=docs/session.txt writes it.
	$(BIN)/python .ci/installed.py dist/*.whl $(if $(RECORD),--record=$(RECORD))

licences: $(VENV)/extra  ## Every installed package's licence is one that pyproject.toml allows.
	$(BIN)/pip-licenses --summary

lock: $(VENV)/extra  ## Requirements anew from pyproject.toml; LOCKFLAGS=--upgrade takes the newest versions.
	$(LOCK) --extra dev,tfds --output-file requirements.txt
	$(LOCK) --extra dev,tfds,docs,notebooks,browser,tensorboard,wandb,search,supply --constraint requirements.txt \
	  $$(sed -n 's/^\([^ #]*\)==.*/--no-emit-package \1/p' requirements.txt) \
	  --output-file requirements-extra.txt
	$(LOCK) --extra tpu --constraint requirements.txt \
	  $$(sed -n 's/^\([^ #]*\)==.*/--no-emit-package \1/p' requirements.txt) \
	  --output-file requirements-tpu.txt

vendor: $(VENV)/installed  ## The libraries that draw charts in pages, anew, as .ci/vendor/package-lock.json pins them; it needs npm.
	$(BIN)/python .ci/vendor.py

newest: $(VENV)/extra  ## A quick part of the suite with the newest versions that pyproject.toml allows.
	$(BIN)/uv venv --quiet --clear --python $(BIN)/python build/newest
	$(BIN)/uv pip install --quiet --python build/newest -r pyproject.toml --extra dev,tfds
	@echo "What the newest versions change in the tested set:"
	@$(BIN)/uv pip install --dry-run --upgrade -r pyproject.toml --extra dev,tfds 2>&1 | grep "^ " || echo " nothing"
	build/newest/bin/python -m pytest -n 0 -k "$(QUICK)" \
	  tests/algorithms/test_mhd_reference.py tests/runs/test_checkpoints.py tests/engine/test_stream.py tests/experiments/test_command_line.py

$(VENV)/installed: requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Python 3.11 or newer is needed; say which one: make PYTHON=python3.12 ..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) -r requirements.txt
	touch $@

$(VENV)/extra: requirements-extra.txt $(VENV)/installed
	$(INSTALL) -r requirements-extra.txt
	touch $@

build/tpu/installed: requirements-tpu.txt $(VENV)/installed
	$(INSTALL) --no-deps --upgrade --target build/tpu -r requirements-tpu.txt
	touch $@

clean:
	rm -rf $(VENV)
