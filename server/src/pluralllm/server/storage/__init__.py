"""Stores the coordinator's data in a database and a blob store, safe against the failure of a process or a disk.

The package may touch the database, files and the object store. It makes no decision about rounds or members.
Start reading at store.py and blobs.py, the two protocols that the other packages use.
"""
