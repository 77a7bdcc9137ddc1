"""Stage compose: conf/ and overrides.yaml to resolved.yaml, checked as a whole before any work starts."""

import sys

from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from ropewalk.config import checked, explain, register
from ropewalk.corpus.sources import fingerprint
from ropewalk.files import write_text
from ropewalk.models.base import window_of
from ropewalk.stage import EXPECTED, ROOT, resolved_yaml


def main() -> None:
    register()
    overrides = OmegaConf.load("overrides.yaml").overrides
    with initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):
        composed = compose("config", [*overrides, "output=results", "work=work"])
    config = checked(composed)
    config.corpus.fingerprint = fingerprint(config.corpus)
    window = config.model.original_length or window_of(config.model.path)
    if config.road.first_target <= window:
        raise ValueError(
            f"configuration: road.first_target must be above the model's window, found {config.road.first_target} "
            f"and {window} tokens"
        )
    write_text("resolved.yaml", resolved_yaml(config))


if __name__ == "__main__":
    try:
        main()
    except (HydraException, OmegaConfBaseException) as error:
        sys.exit(f"compose: {explain(error)}")
    except EXPECTED as error:
        sys.exit(f"compose: {' '.join(str(error).split())}")
