"""The command `pluralllm`, for operators and observers. It imports nothing of the server and nothing of research.

May touch: the terminal, the identity's folder, and the coordinator through `operator`. Start reading at __main__.py.
"""
