"""Speed and memory of `prepare` (`make bench-corpus`): against bare libraries, datatrove, datasketch and HF datasets.

Rates are per second of processor time of all threads and processes together, which other programs on the machine
disturb little; ``wall_s`` is what the clock said. Text is genuine rows of RedPajama-V1 from ../shared, or
ROPEWALK_SHARED, again and again under names of their own. The 5 GB input is read, compared for copies and what is
left of it tokenised; speed of tokenising is in rows of its own.

``--mib 200`` takes less text than the 5 GB of the committed figures, ``--cases reading long`` these rows alone. Rows
that are measured lie in work/bench-corpus, so the same command resumes where it was stopped; results.json is written
when all are there. A reference whose package is not installed is left out (``pip install '.[bench-corpus]'``).
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import orjson
import zstandard
from tokenizers import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from record import write_results
from ropewalk.corpus import minhash
from ropewalk.corpus.documents import Document
from ropewalk.corpus.parts import ReadSettings
from ropewalk.corpus.segments import Segments
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.split import split_of
from ropewalk.corpus.store import TokenStore
from ropewalk.corpus.tokenise import encoder
from ropewalk.corpus.words import BLOCK_BYTES
from ropewalk.files import read_json, write_json

FOLDER = Path("work/bench-corpus")
TOKENIZER = "models/walker/tokenizer.json"
Rows = list[dict[str, Any]]
PREPARE = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from ropewalk.config import CorpusConfig
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.sources import find_shards
config = CorpusConfig(name="jsonl", path=sys.argv[1], salt="", min_long_documents=0, long_tokens=16384, min_tokens=16,
                      exact_duplicates=sys.argv[3] == "compared")
folder = Path(sys.argv[2])
shards = find_shards(config, folder=folder, downloads=folder)
prepare_shards(shards, config=config, tokenizer=AutoTokenizer.from_pretrained("models/walker"),
               state=folder / "state", folder=folder / "tokens")
"""
DATASETS = """
import sys
from datasets import load_dataset
from transformers import AutoTokenizer
tokenizer = AutoTokenizer.from_pretrained("models/walker")
rows = load_dataset("json", data_files=sys.argv[1], split="train", cache_dir=sys.argv[2]).select_columns(["text"])
rows = rows.filter(lambda row: len(row["text"]) >= 16, num_proc=int(sys.argv[3]))
rows = rows.map(lambda batch: {"ids": tokenizer(batch["text"], add_special_tokens=False)["input_ids"]},
                batched=True, remove_columns=["text"], num_proc=int(sys.argv[3]))
rows.filter(lambda row: len(row["ids"]) >= 16, num_proc=int(sys.argv[3])).save_to_disk(sys.argv[2] + "/saved")
"""


def genuine_rows() -> list[dict[str, Any]]:
    shared = Path(os.environ.get("ROPEWALK_SHARED") or "../shared") / "data" / "redpajama_v1"
    paths = sorted(shared.glob("*/*.jsonl"))
    if not paths:
        sys.exit(f"no rows of RedPajama-V1 in {shared}; set ROPEWALK_SHARED to the folder that holds data/")
    rows = [orjson.loads(line) for path in paths for line in path.read_bytes().splitlines()]
    return [row for row in rows if row["text"].strip()]


def write_input(path: Path, size: int) -> None:
    """JSON lines of ``size`` bytes before compression."""
    rows, written, copy = genuine_rows(), 0, 0
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=3).stream_writer(raw) as out:
        while written < size:
            for number, row in enumerate(rows):
                line = orjson.dumps({"text": row["text"], "meta": {"url": f"copy-{copy}/{number}"}}) + b"\n"
                out.write(line)
                written += len(line)
                if written >= size:
                    break
            copy += 1


def seconds(*works: Callable[[], Any], least: int = 3) -> list[float]:
    """Seconds of processor time of each, the best of some runs in turn."""
    times: list[list[float]] = [[] for _ in works]
    for _ in range(least):
        for own, work in zip(times, works, strict=True):
            begun = time.process_time()
            work()
            own.append(time.process_time() - begun)
    return [min(own) for own in times]


@dataclass(frozen=True)
class Run:
    """A script's cost: it and all processes below it together."""

    seconds: float
    """Processor time in seconds."""
    wall_s: float
    peak_mib: int
    """Largest resident memory."""


