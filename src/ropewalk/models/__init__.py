"""Base models: loading and describing any checkpoint, reading with it and training it, and the walker."""

from transformers.utils import logging

# Our own errors say what is wrong with a checkpoint, and our own bars show progress. The bars of downloads stay.
logging.set_verbosity_error()
logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
