"""The command `pluralllm`, for operators and observers. It imports nothing of the server.

Start reading at __main__.py.
"""
