"""Decides what happens in a run: the round machine as one pure function, and what it needs to decide.

May touch: nothing. No clock, no disk, no network, no numpy; only common.words and common.errors.
Start reading at machine.py: its transition table is the whole protocol of a round.
"""
