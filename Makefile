PYTHON ?= python3
export PATH := $(CURDIR)/.venv/bin:$(PATH)
.PHONY: install demo test test-numeric llama test-slow docs ui lint walker bench-demo bench-walker bench-corpus bench-search bench-finetune bench-evaluate bench-plan bench-gpu smollm2 clean
install: .venv/installed
.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv && pip install --quiet --constraint constraints.txt --editable '.[dev]' && rm -f resolved.yaml && touch $@
demo: install
	dvc repro && python -m ropewalk.evaluate.summary
test: install
	OMP_NUM_THREADS=1 python -m pytest -n auto --dist loadfile
test-numeric: install
	for isa in "default SSE41 2" "avx2 AVX2 1"; do set -- $$isa; ATEN_CPU_CAPABILITY=$$1 ONEDNN_MAX_CPU_ISA=$$2 OMP_NUM_THREADS=$$3 OMP_WAIT_POLICY=passive python -m pytest -n auto --dist loadfile -m 'numeric and not slow' || exit 1; done
llama: install
	timeout 1800 python tests/llama_build.py
test-slow: llama
	OMP_NUM_THREADS=1 python -m pytest -m slow -n auto --dist loadfile
docs: install
	pip install --quiet --constraint constraints.txt --editable '.[docs]' && mkdocs build --strict
ui: install
	python -m ropewalk.run_table
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
bench-gpu: install
	python benchmarks/gpu/run.py
smollm2: install
	python benchmarks/smollm2/run.py
bench-finetune: install
	python benchmarks/finetune/run.py && python benchmarks/finetune/quality.py
clean:
	rm -rf .venv resolved.yaml results work outputs multirun site
