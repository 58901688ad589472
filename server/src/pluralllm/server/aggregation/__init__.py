"""Calculates the next model version from a round's updates, slice by slice, in a fixed order: the same bits each time.

May touch: files and the blob store, read; drafts, written. It decides nothing about rounds.
Start reading at arithmetic.py (pure), then next_version.py.
"""
