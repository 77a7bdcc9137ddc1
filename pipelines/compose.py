"""Stage compose: conf/ and overrides.yaml to resolved.yaml, checked as a whole before any work starts."""

import argparse
import sys

from ropewalk.app import EXPECTED, resolved_yaml
from ropewalk.composition import composed, project_overrides
from ropewalk.config import Config
from ropewalk.defaults.follow import followed_text
from ropewalk.files import write_text
from ropewalk.preflight import preflight


def configuration() -> Config:
    config = composed([*project_overrides([]), "output=results", "work=work"])
    for warning in preflight(config):
        print(f"compose: warning: {warning}", file=sys.stderr)
    return config


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cfg", choices=["job"], help="print the configuration in place of writing resolved.yaml")
    arguments = parser.parse_args()
    try:
        config = configuration()
        if arguments.cfg:
            print(followed_text(config), resolved_yaml(config), sep="\n", end="")
        else:
            write_text("resolved.yaml", resolved_yaml(config))
    except EXPECTED as error:
        sys.exit(f"compose: {' '.join(str(error).split())}")
