# Copyright 2026 The fosp_ros authors
# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` need Python 3.11 or newer, make and the package registries; each makes its own .venv.

PYTHON ?= python3
VENV ?= .venv
ROS ?= jazzy
OUT ?= out/demo
PYTEST_ARGS ?=
# Nothing leaves this machine; one thread a process (on two cores more of them steal from the control path).
export ROS_AUTOMATIC_DISCOVERY_RANGE ?= LOCALHOST
export OMP_NUM_THREADS ?= 1

.PHONY: help venv sim-gym dev demo test check coverage mutation clean

help:
	@echo 'make demo   20 + 20 + 20 simulated episodes through the ROS 2 graph with a fine-tune between; report in $(OUT)'
	@echo 'make test   the tests, by the command that colcon test runs'
	@echo 'make check  ruff'
	@echo 'make coverage   fosp_core/safety by branch, at least 95 %'
	@echo 'make mutation   mutants of fosp_core/safety, at least 90 % killed; some minutes, goes on where it ended'
	@echo 'make venv   the environment alone ($(VENV)); ROS=kilted takes the Kilted wheels'
	@echo 'make sim-gym  adds the tasks of Safety-Gymnasium to it (make test does)'
	@echo 'make clean  removes build, install, log, out and caches; the environment stays'

venv:
	@$(PYTHON) .ci/venv.py $(VENV) --ros $(ROS)

sim-gym:
	@$(PYTHON) .ci/venv.py $(VENV) --ros $(ROS) --sim-gym

demo: venv
	$(VENV)/bin/fosp demo --out $(OUT)

# Without Safety-Gymnasium (no network, say) its tests are skipped, and say so.
test: venv
	-@$(PYTHON) .ci/venv.py $(VENV) --ros $(ROS) --sim-gym
	$(VENV)/bin/python -m pytest $(PYTEST_ARGS)

check: venv
	$(VENV)/bin/ruff check .

# Tools that no user and no test needs.
dev: venv
	$(VENV)/bin/python -m pip install -qq coverage mutmut -c config/constraints.txt

coverage: dev
	@mkdir -p out
	$(VENV)/bin/python -m coverage run -m pytest -q test/core/test_safety_*.py test/core/test_audit*.py
	$(VENV)/bin/python -m coverage report

mutation: dev
	$(VENV)/bin/python .ci/mutation.py

clean:
	rm -rf build install log out .pytest_cache .hypothesis .ruff_cache *.egg-info
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +
