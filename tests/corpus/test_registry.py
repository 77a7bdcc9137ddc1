"""A source is one entry, ours or another package's; all that lists or reads sources derives from it."""

import subprocess
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from ropewalk.config import CorpusConfig, SourceConfig
from ropewalk.corpus import prepare as prepare_module
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.registry import SOURCES, Source
from ropewalk.corpus.sources import find_shards, fingerprint
from ropewalk.corpus.store import TokenStore
from ropewalk.registry import resolved
from workspace import ROOT, environment

PLUGIN = '''
"""A made-up source: one document for each paragraph of a file."""

from pathlib import Path

from ropewalk.corpus.documents import Document
from ropewalk.corpus.registry import Source
from ropewalk.corpus.shards import Shard


def shards(config, *, folder, downloads):
    return [Shard(str(path), "paragraphs:rows", path.stat().st_size) for path in sorted(Path(config.path).iterdir())]


def rows(shard, *, first, lines):
    path = Path(shard.path)
    for number, text in enumerate(path.read_text().split("\\n\\n"), start=1):
        if number >= first:
            yield number, Document(f"{path.name}#{number}", "paragraphs", text, path.name)


SOURCE = Source("paragraphs", shards, required={"path": "must be a folder"})
'''


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    """A folder for sys.path in which a package with a source of its own is installed, as pip would leave it."""
    folder = tmp_path / "site"
    information = folder / "paragraphs-1.0.dist-info"
    information.mkdir(parents=True)
    (folder / "paragraphs.py").write_text(PLUGIN)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: paragraphs\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[ropewalk.sources]\nparagraphs = paragraphs:SOURCE\n")
    return folder


@pytest.fixture
def texts(tmp_path: Path) -> Path:
    """Forty files of three paragraphs each."""
    folder = tmp_path / "texts"
    folder.mkdir()
    for number in range(40):
        (folder / f"{number:02}").write_text("\n\n".join(f"{number} {part} " * 1500 for part in "abc"))
    return folder


@pytest.fixture(autouse=True)
def _restored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SOURCES, "_entries", dict(SOURCES))


def test_a_source_of_another_package_is_prepared_by_name(plugin: Path, texts: Path, scratch: Path) -> None:
    variables = environment(ROOT)
    command = [sys.executable, str(ROOT / "pipelines" / "prepare.py"), "experiment=smoke", "corpus=text"]
    command += ["corpus.name=paragraphs", "corpus.long_tokens=4096", "corpus.min_long_documents=2", "output=results"]
    for path, code in (("", 1), (str(texts), 0)):
        result = subprocess.run(
            [*command, f"corpus.path={path}"],
            env={**variables, "PYTHONPATH": f"{variables['PYTHONPATH']}:{plugin}"},
            cwd=scratch,
            text=True,
            capture_output=True,
            check=False,
        )
        assert result.returncode == code, result.stderr
        assert code == 0 or "corpus.path must be a folder when corpus.name is paragraphs" in result.stderr
    stores = [TokenStore(scratch / "results" / "tokens" / split) for split in ("train", "search", "test")]
    assert sum(map(len, stores)) == 120
    assert {subset for store in stores for subset in store.subsets} == {"paragraphs"}


def test_a_source_registered_here_is_read_by_worker_processes_too(
    plugin: Path, texts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(plugin)
    from paragraphs import SOURCE

    SOURCES.register(SOURCE)
    monkeypatch.setattr(prepare_module, "_WORTH_A_WORKER", 0)
    source = SourceConfig(name="paragraphs", path=str(texts))
    config = CorpusConfig(
        name="mixture", sources={"made_up": source}, salt="", min_long_documents=0, long_tokens=1000, workers=2
    )
    (tmp_path / "state").mkdir()
    card = prepare_shards(
        find_shards(config, folder=tmp_path, downloads=tmp_path),
        config=config,
        tokenizer=AutoTokenizer.from_pretrained(ROOT / "models" / "walker"),
        state=tmp_path / "state",
        folder=tmp_path / "tokens",
    )
    assert sum(card[split]["documents"] for split in ("train", "search", "test")) == 120
    assert set(card["train"]["tokens_by_subset"]) == {"made_up/paragraphs"}
    assert fingerprint(config) == "made_up: listing None"


def test_two_sources_of_one_name_are_refused() -> None:
    SOURCES.register(SOURCES["text"])
    with pytest.raises(ValueError, match="the name text is registered already; give the new entry another name"):
        SOURCES.register(Source("text", "mine:shards"))


def test_what_may_be_chosen_is_known_without_torch_or_any_reader() -> None:
    code = (
        "import sys; from ropewalk.corpus.registry import SOURCES; print(*SOURCES); "
        "assert not {'torch', 'fsspec', 'ropewalk.corpus.sources', 'ropewalk.corpus.shards'} & set(sys.modules)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], env=environment(ROOT), text=True, capture_output=True, check=False
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == ["stdlib", "jsonl", "text", "redpajama_v1", "redpajama_sample", "redpajama_v2"]


@pytest.mark.parametrize("name", list(SOURCES))
def test_functions_of_a_source_can_be_imported_and_its_required_keys_exist(name: str) -> None:
    source = SOURCES[name]
    assert callable(resolved(source.shards))
    assert callable(resolved(source.fingerprint))
    assert all(hasattr(SourceConfig(), key) for key in source.required)
