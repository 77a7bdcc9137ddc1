"""Base models: loading any checkpoint, and the walker."""

from transformers.utils import logging

# Our errors say what is wrong with a checkpoint and our own bars what takes time. The bars of downloads stay.
logging.set_verbosity_error()
logging.set_tqdm_hook(lambda bar, args, kwargs: bar(*args, **{**kwargs, "disable": True}))
