"""The Python code of a page: its fenced blocks, or the code cells of a notebook."""

import json
import re
from pathlib import Path

from support.process_harness import WIDTH

Changes = dict[str, str]
# Changes for a tiny model that lies in the folder of the test.
SENTENCES = '"sentence-transformers/all-MiniLM-L6-v2", "dimension": 768'
TINY = f'"tiny", "dimension": {2 * WIDTH}'
SIMULATION: Changes = {
    '"rounds": 30,': '"rounds": 2, "predictor": {"features": 32}, "training": {"local_steps": 2}, "evaluation": {"draws": 1},',
    SENTENCES: TINY,
    'from_pretrained("model")': 'from_pretrained("model", embedding_model_path="tiny", device="cpu")',
}
REWARD: Changes = {
    "accept_no_context_gain=True": 'accept_no_context_gain=True, embedding_model_path="tiny", device="cpu"'
}


def blocks_of(page: Path) -> list[str]:
    """Returns the fenced Python blocks of a Markdown page, or the code cells of a notebook, in order."""
    if page.suffix == ".ipynb":
        cells = json.loads(page.read_text(encoding="utf-8"))["cells"]
        return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    return re.findall(r"^```python\n(.*?)^```$", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def executed(page: Path, changes: Changes, **names: object) -> dict[str, object]:
    """Executes the code of a page, block by block in one namespace, and returns the namespace.

    changes: texts of the page, each with its replacement on this machine; each must occur. names: what the code finds there.
    An error names the block.
    """
    blocks = blocks_of(page)
    unused = [text for text in changes if not any(text in block for block in blocks)]
    assert not unused, f"{page.name} has no {unused}"
    namespace: dict[str, object] = {"__name__": page.stem, **names}
    for number, block in enumerate(blocks, 1):
        code = block
        for text, replacement in changes.items():
            code = code.replace(text, replacement)
        exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
    return namespace
