"""The wire decoders under libFuzzer (atheris): python tests/fuzz/wire_target.py [--planted] [libFuzzer options] [corpus folders].

With the file of an input instead of a folder, it tries that input again. --planted adds a bug, to check that bugs are found.
"""

import sys
from pathlib import Path

import atheris

sys.path.insert(0, str(Path(__file__).parents[1]))
with atheris.instrument_imports(include=["pluralllm"]):
    from fuzz import wire_decoders

PLANTED = "--planted"


class PlantedBug(Exception):
    """The exception of a decoder that forgot a case."""


def forgetful(given: bytes) -> None:
    wire_decoders.decode(given)
    if given[1:3] == b"\x0a\x00":  # a first field that is there and empty; no seed has one
        raise PlantedBug


def main() -> None:
    target = forgetful if PLANTED in sys.argv else wire_decoders.decode
    atheris.Setup([argument for argument in sys.argv if argument != PLANTED], atheris.instrument_func(target))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
