"""pipelines/show.py tells the scaling of a checkpoint or a table, as text, table and plot."""

from pathlib import Path

import pytest

from ropewalk.files import read_table
from ropewalk.rope import LengthSwitch, RopeScaling, rotary_shape
from ropewalk.rope.profile import profile
from tiny_models import WINDOW, tiny_gpt2, tiny_llama
from workspace import run_script


def test_a_yarn_checkpoint_is_shown(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    yarn = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 10_000.0, "original_max_position_embeddings": WINDOW}
    model = tiny_llama(rope_parameters=yarn, max_position_embeddings=4 * WINDOW)
    model.save_pretrained(scratch / "base")
    run_script("show", "model.path=base", f"output={scratch}/out")
    printed = capsys.readouterr().out
    assert "16 rotary dimensions, base 10,000, original window 64 tokens" in printed
    assert "critical dimension 6 (pair 3)" in printed
    assert "At 256 tokens no pair meets an angle that it did not meet in training." in printed
    rows = read_table(scratch / "out" / "profile.csv")
    assert len(rows) == rotary_shape(model).rotary_dim // 2
    assert rows[0]["factor"] == 1.0
    assert rows[-1]["factor"] == pytest.approx(4.0)
    assert (scratch / "out" / "profile.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    ((up_to, scaling),) = LengthSwitch.read(scratch / "out" / "switch.json")
    assert (up_to, scaling.original_length) == (4 * WINDOW, WINDOW)


def test_the_walker_is_shown_as_plain_rope(scratch: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run_script("show", "model.path=models/walker")
    printed = capsys.readouterr().out
    assert "can be extended: yes\ncan be trained: yes\ncan be exported: yes\ncan be written as GGUF: yes\n" in printed
    assert "inputs up to 256 tokens: attention factor 1, n_hat 0" in printed
    assert "At 256 tokens no pair meets an angle that it did not meet in training." in printed


def test_a_model_that_cannot_be_extended_is_shown_with_the_reason(
    scratch: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_gpt2().save_pretrained(scratch / "base")
    with pytest.raises(SystemExit, match="GPT2LMHeadModel has no rotary position embedding"):
        run_script("show", "model.path=base", f"output={scratch}/out")
    assert "can be trained: no, GPT2LMHeadModel has no rotary position embedding" in capsys.readouterr().out


def test_a_published_table_is_shown(scratch: Path, shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = shared / "data" / "factors" / "16k_la2_128k.csv"
    run_script("show", f"show.table={table}", "show.original_length=4096", "show.target_length=16384")
    assert "128 rotary dimensions, base 10,000, original window 4,096 tokens" in capsys.readouterr().out
    lengths = {"original_length": 4096, "target_length": 16384}
    (written,) = (scratch / "outputs").rglob("factors.json")
    read = RopeScaling.from_file(written, rotary_dim=128, **lengths, key="search.starts")
    assert read == RopeScaling.from_csv(table, **lengths)


def test_a_table_without_lengths_is_refused(scratch: Path) -> None:
    with pytest.raises(SystemExit, match=r"show\.original_length must be given with show\.table"):
        run_script("show", "show.table=table.csv")


def test_pairs_beyond_the_critical_one_meet_new_angles_where_factors_are_too_small() -> None:
    plain = RopeScaling((1.0,) * 8, WINDOW, 4 * WINDOW)
    pairs = profile(plain, base=10_000.0)
    assert [pair.trained_up_to == WINDOW for pair in pairs] == [pair.plain_period > WINDOW for pair in pairs]
