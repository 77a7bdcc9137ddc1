"""The whole pipeline with another model and other data than the demo's: a local checkpoint, and a folder of novels."""

import json
import math
from pathlib import Path

import pytest
import torch
import transformers

from ropewalk import load_extended
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json
from workspace import copy_project, run, write_overrides

pytestmark = [pytest.mark.slow, pytest.mark.timeout(2400)]


def test_the_pipeline_runs_with_a_local_checkpoint_on_novels(shared: Path, tmp_path: Path) -> None:
    project = copy_project(tmp_path / "project")
    model = shared / "data" / "models" / "babyllama-105-hf"
    # A quarter each, because 24 documents are few.
    shares = ["corpus.search_share=0.25", "corpus.test_share=0.25", "corpus.min_long_documents=2"]
    corpus = ["corpus=text", f"corpus.path={shared / 'data' / 'novels'}", *shares]
    write_overrides(project, "experiment=smoke", "model=hf", f"model.path={model}", "finetune.control=false", *corpus)
    completed = run(project, "dvc", "repro")
    assert completed.returncode == 0, completed.stdout
    base = read_json(project / "results/base.json")
    assert (base["path"], base["original_length"], base["rotary_dim"]) == (str(model), 256, 16)
    card = json.loads((project / "results/tokens/card.json").read_text())
    assert sum(card[split]["documents"] for split in ("train", "search", "test")) == 24
    perplexity = read_json(project / "results/metrics/evaluate.json")["perplexity"]
    # The two longest novels of the test split open with their title pages and tables of contents.
    plain = transformers.AutoModelForCausalLM.from_pretrained(model)
    beginnings = torch.from_numpy(TokenStore(project / "results/tokens/test").first_tokens(256, documents=2))
    with torch.no_grad():
        loss = float(plain(beginnings, labels=beginnings).loss)
    assert perplexity["base"]["none"]["256_all"] == pytest.approx(math.exp(loss), rel=1e-4)
    assert "control" not in perplexity
    assert perplexity["base"]["ours"]["2048_all"] < perplexity["base"]["none"]["2048_all"]
    extended = load_extended(project / "results" / "model")
    assert extended.config.max_position_embeddings == 4096
