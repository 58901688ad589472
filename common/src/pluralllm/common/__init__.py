"""Code that the coordinator, the client and the operator's command share.

The package is light to import: only some modules of the inner package `predictor` import torch.
"""

__version__ = "0.3.0"  # of all distributions; a test compares it with each pyproject.toml