def measured(code: str, *arguments: object) -> Run:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.DEVNULL)
    peak, begun, stop = 0, time.perf_counter(), threading.Event()
    while process.poll() is None:
        peak = max(peak, sum(resident_kib(pid) for pid in family(process.pid)))
        stop.wait(0.5)
    if process.returncode:
        sys.exit(f"a measured script failed with exit code {process.returncode}:\n{code}")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Run(used, time.perf_counter() - begun, peak // 1024)


def family(pid: int) -> Iterator[int]:
    yield pid
    try:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            for child in (thread / "children").read_text().split():
                yield from family(int(child))
    except OSError:
        return


def resident_kib(pid: int) -> int:
    """Memory that is a process's own share: pages of libraries that several map are divided among them."""
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) for line in lines if line.startswith("Pss:")), 0)


def row(case: str, size: int, ours: float, reference: float | None, **more: Any) -> dict[str, Any]:
    mine = size / 1e6 / ours
    theirs = None if reference is None else size / 1e6 / reference
    rates = {"ours_mb_per_s": mine, "reference_mb_per_s": theirs, "ratio": theirs and mine / theirs}
    print(f"{case}: {mine:.1f} MB/s" + (f", reference {theirs:.1f}" if theirs else ""), more, flush=True)
    return {"case": case, **rates, "peak_mib": None, **more}


def tokenising() -> Rows:
    """Every fifth genuine row, as one batch."""
    texts = [str(own["text"]) for own in genuine_rows()[::5]]
    tokenizer = Tokenizer.from_file(TOKENIZER)
    encode = encoder(tokenizer)
    size = sum(len(text.encode()) for text in texts)
    ours, theirs = seconds(lambda: encode(texts), lambda: tokenizer.encode_batch(texts, add_special_tokens=False))
    return [row("tokenising, against encode_batch", size, ours, theirs, min_ratio=0.85)]


def reading(folder: Path) -> Rows:
    """Bytes of JSON lines read, parsed and filtered in one process."""
    path = folder / "input.jsonl.zst"
    write_input(path, 50 << 20)
    size = sum(len(chunk) for chunk in chunks(path))
    rules, split = ReadSettings(min_tokens=16), partial(split_of, search_share=0.15, test_share=0.15, salt="")

    def ours() -> int:
        kept = 0
        for _, found in Shard(str(path)).rows():
            if isinstance(found, Document) and len(found.text) >= rules.min_bytes(found.subset):
                kept += split(found.group) == "train"
        return kept

    def bare() -> int:
        count, rest = 0, b""
        for chunk in chunks(path):
            *lines, rest = (rest + chunk).split(b"\n")
            count += sum(1 for line in lines if orjson.loads(line))
        return count

    mine, theirs = seconds(ours, bare, least=7)
    found = [row("reading and filtering, against decompression and orjson", size, mine, theirs, min_ratio=0.6)]
    if find_spec("datatrove"):
        from datatrove.pipeline.readers import JsonlReader

        reader = JsonlReader(str(path.parent), glob_pattern=path.name, compression="zstd")
        [theirs] = seconds(lambda: sum(1 for _ in reader.run()))
        found.append(row("reading, against datatrove", size, mine, theirs))
    return found


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as source:
        while chunk := source.read(1 << 20):
            yield chunk


def near_duplicates() -> Rows:
    texts = [str(own["text"]) for own in genuine_rows()]
    data = [text.encode() for text in texts]

    def ours() -> None:
        batch: list[bytes] = []
        for text in data:
            if len(text) >= BLOCK_BYTES // 2:
                minhash.long_signature([text])
                continue
            if sum(map(len, batch)) + len(batch) + len(text) > BLOCK_BYTES:
                minhash.signatures(batch)
                batch = []
            batch.append(text)
        minhash.signatures(batch)

    [mine] = seconds(ours, least=2)
    size = sum(map(len, data))
    if not find_spec("datasketch"):
        return [row("signatures for near-duplicates", size, mine, None)]
    from datasketch import MinHash

    some = texts[::20]

    def theirs() -> None:
        for text in some:
            words = text.split()
            grams = [" ".join(words[at : at + 5]).encode() for at in range(max(1, len(words) - 4))]
            MinHash(num_perm=112).update_batch(grams)

    [reference] = seconds(theirs, least=1)
    share = size / sum(len(text.encode()) for text in some)
    return [row("signatures for near-duplicates, against datasketch", size, mine, reference * share)]


