"""The decisions about a run: the round machine as one pure function, and the values that this function works on.

The package may touch nothing: no clock, no disk, no network and no numpy. It imports only common.words and common.errors.
Start reading at machine.py: its transition table is the whole protocol of a round.
"""
