"""Train the walker from nothing and write it to models/walker (`make walker`); no stage of dvc.yaml."""

from ropewalk.models.walker import make_walker
from ropewalk.stage import ROOT, Stage, run


def walker(stage: Stage) -> None:
    make_walker(stage.config, state_folder=stage.state, folder=ROOT / "models" / "walker")


if __name__ == "__main__":
    run("walker", walker, sections=("walker", "corpus"))
