"""Joins the machine to the world: carries events to the round machine and carries its effects out.

May touch: the store, the blobs, the clock. It holds the runs in memory.
Start reading at coordinator.py (the loop), then live_run.py (one run), intake.py (an update arrives) and what_now.py (the answer
to a poll). assembly.py makes the objects once; the composition root hands them out.
"""
