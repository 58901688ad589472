"""Keeps the state that must survive a stop: finished updates until their receipt, the chain of versions, training states.

May touch: files in the state directory.
Start reading at outbox.py.
"""
