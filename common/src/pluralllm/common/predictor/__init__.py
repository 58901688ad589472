"""The preference predictor: its parameters, model, training episodes, text embeddings and scores.

The package may import torch, except in architecture.py and metrics.py: the coordinator needs these two modules and has no torch.
Start reading at interface.py.
"""
