"""The generated code is what the compiler makes from protos/ now."""

import importlib.util
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]


def test_generated_code_is_not_stale(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("generate", REPOSITORY / "protos" / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(tmp_path)
    fresh = {path.name: path.read_bytes() for path in (tmp_path / "pluralllm" / "v1").iterdir()}
    folder = REPOSITORY / "common" / "src" / "pluralllm" / "v1"
    committed = {path.name: path.read_bytes() for path in folder.iterdir() if path.name in fresh}
    stale = sorted(name for name in fresh if fresh[name] != committed.get(name))
    assert not stale, "run `make protos`"
    assert {path.name for path in folder.glob("*_pb2*")} == fresh.keys(), (
        "run `make protos`, and delete what is left over"
    )