def prepared(folder: Path, path: Path, *, compared: bool) -> Run:
    shutil.rmtree(folder / "run", ignore_errors=True)
    (folder / "run").mkdir()
    return measured(PREPARE, path, folder / "run", "compared" if compared else "")


def against_datasets(folder: Path, mib: int) -> Rows:
    """The stage's work, against load, filter, map and save of HF datasets where that is installed."""
    path = folder / "input.jsonl.zst"
    write_input(path, mib << 20)
    ours = prepared(folder, path, compared=False)
    more = {"peak_mib": ours.peak_mib, "max_mib": 1024, "wall_s": ours.wall_s}
    found = [first_batch(folder / "run" / "tokens" / "train")]
    if not find_spec("datasets"):
        return [row(f"prepare on {mib} MiB", mib << 20, ours.seconds, None, **more), *found]
    theirs = measured(DATASETS, path, folder / "datasets", len(os.sched_getaffinity(0)))
    more |= {"reference_peak_mib": theirs.peak_mib, "reference_wall_s": theirs.wall_s, "min_ratio": 1.0}
    case = f"prepare on {mib} MiB, against HF datasets"
    return [row(case, mib << 20, ours.seconds, theirs.seconds, **more), *found]


def first_batch(store: Path) -> dict[str, Any]:
    """From opening a store to the first rows of training."""

    def first() -> None:
        Segments(TokenStore(store), length=2048, batch_size=8, steps=1, seed=0).step(0)

    tokens = json.loads((store / "store.json").read_text())["tokens"]
    [taken] = seconds(first, least=5)
    print(f"first batch: {1000 * taken:.1f} ms", flush=True)
    return {"case": "first batch", "milliseconds": 1000 * taken, "max_milliseconds": 50, "store_tokens": tokens}


def large(folder: Path, mib: int) -> Rows:
    path = folder / "input.jsonl.zst"
    write_input(path, mib << 20)
    distinct = sum(len(own["text"].encode()) for own in genuine_rows()) >> 20
    run = prepared(folder, path, compared=True)
    case = f"prepare on {mib} MiB, of which all but {distinct} MiB are copies"
    more = {"peak_mib": run.peak_mib, "max_mib": 1024, "wall_s": run.wall_s}
    return [row(case, mib << 20, run.seconds, None, **more)]


def long(folder: Path, mib: int) -> Rows:
    path = folder / "input.jsonl.zst"
    text = "\n\n".join(str(own["text"]) for own in genuine_rows())
    times, escaped = (mib << 20) // len(text.encode()) + 1, orjson.dumps(text)[1:-1]
    with path.open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as out:
        out.write(b'{"text":"')
        for _ in range(times):
            out.write(escaped)
        out.write(b'"}\n')
    size = times * len(text.encode())
    del text, escaped
    run = prepared(folder, path, compared=False)
    more = {"peak_mib": run.peak_mib, "max_mib": 1024, "wall_s": run.wall_s}
    return [row(f"prepare on one document of {size >> 20} MiB", size, run.seconds, None, **more)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=5000, help="size of the large input")
    parser.add_argument("--document-mib", type=int, default=200, help="size of the one long document")
    parser.add_argument("--datasets-mib", type=int, default=64, help="size of the input that HF datasets also reads")
    parser.add_argument("--cases", nargs="+", help="these alone")
    arguments = parser.parse_args()
    os.chdir(Path(__file__).resolve().parents[2])
    cases: dict[str, Callable[[Path], Rows]] = {
        "tokenising": lambda _: tokenising(),
        "reading": reading,
        "near-duplicates": lambda _: near_duplicates(),
        f"datasets-{arguments.datasets_mib}": lambda folder: against_datasets(folder, arguments.datasets_mib),
        f"large-{arguments.mib}": lambda folder: large(folder, arguments.mib),
        f"long-{arguments.document_mib}": lambda folder: long(folder, arguments.document_mib),
    }
    for name, case in cases.items():
        done, folder = FOLDER / f"{name}.json", FOLDER / name
        if done.is_file() or (arguments.cases and name.partition("-")[0] not in arguments.cases):
            continue
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        write_json(done, case(folder))
        shutil.rmtree(folder)
    if all((FOLDER / f"{name}.json").is_file() for name in cases):
        rows = [one for name in cases for one in read_json(FOLDER / f"{name}.json")]
        write_results(Path("benchmarks/corpus/results.json"), rows)
        shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()
