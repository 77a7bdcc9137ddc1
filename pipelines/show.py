"""Show the scaling of a checkpoint (model.path) or a table of factors (show.table) as a table and a plot.

Of a checkpoint, it also says whether it can be extended, trained, exported and written as GGUF, with the reason.

python pipelines/show.py model.path=../Phi-3-mini-128k-instruct
python pipelines/show.py show.table=4k.csv show.original_length=4096 show.target_length=131072
"""

from ropewalk import tracking
from ropewalk.export.load import exported_switch
from ropewalk.files import write_table, write_text
from ropewalk.models.capability import capability
from ropewalk.models.published import PublishedScaling, published_scaling, published_table
from ropewalk.report.profile import profile_figure, profile_rows, profile_text
from ropewalk.report.style import save
from ropewalk.stage import Stage, run


def scaling_to_show(stage: Stage) -> PublishedScaling:
    show, path = stage.config.show, stage.config.model.path
    if show.table is not None:
        assert show.original_length is not None  # as the configuration's check says
        assert show.target_length is not None
        return published_table(
            show.table, base=show.rope_theta, original_length=show.original_length, target_length=show.target_length
        )
    model = stage.config.model
    print(capability(path, keep_sliding_window=model.keep_sliding_window, **model.trust), end="\n\n")
    published = published_scaling(path, original_length=model.original_length, **model.trust)
    switch = exported_switch(path)
    return PublishedScaling(published.shape, switch) if switch else published


def show(stage: Stage) -> None:
    published = scaling_to_show(stage)
    print(profile_text(published.switch, published.shape))
    folder = stage.output
    write_table(folder / "profile.csv", profile_rows(published.switch, published.shape))
    save(profile_figure(published.switch, published.shape), folder / "profile.png")
    write_text(folder / "switch.json", published.switch.to_json())
    write_text(folder / "factors.json", published.scaling.to_json())
    for name in ("profile.csv", "profile.png", "switch.json", "factors.json"):
        tracking.log_file(folder / name)
    print(f"\nplot, table and factors: {folder}")


if __name__ == "__main__":
    run("show", show, sections=("model", "show"), whole=False)
