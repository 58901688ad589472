"""Calculates the next model version from a round's updates, slice by slice, in a fixed order: the same bits each time.

May touch: it reads files and the blob store, and writes drafts. It decides nothing about rounds.
Start reading at arithmetic.py (pure), then next_version.py.
"""
