"""Train the walker from scratch and write it to models/walker (`make walker`); no stage of dvc.yaml."""

from ropewalk import tracking
from ropewalk.composition import ROOT
from ropewalk.models.walker import make_walker
from ropewalk.stage import Stage, run


def walker(stage: Stage) -> None:
    make_walker(
        stage.config,
        commit=tracking.commit_of(ROOT),
        state_folder=stage.state,
        folder=ROOT / "models" / "walker",
    )


if __name__ == "__main__":
    run("walker", walker, sections=("walker", "corpus"), whole=False)
