"""Whether a runtime really applies the scaling that a checkpoint is meant to have, or silently drops it."""

from ropewalk.doctor.diagnosis import Diagnosis
from ropewalk.doctor.examine import diagnose, diagnose_model

__all__ = ["Diagnosis", "diagnose", "diagnose_model"]
