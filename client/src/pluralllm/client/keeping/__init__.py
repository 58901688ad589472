"""Stores the state that must survive a stop: updates without a receipt, the history of model versions, training states.

The package may touch files in the state directory.
Start reading at outbox.py.
"""
