"""Keeps what must survive a stop: finished updates until they are acknowledged, the chain of versions, drafts of training state.

May touch: files in the state directory.
Start reading at outbox.py.
"""
