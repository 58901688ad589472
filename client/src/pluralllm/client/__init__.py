"""The partner's daemon and its data; nothing that a partner does not run.

Rooms: joining makes an identity; data reads the private file; link talks to the coordinator; keeping holds what must survive a
stop; work trains in a process of its own; daemon joins them; process is the ground of all.
Nothing here imports the server, the operator's command or research.
Start reading at daemon/daemon.py.
"""
