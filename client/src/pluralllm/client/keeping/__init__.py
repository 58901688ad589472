"""Stores the state that survives a restart: updates that have no receipt yet, history of model versions, training states.

The package may touch files in the state directory.
Start reading at outbox.py.
"""
