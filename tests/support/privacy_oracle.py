"""Makes the table of exact privacy losses that the tests compare the accountant with. The tests read the table, not this module.

Google's library dp-accounting computes the table. The project does not need the library, so it is in no extra and no lock file:

    python -m venv oracle && oracle/bin/pip install dp-accounting==0.6.0
    oracle/bin/python tests/support/privacy_oracle.py tests/unit/client/privacy/exact_losses.json

Each row is the privacy loss of one respondent whose answers are in all the counts: discrete Gaussian noise of the standard
deviation `sigma` on each of so many questions, each of which the respondent changes by 1. A row may have several releases.
The library rounds the distribution of the loss up (at_most) or down (at_least), so the exact epsilon is between the two numbers.
The noise of the table is a whole number of answers; a release draws parts of 1/1024, which matters for smaller sigmas only.
"""

import importlib.metadata
import json
import sys
from pathlib import Path

from dp_accounting.pld import privacy_loss_distribution  # type: ignore[import-not-found]

INTERVAL = 1e-5  # to which the library rounds losses; small beside every epsilon of the table
DELTAS = (1e-6, 1e-9)
# Releases of a row: pairs of sigma and number of questions.
ROWS: tuple[tuple[tuple[float, int], ...], ...] = (
    ((3.0, 1),),
    ((12.0, 1),),
    ((4.0, 10),),
    ((15.0, 50),),
    ((40.0, 50),),
    ((12.5, 100),),
    ((24.0, 100),),
    ((45.0, 100),),
    ((22.0, 300),),
    ((80.0, 300),),
    ((9.0, 10), (6.0, 10)),
    ((60.0, 300), (25.0, 40)),
)


def epsilon(releases: tuple[tuple[float, int], ...], delta: float, *, rounds_up: bool) -> float:
    """Returns epsilon at `delta` after all releases."""
    together = None
    for sigma, questions in releases:
        one = privacy_loss_distribution.from_discrete_gaussian_mechanism(
            sigma=sigma, sensitivity=1, pessimistic_estimate=rounds_up, value_discretization_interval=INTERVAL
        ).self_compose(questions)
        together = one if together is None else together.compose(one)
    assert together is not None
    return float(together.get_epsilon_for_delta(delta))


def main() -> None:
    rows = [
        {
            "releases": releases,
            "delta": delta,
            "at_least": epsilon(releases, delta, rounds_up=False),
            "at_most": epsilon(releases, delta, rounds_up=True),
        }
        for releases in ROWS
        for delta in DELTAS
    ]
    made_by = f"dp-accounting {importlib.metadata.version('dp-accounting')}, tests/support/privacy_oracle.py"
    lines = ",\n".join(f"    {json.dumps(row)}" for row in rows)
    Path(sys.argv[1]).write_text(f'{{\n  "made_by": "{made_by}",\n  "rows": [\n{lines}\n  ]\n}}\n')


if __name__ == "__main__":
    main()
