"""Code that the coordinator, the client and the operator's command share.

It is light to import: only some modules of the room `predictor` import torch.
"""

__version__ = "0.1.0"
