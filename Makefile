# Every target sets up .venv by itself when it has to; a second call starts at once. PYTHON=python3.12 chooses the
# interpreter, ARGS="..." is handed to the program behind a target.
PY := .venv/bin/python
CXX_FILES = $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cuh' -o -name '*.cu')

.PHONY: demo test bench docs lint format package sanitize cuda-check gpu-check setup clean

demo: setup
	$(PY) tools/demo.py $(ARGS)

test: setup
	$(PY) -m pytest -n auto --maxprocesses 4 --dist loadfile $(ARGS)

bench: setup
	$(PY) tools/benchmark_loss.py --batch-sizes 1 2 4 8 16 32 64 --repeats 3 --out work_dirs/bench $(ARGS)

docs: setup
	@echo "[1/2] drawing the pictures (some seconds)"
	@$(PY) docs/drawing/pictures.py
	@echo "[2/2] writing the pages with Sphinx (half a minute)"
	@$(PY) -m sphinx -b html -W --keep-going -q $(ARGS) docs build/docs/html
	@echo "The site is in build/docs/html/index.html"

lint: setup
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	.venv/bin/clang-format --dry-run -Werror $(CXX_FILES)
	$(PY) -m mypy

format: setup
	$(PY) -m ruff check --fix-only .
	$(PY) -m ruff format .
	.venv/bin/clang-format -i $(CXX_FILES)

# Source distribution and wheel, checked, and installed into empty environments.
package: setup
	@$(PY) -c 'import build, twine' 2>/dev/null || $(PY) -m pip install -q -r requirements/package.txt
	scripts/package_check.sh $(ARGS)

# The compiled operators under AddressSanitizer and UndefinedBehaviorSanitizer.
sanitize: setup
	scripts/sanitize.sh $(ARGS)

# Every CUDA source for every architecture that nvcc knows; needs no GPU.
cuda-check:
	scripts/cuda_check.sh

# Build, tests, sanitizers and figures on a machine with a GPU; needs no mm package and no .venv. PYTHON chooses the
# interpreter, ARGS the folder for the results.
gpu-check:
	scripts/gpu_check.sh $(ARGS)

setup:
	@scripts/setup.sh

clean:
	rm -rf build dist plugin/*.egg-info plugin/raggedbev/*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f .venv/.raggedbev/raggedbev
	find . -path ./.venv -prune -o -name __pycache__ -type d -exec rm -rf {} +
