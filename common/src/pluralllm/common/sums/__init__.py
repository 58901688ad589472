"""The solver of runs whose updates are terms of sums, and the files that it makes of a round's answers.

The coordinator makes each version with it. `verify` and, in private rounds, each client make the version again and compare the
bits. The package uses no torch. Start reading at solver.py.
"""
