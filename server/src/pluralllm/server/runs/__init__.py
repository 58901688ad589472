"""The coordinator's loop: it brings events to the round machine and carries out the effects that the round machine decides.

The round machine (rounds/machine.py) is the pure state machine of a run.
The package may touch the store, the blobs and the clock. It holds the runs in memory.
Start reading at coordinator.py (the loop). Then read live_run.py (one run), intake.py (receipt of an update) and what_now.py (the
answer to a poll). assembly.py makes these objects once, and the composition root (composition.py) passes the objects to the
other packages.
"""
