"""Stage compose: conf/ and overrides.yaml to resolved.yaml, checked as a whole before any work starts."""

import argparse
import sys

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from ropewalk.composition import checked, explain, read_overrides, register
from ropewalk.config import Config
from ropewalk.consistency import check_measured, check_window
from ropewalk.corpus.sources import fingerprint
from ropewalk.files import write_text
from ropewalk.models.base import window_before
from ropewalk.stage import EXPECTED, ROOT, resolved_yaml


def composed() -> Config:
    register()
    overrides = read_overrides("overrides.yaml")
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        config = checked(compose("config", [*overrides, "output=results", "work=work"]))
    model = config.model
    window = window_before(model.path, start=model.start, original_length=model.original_length, **model.trust)
    check_window(config, window)
    check_measured(config, window)
    config.corpus.fingerprint = fingerprint(config.corpus)
    return config


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", choices=["job"], help="print the configuration in place of writing resolved.yaml")
    arguments = parser.parse_args()
    try:
        resolved = resolved_yaml(composed())
        if arguments.cfg:
            print(resolved, end="")
        else:
            write_text("resolved.yaml", resolved)
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"compose: {explain(error)}")
    except EXPECTED as error:
        sys.exit(f"compose: {' '.join(str(error).split())}")
