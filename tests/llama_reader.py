"""What the real llama.cpp, built by ``make llama``, makes of a GGUF file, in a process of its own.

Keys and values are kept in float32, so that what it computes differs from transformers by rounding alone.
"""

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import llama_build


def ids_of_texts(file: Path, texts: Sequence[str]) -> list[list[int]]:
    """Ids of ``texts``, with BOS and EOS as the file says."""
    ids: list[list[int]] = _run({"file": str(file), "texts": list(texts)})
    return ids


def losses(file: Path, ids: Sequence[int], *, context: int) -> list[float]:
    """Loss in nats of every id but the first, in a context of ``context`` tokens."""
    values: list[float] = _run({"file": str(file), "ids": list(ids), "context": context})
    return values


def _run(task: dict[str, Any]) -> Any:
    environment = llama_build.environment()
    if environment is None:
        pytest.skip(f"llama.cpp is not built in {llama_build.PLACE}; `make llama` builds it")
    done = subprocess.run(
        (sys.executable, __file__),
        input=json.dumps(task),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout.splitlines()[-1])


def _main() -> None:
    import numpy as np
    from llama_cpp import Llama

    task = json.load(sys.stdin)
    result: list[Any]
    if "texts" in task:
        llama = Llama(task["file"], vocab_only=True, verbose=False)
        result = [llama.tokenize(text.encode(), add_bos=True, special=False) for text in task["texts"]]
    else:
        ids, in_float32 = task["ids"], 0
        llama = Llama(
            task["file"],
            n_ctx=task["context"],
            n_batch=len(ids),
            logits_all=True,
            verbose=False,
            n_threads=1,
            type_k=in_float32,
            type_v=in_float32,
        )
        llama.eval(ids)
        logits = np.asarray(llama.scores[: len(ids) - 1], dtype=np.float64)
        top = logits.max(-1, keepdims=True)
        normaliser = np.log(np.exp(logits - top).sum(-1)) + top[:, 0]
        result = (normaliser - logits[np.arange(len(ids) - 1), ids[1:]]).tolist()
    print(json.dumps(result))
    llama.close()


if __name__ == "__main__":
    _main()
