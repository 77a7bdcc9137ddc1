"""The model as lm-evaluation-harness reads it: prompts in batches, each under the scaling for its own length.

Import it late, since the harness is an extra.
"""

from collections import defaultdict
from typing import Any

import torch
from lm_eval.models.huggingface import HFLM
from torch import Tensor
from transformers import PreTrainedModel

from ropewalk.models.head import TriedOnce, spread_ids
from ropewalk.rope import LengthSwitch
from ropewalk.rope.switching import extend_by_length


@TriedOnce
def harmless_padding(model: PreTrainedModel) -> frozenset[str]:
    """The sides on which padding leaves a row's logits as they are, right without a mask and left with one.

    It is tried on a row of 8 tokens beside one of 13, padded as the harness and transformers' ``generate`` do it.
    """
    whole = spread_ids(model, 13)
    row, padding = whole[:8], whole.new_zeros(5)
    alone = model(row[None]).logits[0].double()

    def is_harmless(read: Tensor) -> bool:
        errors = (read.double() - alone).norm(dim=-1) / alone.norm(dim=-1)
        return bool(errors.max() < (1e-3 if read.dtype.itemsize > 2 else 0.1))

    rows = torch.stack((whole, torch.cat((padding, row))))
    mask = torch.ones_like(rows)
    mask[1, : len(padding)] = 0
    read = {
        "right": model(torch.stack((whole, torch.cat((row, padding))))).logits[1, : len(row)],
        "left": model(rows, attention_mask=mask).logits[1, len(padding) :],
    }
    return frozenset(side for side, logits in read.items() if is_harmless(logits))


class BatchedModel(HFLM):  # type: ignore[misc]
    """A model of the harness that reads prompts of similar length in batches of up to ``batch_tokens`` tokens.

    The harness pads likelihood prompts on the right without a mask, and the scaling is chosen by the length with the
    padding. So such a batch holds only prompts for which ``switch`` has the same entry. Prompts that are continued are
    padded on the left with a mask, by which each row has the scaling for its own length. Where padding changes the
    logits of the model's class, prompts are read one at a time.

    Args:
        max_length: window in tokens; the harness cuts the beginning of longer prompts off.
    """

    def __init__(self, model: Any, tokenizer: Any, switch: LengthSwitch, *, max_length: int, batch_tokens: int) -> None:
        super().__init__(
            pretrained=extend_by_length(model, switch),
            tokenizer=tokenizer,
            backend="causal",
            max_length=max_length,
            add_bos_token=tokenizer.bos_token_id is not None,
            device=str(next(model.parameters()).device),
        )
        self._switch, self._batch_tokens = switch, batch_tokens

    def _loglikelihood_tokens(
        self, requests: list[tuple[Any, list[int], list[int]]], *args: Any, **options: Any
    ) -> list[tuple[float, bool]]:
        groups: dict[tuple[int, int], dict[int, int]] = defaultdict(dict)
        for number, (_, context, continuation) in enumerate(requests):
            # The last token is not read.
            length = min(len(context) + len(continuation) - 1, self.max_length)
            groups[self._switch.entry_for(length)[0], length.bit_length()][number] = length
        answers: dict[int, tuple[float, bool]] = {}
        for lengths in groups.values():
            self.batch_size_per_gpu = self._rows(max(lengths.values()), "right")
            of_group = super()._loglikelihood_tokens([requests[number] for number in lengths], *args, **options)
            answers |= zip(lengths, of_group, strict=True)
        return [answers[number] for number in range(len(requests))]

    def generate_until(self, requests: list[Any], *args: Any, **options: Any) -> list[str]:
        longest = max(len(self.tok_encode(request.args[0])) for request in requests) + self.max_gen_toks
        self.batch_size_per_gpu = self._rows(min(longest, self.max_length), "left")
        answers: list[str] = super().generate_until(requests, *args, **options)
        return answers

    def _model_generate(self, *args: Any, **options: Any) -> Tensor:
        # The harness ends a prompt that is read alone at its tokenizer's EOS, which the model's config may not name.
        ends = self.model.generation_config.eos_token_id
        ends = {self.eot_token_id, *(ends if isinstance(ends, list) else [ends])} - {None}
        ids: Tensor = super()._model_generate(*args, eos_token_id=sorted(ends), **options)
        return ids

    def _rows(self, length: int, padded_side: str) -> int:
        """Number of prompts of up to ``length`` tokens in a batch."""
        rows = self._batch_tokens // length
        return rows if rows > 1 and padded_side in harmless_padding(self.model) else 1
