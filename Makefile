PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
.PHONY: install demo test llama test-slow docs ui lint walker bench-demo bench-walker bench-corpus bench-search bench-finetune bench-evaluate bench-plan clean
install: .venv/installed
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && pip install --quiet --constraint constraints.txt --editable '.[dev]' && rm -f resolved.yaml && touch $@
demo: install
	dvc repro && python -m ropewalk.evaluate.summary
test: install
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile
llama: install
	timeout 1800 python tests/llama_build.py
test-slow: llama
	python -m pytest -m slow
docs: install
	pip install --quiet --constraint constraints.txt --editable '.[docs]' && mkdocs build --strict
ui: install
	mlflow ui --host 127.0.0.1 --port 5000 --backend-store-uri "$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}"
lint: install
	ruff check . && ruff format --check . && mypy && lint-imports && python -m pre_commit validate-config
walker: install
	python pipelines/walker.py work=work
bench-demo: install
	python benchmarks/demo/run.py
bench-walker: install
	python benchmarks/walker/run.py
bench-corpus: install
	python benchmarks/corpus/run.py
bench-search: install
	python benchmarks/search/run.py
bench-evaluate: install
	python benchmarks/evaluate/run.py
bench-plan: install
	python benchmarks/plan/run.py
bench-finetune: install
	python benchmarks/finetune/run.py && python benchmarks/finetune/quality.py
clean:
	rm -rf .venv resolved.yaml results work outputs multirun site
