"""From documents to token stores: split by name, tokenise in batches, count everything."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ropewalk.config import CorpusConfig
from ropewalk.corpus.documents import Document
from ropewalk.corpus.split import SPLITS, Split, split_of
from ropewalk.corpus.store import TokenStore, write_store
from ropewalk.files import write_json, writing
from ropewalk.progress import Progress

_BATCH_CHARACTERS = 2_000_000


def prepare_stores(
    documents: Iterable[Document], *, config: CorpusConfig, tokenizer: Any, rejected: Counter[str], folder: Path
) -> dict[str, Any]:
    """Write a token store per split to ``folder`` and return the data card; all stores or none.

    Args:
        tokenizer: a transformers tokenizer with BOS and EOS (EOS also serves as BOS where there is none).
        rejected: filled by the reader while ``documents`` is consumed.

    Raises:
        ValueError: no documents, too large a share of rows rejected, or too few long documents.
    """
    eos = tokenizer.eos_token_id
    if eos is None:
        raise ValueError(f"the tokenizer of {tokenizer.name_or_path} has no EOS token; set one and save it again")
    bos = eos if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    with writing(folder) as aside:
        aside.mkdir()
        spooled = _spool(documents, config, aside)
        accepted, refused = sum(count for _, count in spooled.values()), sum(rejected.values())
        if not accepted:
            raise ValueError(
                f"the corpus {config.name} holds no document with text; rejected: {dict(rejected) or 'none'}"
            )
        if refused > config.largest_rejected_share * (accepted + refused):
            raise ValueError(
                f"{refused} of {accepted + refused} rows were rejected ({dict(rejected)}), more than "
                f"corpus.largest_rejected_share {config.largest_rejected_share}; mend the files or raise it"
            )
        card: dict[str, Any] = {"corpus": config.name, "fingerprint": config.fingerprint, "rejected": dict(rejected)}
        with Progress(total=accepted, desc="tokenising", unit="document") as bar:
            for split, (path, _) in spooled.items():
                write_store(
                    aside / split,
                    _tokenised(path, tokenizer, bar),
                    bos=bos,
                    eos=eos,
                    vocab_size=len(tokenizer),
                )
                path.unlink()
                card[split] = _describe(TokenStore(aside / split), config)
        for split in ("search", "test"):
            found = card[split]["long_documents"]
            if found < config.least_long_documents:
                raise ValueError(
                    f"the {split} split holds {found} documents of at least {config.long_tokens} tokens "
                    f"(the longest has {card[split]['longest']}), {config.least_long_documents} are needed; "
                    "add longer documents, or lower corpus.long_tokens or corpus.least_long_documents"
                )
        write_json(aside / "card.json", card)
    return card


def split_of_document(document: Document, config: CorpusConfig) -> Split:
    return split_of(document.group, search_share=config.search_share, test_share=config.test_share, salt=config.salt)


def _spool(documents: Iterable[Document], config: CorpusConfig, folder: Path) -> dict[Split, tuple[Path, int]]:
    """One file of JSON lines per split, so that memory does not grow with the corpus."""
    paths = {split: folder / f"{split}.jsonl" for split in SPLITS}
    counts: Counter[Split] = Counter()
    outs = {split: path.open("w", encoding="utf-8") for split, path in paths.items()}
    try:
        with Progress(desc="reading documents", unit="document") as bar:
            for document in documents:
                split = split_of_document(document, config)
                outs[split].write(json.dumps([document.name, document.subset, document.group, document.text]) + "\n")
                counts[split] += 1
                bar.update()
    finally:
        for out in outs.values():
            out.close()
    return {split: (path, counts[split]) for split, path in paths.items()}


def _tokenised(path: Path, tokenizer: Any, bar: Progress) -> Iterator[tuple[Document, list[int]]]:
    batch: list[Document] = []
    size = 0
    with path.open(encoding="utf-8") as lines:
        for line in lines:
            name, subset, group, text = json.loads(line)
            batch.append(Document(name=name, subset=subset, text=text, group=group))
            size += len(text)
            if size >= _BATCH_CHARACTERS:
                yield from _encode(batch, tokenizer, bar)
                batch, size = [], 0
    yield from _encode(batch, tokenizer, bar)


def _encode(batch: list[Document], tokenizer: Any, bar: Progress) -> Iterator[tuple[Document, list[int]]]:
    if batch:
        ids = tokenizer([document.text for document in batch], add_special_tokens=False)["input_ids"]
        for document, own in zip(batch, ids, strict=True):
            bar.update()
            yield document, own


def _describe(store: TokenStore, config: CorpusConfig) -> dict[str, Any]:
    subsets = dict.fromkeys(sorted(set(store.subsets)), 0)
    for subset, tokens in zip(store.subsets, store.lengths.tolist(), strict=True):
        subsets[subset] += tokens
    edges = [0, *(2**power for power in range(8, 22)), np.iinfo(np.int64).max]
    counts, _ = np.histogram(store.lengths, edges)
    return {
        "documents": len(store),
        "tokens": int(store.lengths.sum()),
        "longest": int(store.lengths.max()) if len(store) else 0,
        "long_documents": len(store.long_documents(config.long_tokens)),
        "tokens_by_subset": subsets,
        "documents_from_tokens": {str(low): int(count) for low, count in zip(edges[:-1], counts, strict=True) if count},
        "hash": store.hash,
    }
