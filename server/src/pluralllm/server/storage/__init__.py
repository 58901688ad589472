"""Remembers: the database, the blobs, and what they promise when a process or a disk fails.

May touch: the database, files and the object store. It decides nothing about rounds or members.
Start reading at store.py and blobs.py, the two protocols that the other rooms use.
"""
