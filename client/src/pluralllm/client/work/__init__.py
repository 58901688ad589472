"""Trains, evaluates and rewards, in a process of its own at the other end of a pipe.

May touch: torch and the private data, in the worker process; the daemon's side only writes orders and reads results.
Start reading at orders.py (the orders and their results), then worker.py and train.py.
"""
