"""The preference predictor: its parameters, model, training episodes, text embeddings and scores.

May touch: torch, except in architecture.py and metrics.py, which are numpy only because the coordinator needs them.
Start reading at model.py.
"""
