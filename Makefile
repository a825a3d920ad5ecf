# `make help` lists the targets. Everything runs in .venv, which `make install` builds from requirements/$(DEVICE).lock.

# cpu or cuda. Unless said, what .venv was built for, so that `make test` keeps a CUDA environment.
DEVICE ?= $(patsubst .venv/.installed-%,%,$(firstword $(wildcard .venv/.installed-*) .venv/.installed-cpu))
PYTHON ?=
RUN := .venv/bin/python -m
STAMP := .venv/.installed-$(DEVICE)
# Where `make ui` looks for runs.
STORE ?= sqlite:///mlflow.db
MLFLOW := $(shell sed -n 's/^mlflow-skinny==//p' requirements/cpu.lock)

ifeq ($(filter cpu cuda,$(DEVICE)),)
$(error DEVICE=$(DEVICE): it is cpu or cuda)
endif

.DEFAULT_GOAL := help
.PHONY: help install report test test-native-asan lint types ui clean

help: ## list the targets
	@awk -F ': .*## |:.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' Makefile

install: $(STAMP) ## set up .venv (DEVICE=cpu or cuda, PYTHON=/path/to/python3); a second call installs nothing

KERNELS := $(addprefix recsys_embed/native/,kernels.cpp interface.h rows.h pairs.h)

$(STAMP): requirements/$(DEVICE).lock requirements/install.sh requirements/fbgemm_gpu_shim/pyproject.toml pyproject.toml \
    $(KERNELS)
	@PYTHON="$(PYTHON)" requirements/install.sh "$(DEVICE)"

report: install ## run the compression report on planted data; the last line is the path of the page
	@$(RUN) recsys_embed report --planted --out report-planted

test: install ## run the tests, a process a core
	@$(RUN) pytest -n auto --dist loadfile --no-loadscope-reorder

# The sanitizers' library must be there before Python is, and C++'s for the exceptions that torch throws. Python and torch
# leak on purpose.
SANITIZED := build/kernels_sanitized.so
test-native-asan: install $(SANITIZED) ## run the tests of the kernels under AddressSanitizer and UBSan
	@RECSYS_EMBED_KERNELS=$(SANITIZED) LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=print_stacktrace=1 \
	    $(RUN) pytest -n0 -q tests/tables/test_native*.py tests/models/test_pairs.py

$(SANITIZED): $(KERNELS)
	@mkdir -p build
	@$(CXX) -std=c++17 -O1 -g -Wall -Wextra -Werror -ffp-contract=off -fno-math-errno -fno-trapping-math -fPIC -shared \
	    -fsanitize=address,undefined -fno-sanitize-recover=all -o $@ $<

lint: install ## ruff: rules and format
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .

types: install ## mypy, strict for the package
	@$(RUN) mypy

# The server is in the full MLflow, which wants an older pyarrow than ours: it gets an environment of its own.
ui: install .venv-ui/.installed-$(MLFLOW) ## browse the runs in STORE (sqlite:///mlflow.db) in the MLflow UI
	@.venv-ui/bin/mlflow ui --backend-store-uri "$(STORE)"

.venv-ui/.installed-$(MLFLOW):
	@echo "set-up: mlflow $(MLFLOW), for its server alone, in .venv-ui"
	@.venv/bin/python -m venv --clear .venv-ui
	@.venv-ui/bin/python -m pip install --quiet --disable-pip-version-check "mlflow==$(MLFLOW)"
	@touch $@

clean: ## remove what was built, but no data, runs or reports
	rm -rf .venv .venv-ui build recsys_embed.egg-info requirements/fbgemm_gpu_shim/build \
	    requirements/fbgemm_gpu_shim/*.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
