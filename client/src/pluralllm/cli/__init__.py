"""The command `pluralllm`, for the administrators and observers of a federation.

The package imports nothing of the server and nothing of research. The package may touch the terminal and the identity folder (a
person's key and certificate); it calls the coordinator through the package `operator`.
Start reading at __main__.py.
"""
