"""What is checked of a configuration together with its model and its text, before any work starts."""

from ropewalk.config import Config
from ropewalk.consistency import check_capability, check_measured, check_window
from ropewalk.corpus.sources import fingerprint
from ropewalk.defaults.facts import read_facts
from ropewalk.defaults.training import unusual
from ropewalk.models.base import window_before
from ropewalk.models.capability import capability
from ropewalk.models.gguf_tokenizer import check_tokenizer


def preflight(config: Config) -> list[str]:
    """Check ``config`` against its model, and note the fingerprint of its text in ``corpus.fingerprint``.

    Returns:
        Warnings of values that are known to spoil such a model.

    Raises:
        ValueError: the model cannot be read or does not go with the configuration; names the key.
        FileNotFoundError: the model or the text is not there.
    """
    model = config.model
    window = window_before(model.path, start=model.start, original_length=model.original_length, **model.trust)
    check_capability(config, capability(model.path, keep_sliding_window=model.keep_sliding_window, **model.trust))
    check_window(config, window)
    check_measured(config, window)
    if config.export.gguf is not None:
        check_tokenizer(model.path, **model.trust)
    config.corpus.fingerprint = fingerprint(config.corpus)
    return list(unusual(config, read_facts(model)))
