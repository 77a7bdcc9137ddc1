"""llama-cpp-python from source, for the test that compares a GGUF export with it: ``make llama``.

Only what that test loads is built: llama.cpp's library for the CPU, without its tools, server and common code, and
with little optimisation, since the model is small. A few minutes on two cores.
"""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

from workspace import ROOT

PLACE = Path(os.environ.get("ROPEWALK_LLAMA_CPP") or ROOT / "work" / "llama_cpp")
_PACKAGE, _VERSION = "llama-cpp-python", "0.3.36"
_OFF = (
    "GGML_NATIVE GGML_OPENMP GGML_LLAMAFILE GGML_CPU_REPACK GGML_ALL_WARNINGS LLAMA_ALL_WARNINGS LLAMA_OPENSSL "
    "LLAMA_BUILD_COMMON LLAMA_BUILD_TESTS LLAMA_BUILD_EXAMPLES LLAMA_BUILD_TOOLS LLAMA_BUILD_SERVER LLAMA_BUILD_APP"
).split()
_OPTIONS = (
    "-DCMAKE_BUILD_TYPE=Release",
    "-DCMAKE_CXX_FLAGS_RELEASE=-O1 -DNDEBUG",
    "-DCMAKE_C_FLAGS_RELEASE=-O2 -DNDEBUG",
    "-DBUILD_SHARED_LIBS=ON",
    *(f"-D{option}=OFF" for option in _OFF),
)


def environment() -> dict[str, str] | None:
    """For a child process that imports llama_cpp; None where it is not built."""
    source, library = _source(), _library()
    if not (source.is_dir() and library.exists()):
        return None
    paths = (str(source), os.environ.get("PYTHONPATH", ""))
    return {
        **os.environ,
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
        "LLAMA_CPP_LIB_PATH": str(library.parent.resolve()),
    }


def build() -> None:
    """Fetch and compile into PLACE what is not there yet; an interrupted build resumes."""
    if shutil.which("cmake") is None or not any(shutil.which(name) for name in ("c++", "g++", "clang++")):
        sys.exit("llama: building llama.cpp needs cmake and a C++ compiler; apt-get install cmake g++")
    if not _source().is_dir():
        _fetch()
    made = PLACE / "build"
    subprocess.run(("cmake", "-S", _source() / "vendor" / "llama.cpp", "-B", made, *_OPTIONS), check=True)
    jobs = str(os.cpu_count() or 1)
    subprocess.run(("cmake", "--build", made, "--target", "llama", "--parallel", jobs), check=True)


def _source() -> Path:
    return PLACE / f"{_PACKAGE.replace('-', '_')}-{_VERSION}"


def _library() -> Path:
    suffix = "dylib" if sys.platform == "darwin" else "so"
    return PLACE / "build" / "bin" / f"libllama.{suffix}"


def _fetch() -> None:
    PLACE.mkdir(parents=True, exist_ok=True)
    fetch = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", _PACKAGE)
    subprocess.run((*fetch, "--dest", PLACE, f"{_PACKAGE}=={_VERSION}"), check=True)
    (archive,) = PLACE.glob("*.tar.gz")
    aside = PLACE / "unpacked"
    shutil.rmtree(aside, ignore_errors=True)
    with tarfile.open(archive) as files:
        files.extractall(aside, filter="data")
    (aside / _source().name).rename(_source())
    archive.unlink()


if __name__ == "__main__":
    build()
