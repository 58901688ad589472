"""Plays an experiment's units (one method with one seed each) on processes of this machine or on a cluster.

The package may start processes. It writes no result: it hands the records to the caller, who writes the files.
Start reading at units.py, which says what every engine does.
"""
