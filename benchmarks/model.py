"""Which model a benchmark is of: the walker, which lies in the repository, or another one with a folder of texts."""

import argparse
import os


def add_options(parser: argparse.ArgumentParser) -> None:
    """--model and --texts; ROPEWALK_BENCH_MODEL and ROPEWALK_BENCH_TEXTS stand for them."""
    parser.add_argument("--model", default=os.environ.get("ROPEWALK_BENCH_MODEL", "walker"), help="walker or NAME=PATH")
    parser.add_argument("--texts", default=os.environ.get("ROPEWALK_BENCH_TEXTS"), help="folder of .txt files")


def chosen(parser: argparse.ArgumentParser, options: argparse.Namespace) -> tuple[str, str, str]:
    """(name, path, folder of texts); both empty for the walker."""
    name, _, path = options.model.partition("=")
    if name == "walker":
        return name, "", ""
    if not path or not options.texts:
        parser.error("a model other than the walker needs --model NAME=PATH and --texts FOLDER")
    return name, path, options.texts
