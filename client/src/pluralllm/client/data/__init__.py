"""Reads, checks and imports the private data of a partner, and recognises it in texts that must not contain it.

May touch: the partner's files. It knows no network.
Start reading at private_data.py.
"""
