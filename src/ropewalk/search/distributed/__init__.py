"""What lets a study survive: many workers, machines that come and go, kills at any moment, and Ctrl-C."""

from ropewalk.search.distributed.locks import in_turn
from ropewalk.search.distributed.publication import publish
from ropewalk.search.distributed.schedule import FailedTrial, run_schedule
from ropewalk.search.distributed.storage import open_storage, open_study, persistently, storage_of
from ropewalk.search.distributed.trials import REASON, done_by_position, positions

__all__ = [
    "REASON", "FailedTrial", "done_by_position", "in_turn", "open_storage", "open_study", "persistently", "positions",
    "publish", "run_schedule", "storage_of",
]  # fmt: skip
