"""The decisions about a run: the round machine as one pure function, and the values that this function works on.

The package touches no clock, disk, network or numpy. It imports only common.words and common.errors.
Start reading at machine.py: its transition table is the whole protocol of a round.
"""
