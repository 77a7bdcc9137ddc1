"""Speed and memory of `prepare` (`make bench-corpus`): against bare libraries, datatrove, datasketch and HF datasets.

``python benchmarks/corpus/run.py --mib 200`` takes less text than the 5 GB of the committed figures; a reference
whose package is not installed is left out (``pip install '.[bench-corpus]'``). Text is genuine rows of RedPajama-V1
from ../shared, or ROPEWALK_SHARED, again and again under names of their own.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
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
from ropewalk.corpus.parts import Reading
from ropewalk.corpus.segments import Segments
from ropewalk.corpus.shards import Shard
from ropewalk.corpus.store import TokenStore
from ropewalk.corpus.tokenise import encoder
from ropewalk.corpus.words import BLOCK_BYTES

FOLDER = Path("work/bench-corpus")
TOKENIZER = "models/walker/tokenizer.json"
PREPARE = """
import sys
from pathlib import Path
from transformers import AutoTokenizer
from ropewalk.config import CorpusConfig
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.sources import find_shards
config = CorpusConfig(name="jsonl", path=sys.argv[1], least_long_documents=0, exact_duplicates=False, least_tokens=16)
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


def write_input(path: Path, rows: list[dict[str, Any]], size: int) -> None:
    """JSON lines of ``size`` bytes before compression."""
    written, copy = 0, 0
    with path.open("wb") as raw, zstandard.ZstdCompressor(level=3).stream_writer(raw) as out:
        while written < size:
            for number, row in enumerate(rows):
                line = orjson.dumps({"text": row["text"], "meta": {"url": f"copy-{copy}/{number}"}}) + b"\n"
                out.write(line)
                written += len(line)
                if written >= size:
                    break
            copy += 1


def seconds(work: Callable[[], Any], *, least: int = 3) -> float:
    """The best of some runs."""
    times = []
    for _ in range(least):
        begun = time.perf_counter()
        work()
        times.append(time.perf_counter() - begun)
    return min(times)


def measured(code: str, *arguments: object) -> tuple[float, int]:
    """(seconds, largest resident memory in MiB of the process and all below it together) of a script."""
    process = subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stderr=subprocess.DEVNULL)
    peak, begun, stop = 0, time.perf_counter(), threading.Event()
    while process.poll() is None:
        peak = max(peak, sum(resident_kib(pid) for pid in family(process.pid)))
        stop.wait(0.05)
    if process.returncode:
        sys.exit(f"a measured script failed with exit code {process.returncode}:\n{code}")
    return time.perf_counter() - begun, peak // 1024


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


def tokenising(texts: list[str]) -> dict[str, Any]:
    tokenizer = Tokenizer.from_file(TOKENIZER)
    encode = encoder(tokenizer)
    size = sum(len(text.encode()) for text in texts)
    ours = seconds(lambda: encode(texts))
    reference = seconds(lambda: tokenizer.encode_batch(texts, add_special_tokens=False))
    return row("tokenising, against encode_batch", size, ours, reference, least_ratio=0.85)


def reading(path: Path) -> list[dict[str, Any]]:
    """Bytes of JSON lines read, parsed and filtered in one process."""
    size = sum(len(chunk) for chunk in chunks(path))
    rules = Reading(search_share=0.15, test_share=0.15, salt="", least_tokens=16)

    def ours() -> int:
        kept = 0
        for _, found in Shard(str(path)).rows():
            if isinstance(found, Document) and len(found.text) >= rules.least(found.subset):
                kept += rules.split(found.group) == 0
        return kept

    def bare() -> int:
        count, rest = 0, b""
        for chunk in chunks(path):
            *lines, rest = (rest + chunk).split(b"\n")
            count += sum(1 for line in lines if orjson.loads(line))
        return count

    mine = seconds(ours)
    found = [row("reading and filtering, against decompression and orjson", size, mine, seconds(bare), least_ratio=0.6)]
    if find_spec("datatrove"):
        from datatrove.pipeline.readers import JsonlReader

        reader = JsonlReader(str(path.parent), glob_pattern=path.name, compression="zstd")
        found.append(row("reading, against datatrove", size, mine, seconds(lambda: sum(1 for _ in reader.run()))))
    return found


def chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as raw, zstandard.ZstdDecompressor().stream_reader(raw) as source:
        while chunk := source.read(1 << 20):
            yield chunk


