"""Takes this client through private rounds, in which the coordinator learns the sum of the updates and no single update.

The package believes its own knowledge, its pins and its notebook; every message of the coordinator is checked. The package may
touch the notebooks below `private` in the state directory. The package makes no network calls.
Start reading at steps.py.
"""
