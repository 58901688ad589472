"""The preference predictor: parameters, model, episodes, embeddings, scores.

May touch: torch, except in architecture.py and metrics.py, which are numpy only because the coordinator needs them.
Start reading at model.py.
"""