def near_duplicates(texts: list[str]) -> list[dict[str, Any]]:
    data = [text.encode() for text in texts]

    def ours(own: list[bytes]) -> None:
        batch: list[bytes] = []
        for text in own:
            if len(text) >= BLOCK_BYTES // 2:
                minhash.long_signature([text])
                continue
            if sum(map(len, batch)) + len(batch) + len(text) > BLOCK_BYTES:
                minhash.signatures(batch)
                batch = []
            batch.append(text)
        minhash.signatures(batch)

    rates = seconds(lambda: ours(data))
    size = sum(map(len, data))
    found = []
    if find_spec("datasketch"):
        from datasketch import MinHash

        some = texts[::20]

        def theirs() -> None:
            for text in some:
                words = text.split()
                grams = [" ".join(words[at : at + 5]).encode() for at in range(max(1, len(words) - 4))]
                MinHash(num_perm=112).update_batch(grams)

        share = sum(len(text.encode()) for text in some)
        reference = seconds(theirs, least=1) * size / share
        found.append(row("signatures for near-duplicates, against datasketch", size, rates, reference))
    return found or [row("signatures for near-duplicates", size, rates, None)]


def whole(path: Path, size: int, *, reference: bool) -> list[dict[str, Any]]:
    """The stage's work, against load, filter, map and save of HF datasets where that is installed."""
    cores = len(os.sched_getaffinity(0))
    shutil.rmtree(FOLDER / "run", ignore_errors=True)
    (FOLDER / "run").mkdir()
    ours, peak = measured(PREPARE, path, FOLDER / "run")
    if not reference or not find_spec("datasets"):
        return [row(f"prepare on {size >> 20} MiB", size, ours, None, peak_mib=peak, largest_mib=1024)]
    shutil.rmtree(FOLDER / "datasets", ignore_errors=True)
    theirs, their_peak = measured(DATASETS, path, FOLDER / "datasets", cores)
    more = {"peak_mib": peak, "reference_peak_mib": their_peak, "largest_mib": 1024, "least_ratio": 1.0}
    return [row(f"prepare on {size >> 20} MiB, against HF datasets", size, ours, theirs, **more)]


def first_batch() -> dict[str, Any]:
    """From opening a store to the first rows of training, after a run of `whole`."""
    store = FOLDER / "run" / "tokens" / "train"

    def first() -> None:
        Segments(TokenStore(store), length=2048, rows=8, steps=1, seed=0).step(0)

    tokens = json.loads((store / "store.json").read_text())["tokens"]
    taken = seconds(first, least=5)
    print(f"first batch: {1000 * taken:.1f} ms", flush=True)
    return {"case": "first batch", "milliseconds": 1000 * taken, "largest_milliseconds": 50, "store_tokens": tokens}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=5000, help="size of the large input")
    parser.add_argument("--document-mib", type=int, default=200, help="size of the one long document")
    parser.add_argument("--datasets-mib", type=int, default=500, help="size of the input that HF datasets also reads")
    arguments = parser.parse_args()
    os.chdir(Path(__file__).resolve().parents[2])
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = genuine_rows()
    texts = [str(own["text"]) for own in rows]
    found = [tokenising(texts)]
    write_input(FOLDER / "reading.jsonl.zst", rows, 100 << 20)
    found += reading(FOLDER / "reading.jsonl.zst")
    found += near_duplicates(texts)
    for size, reference in ((arguments.datasets_mib, True), (arguments.mib, False)):
        write_input(FOLDER / "input.jsonl.zst", rows, size << 20)
        found += whole(FOLDER / "input.jsonl.zst", size << 20, reference=reference)
    found.append(first_batch())
    every = "\n\n".join(texts)
    long = (every * ((arguments.document_mib << 20) // len(every.encode()) + 1)).encode()[
        : arguments.document_mib << 20
    ]
    with (FOLDER / "input.jsonl.zst").open("wb") as raw, zstandard.ZstdCompressor().stream_writer(raw) as out:
        out.write(orjson.dumps({"text": long.decode(errors="ignore")}) + b"\n")
    size = len(long)
    del long, every
    found += whole(FOLDER / "input.jsonl.zst", size, reference=False)
    found[-1]["case"] = f"prepare on one document of {size >> 20} MiB"
    write_results(Path("benchmarks/corpus/results.json"), found)
    shutil.rmtree(FOLDER)


if __name__ == "__main__":
    main()
