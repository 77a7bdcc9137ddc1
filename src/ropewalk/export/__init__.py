"""Export of extended models as transformers checkpoints and GGUF files with a model card, and loading them back."""

from ropewalk.export.card import model_card
from ropewalk.export.checkpoint import export_checkpoint
from ropewalk.export.load import load_extended

__all__ = ["export_checkpoint", "load_extended", "model_card"]
