"""The registry of samplers: light, complete, and open to a package from outside."""

import subprocess
import sys
from pathlib import Path

import pytest
from optuna.samplers import BaseSampler

from ropewalk.config import SearchConfig
from ropewalk.search.samplers import SAMPLERS, Sampler
from ropewalk.search.space import FactorEncoding, KnotEncoding
from tiny_runs import SPACE
from workspace import ROOT, environment


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_every_sampler_is_made_from_its_entry(name: str) -> None:
    entry = SAMPLERS[name]
    encoding = KnotEncoding(SPACE) if entry.encoding == "knots" else FactorEncoding(SPACE)
    assert entry.name == name
    assert isinstance(entry.make(encoding, SearchConfig(name="tiny"), 0, ()), BaseSampler)


def test_two_samplers_of_one_name_are_refused() -> None:
    SAMPLERS.register(SAMPLERS["tpe"])
    with pytest.raises(ValueError, match="the name tpe is registered already"):
        SAMPLERS.register(Sampler("tpe", "mine:tpe"))


def run(code: str, folder: Path) -> str:
    variables = environment(ROOT)
    variables["PYTHONPATH"] = f"{folder}:{ROOT / 'src'}"
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_names_are_known_without_torch_and_optuna(tmp_path: Path) -> None:
    code = "import sys, ropewalk.search.samplers; print({'torch', 'optuna'} & set(sys.modules))"
    assert run(code, tmp_path) == "set()"


def test_a_package_from_outside_adds_a_sampler(tmp_path: Path) -> None:
    (tmp_path / "plugin.py").write_text(
        "from ropewalk.search.samplers import Sampler\n"
        "def grid(encoding, config, seed, first_points):\n"
        "    return 'made'\n"
        "entry = Sampler('grid', grid, encoding='knots')\n"
    )
    metadata = tmp_path / "plugin-1.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (metadata / "entry_points.txt").write_text("[ropewalk.samplers]\ngrid = plugin:entry\n")
    code = "from ropewalk.search.samplers import SAMPLERS; print(SAMPLERS['grid'].make(None, None, 0, ()))"
    assert run(code, tmp_path) == "made"
    # Also where the package is imported first.
    assert run("import plugin\n" + code, tmp_path) == "made"
