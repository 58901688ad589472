"""Calculates the next model version from a round's updates, slice by slice, in a fixed order: equal inputs give equal bits.

A slice is a range of the model's values. The package may read files and the blob store, and it writes drafts (files that are
not yet in the store). It makes no decision about rounds.
Start reading at arithmetic.py (pure), then next_version.py.
"""
