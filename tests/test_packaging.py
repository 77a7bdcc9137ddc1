"""The package imports fast, and wheel and sdist build and install."""

import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest

from workspace import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def python(*arguments: str | Path, interpreter: str | Path = sys.executable, cwd: Path, **more: str) -> str:
    """Standard output of a Python process that ends well."""
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        (interpreter, *arguments), cwd=cwd, env={**environment, **more}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_ropewalk_imports_nothing_heavy(tmp_path: Path) -> None:
    """Not by the clock, which depends on the machine: what takes time is other packages."""
    code = "import sys; before = set(sys.modules); import ropewalk; print(*(set(sys.modules) - before))"
    tops = {name.split(".")[0] for name in python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT / "src")).split()}
    assert "ropewalk" in tops
    assert tops - {"ropewalk"} <= set(sys.stdlib_module_names)


def test_the_changelog_begins_with_the_version_at_hand() -> None:
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert versions[0] == PROJECT["version"]
    assert len(set(versions)) == len(versions)


IN_A_NEW_ENVIRONMENT = """
import sys, importlib.metadata, importlib.resources
import ropewalk
assert ropewalk.__file__.startswith(sys.prefix), ropewalk.__file__
assert "torch" not in sys.modules
assert ropewalk.__version__ == importlib.metadata.version("ropewalk") == sys.argv[1]
from transformers import LlamaConfig, LlamaForCausalLM
from ropewalk.rope import extend, methods, rotary_shape
sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 64}
model = LlamaForCausalLM(LlamaConfig(max_position_embeddings=64, **sizes))
extend(model, methods.yarn(rotary_dim=16, base=10_000.0, original_length=64, target_length=256))
print(rotary_shape(model).original_length)
"""


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_wheel_and_sdist_build_and_install_into_an_empty_environment(tmp_path: Path) -> None:
    """Empty but for the dependencies, which it borrows from this environment by its path."""
    pytest.importorskip("build", reason="the extra dev is not installed")
    # From a copy, since setuptools builds in the source tree.
    source = tmp_path / "source"
    tracked = subprocess.run(("git", "ls-files"), cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    for name in tracked:
        if not name.startswith(("tests/", "benchmarks/")):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    paths = {name: os.environ[name] for name in ("PYTHONPATH",) if name in os.environ}
    # The wheel is built from the sdist.
    python("-m", "build", "--no-isolation", "--outdir", tmp_path / "dist", source, cwd=tmp_path, **paths)
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    (sdist,) = (tmp_path / "dist").glob("*.tar.gz")

    package = {name.removeprefix("src/") for name in tracked if name.startswith("src/ropewalk/")}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if name.startswith("ropewalk/")} == package
    with tarfile.open(sdist) as files:
        inside = {name.partition("/")[2] for name in files.getnames()}
    for name in ("conf/config.yaml", "pipelines/base.py", "models/walker/config.json", "dvc.yaml", "CHANGELOG.md"):
        assert name in inside

    python("-m", "venv", "--without-pip", tmp_path / "env", cwd=tmp_path)
    interpreter = tmp_path / "env" / "bin" / "python"
    pip = ("-m", "pip", "--python", interpreter, "install", "--quiet", "--no-deps", "--no-index")
    python(*pip, wheel, cwd=tmp_path)
    home = python("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", interpreter=interpreter, cwd=tmp_path)
    # A path alone: this environment's own links, to the sources, are not followed.
    (Path(home.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    output = python("-c", IN_A_NEW_ENVIRONMENT, PROJECT["version"], interpreter=interpreter, cwd=tmp_path)
    assert output.split() == ["64"]
