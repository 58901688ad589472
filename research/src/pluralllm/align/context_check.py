"""Warns about a model whose predictions do not depend on the group, or that nobody has measured.

The context gain of a version is measured by the groups of its run, and an exported model carries it in config.json. The rule
itself, `check_context_gain`, stands in common.words.context_gain.
"""

import warnings


class ContextGainWarning(UserWarning):
    """Warning that a model's predictions do not depend on the group, or that nobody has measured whether they do."""


def warn(warning: str) -> None:
    """Issues a warning of this module, once for each model and line of code; does nothing for an empty text."""
    if warning:
        warnings.warn(warning, ContextGainWarning, stacklevel=3)
