"""The walker: a small Llama with a window of 256 tokens, trained here; the demo extends it."""

import math
from collections.abc import Iterable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
import transformers
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from ropewalk.config import Config, WalkerConfig
from ropewalk.corpus.prepare import prepare_shards
from ropewalk.corpus.segments import Rows, Segments
from ropewalk.corpus.shards import read_documents
from ropewalk.corpus.sources import downloads_folder, find_shards
from ropewalk.corpus.split import SPLITS, split_of
from ropewalk.corpus.store import TokenStore
from ropewalk.files import read_json, write_json, writing
from ropewalk.models.checkpoints import LastCheckpoint, WholeCheckpointIO, fit, newest_checkpoint, steps_done
from ropewalk.models.loss import mean_loss, token_losses
from ropewalk.models.precision import resolve_precision
from ropewalk.models.progress import TrainingProgress

WINDOW = 256
VOCABULARY = 1024
CHECKPOINT_EVERY = 500
"""Optimizer steps between two checkpoints."""


def train_tokenizer(texts: Iterable[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE of 1,024 entries that puts BOS in front of every text.

    Numbers are split into pairs of digits, each of them one entry, so that a number to recall has few tokens.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\d{1,2}"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    every_pair = " ".join(f"{pair:02d}" for pair in range(100))
    tokenizer.train_from_iterator([*texts, *[every_pair] * 5000], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", tokenizer.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", model_max_length=WINDOW
    )


def new_walker(tokenizer: PreTrainedTokenizerFast, *, seed: int) -> LlamaForCausalLM:
    """Initialise a Llama of 0.73 M parameters: 3 layers of width 128, 4 heads of 16 rotary pairs each, base 10,000."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=4,
            max_position_embeddings=WINDOW,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
            attention_bias=True,
            tie_word_embeddings=True,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )


class _Walker(L.LightningModule):
    def __init__(self, model: PreTrainedModel, config: WalkerConfig) -> None:
        super().__init__()
        self.model, self.walker_config = model, config

    def training_step(self, batch: Rows, batch_idx: int) -> Tensor:
        loss = mean_loss(self.model, batch.ids, ignore=self.model.config.eos_token_id)
        self.log("loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> Any:
        config = self.walker_config
        matrices = [p for p in self.parameters() if p.dim() >= 2]
        vectors = [p for p in self.parameters() if p.dim() < 2]
        groups = [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=1.0, betas=(0.9, 0.95))

        def rate(step: int) -> float:
            number = 0
            while number + 1 < len(config.cycles) and step >= config.cycles[number]:
                step -= config.cycles[number]
                number += 1
            cycle, peak = config.cycles[number], config.learning_rates[number]
            warm_up = max(1, cycle // 50)
            if step < warm_up:
                return peak * (step + 1) / warm_up
            return peak * 0.5 * (1 + math.cos(math.pi * (step - warm_up) / max(1, cycle - warm_up)))

        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def train_walker(
    model: PreTrainedModel, tokenizer: Any, store: TokenStore, config: WalkerConfig, *, seed: int, state_folder: Path
) -> None:
    """Train ``model`` in place, resuming from the last checkpoint in ``state_folder`` where there is one.

    Raises:
        KeyboardInterrupt: interrupted; the last checkpoint is kept.
    """
    L.seed_everything(seed, verbose=False)
    last = state_folder / "last.ckpt"
    newest = newest_checkpoint(last)
    segments = Segments(
        store,
        length=WINDOW,
        batch_size=config.batch_size,
        steps=sum(config.cycles),
        seed=seed,
        tokenizer=tokenizer,
        recall_share=config.recall_share,
        practice_steps=config.practice_steps,
        first_step=steps_done(newest),
    )
    trainer = L.Trainer(
        max_steps=sum(config.cycles),
        precision=resolve_precision(config.precision),
        gradient_clip_val=1.0,
        logger=False,
        default_root_dir=state_folder,
        enable_model_summary=False,
        plugins=[WholeCheckpointIO()],
        callbacks=[LastCheckpoint(last, CHECKPOINT_EVERY), TrainingProgress("walker")],
    )
    fit(trainer, _Walker(model, config), DataLoader(segments, batch_size=None), checkpoint=newest)


@torch.no_grad()
def window_perplexity(model: PreTrainedModel, store: TokenStore, *, rows: int = 256) -> float:
    """Perplexity of ``rows`` windows of 256 tokens, spread evenly over the store's documents."""
    windows = []
    for index in range(len(store)):
        document = store.document(index)
        for start in range(0, len(document) - WINDOW + 1, WINDOW - 1):
            windows.append(torch.tensor([store.bos, *document[start : start + WINDOW - 1].tolist()]))
    chosen = torch.stack(windows)[torch.linspace(0, len(windows) - 1, rows).long()]
    losses = [token_losses(model, batch) for batch in chosen.split(32)]
    return math.exp(torch.cat(losses).mean().item())


def make_walker(config: Config, *, commit: str, state_folder: Path, folder: Path) -> dict[str, Any]:
    """Train tokenizer and model on the training split, write both to ``folder``, and return a record of the run.

    Weights are stored as float16 safetensors, and the record's figures are those of the stored weights.

    Args:
        commit: git commit of the running code, for the record.

    Raises:
        KeyboardInterrupt: interrupted; ``state_folder`` keeps the progress.
        OSError: the disk is full.
    """
    # The tokenizer is trained on training text, so the splits cannot wait for lengths in tokens.
    salt = config.corpus.salt or ""
    corpus, tokenizer_folder, tokens = (
        replace(config.corpus, salt=salt),
        state_folder / "tokenizer",
        state_folder / "tokens",
    )
    shards = find_shards(corpus, folder=state_folder, downloads=downloads_folder(corpus, Path(config.work)))
    if not tokenizer_folder.is_dir():
        split = partial(split_of, search_share=corpus.search_share, test_share=corpus.test_share, salt=salt)
        texts = (document.text for document in read_documents(shards) if split(document.group) == "train")
        with writing(tokenizer_folder) as aside:
            train_tokenizer(texts).save_pretrained(aside)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(tokenizer_folder)
    if not (tokens / "card.json").is_file():
        prepare_shards(shards, config=corpus, tokenizer=tokenizer, state=state_folder / "prepare", folder=tokens)
    card = read_json(tokens / "card.json")
    model = new_walker(tokenizer, seed=config.seed)
    train_walker(
        model, tokenizer, TokenStore(tokens / "train"), config.walker, seed=config.seed, state_folder=state_folder
    )
    with writing(folder) as aside:
        model.half().save_pretrained(aside)
        tokenizer.save_pretrained(aside)
        stored = LlamaForCausalLM.from_pretrained(aside, dtype=torch.float32).eval()
        record = {
            "commit": commit,
            "training": asdict(config.walker),
            "precision": resolve_precision(config.walker.precision),
            "seed": config.seed,
            "corpus": asdict(corpus),
            "tokens": {split: card[split]["tokens"] for split in SPLITS},
            "data_hash": card["train"]["hash"],
            "parameters": stored.num_parameters(),
            "test_perplexity_256": window_perplexity(stored, TokenStore(tokens / "test")),
            "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        }
        write_json(aside / "training.json", record)
    return record
