"""The program that a partner runs: the daemon, its commands, and all code that handles the partner's private data.

Rooms: joining makes an identity; data reads the private file; link talks to the coordinator; keeping stores what must survive a
stop; work trains in a process of its own; daemon joins them; process holds the configuration and the metrics of them all.
Nothing here imports the server, the operator's command or research.
Start reading at daemon/daemon.py.
"""
