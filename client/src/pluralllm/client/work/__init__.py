"""Trains and evaluates the predictor, and scores rollouts, in a worker process that the daemon controls through a pipe.

In the worker process, the package may touch torch and the private data. In the daemon, the package only writes orders and reads
results.
Start reading at orders.py (the orders and their results), then worker.py and train.py. embedding_pool.py embeds beforehand, by
processes of its own.
"""
