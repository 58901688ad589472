"""The commands `pluralllm experiment` and `pluralllm report`, as entry points of `pluralllm.commands`.

The package may touch the terminal, files of results, and the coordinator through pluralllm.operator.
Start reading at experiment.py.
"""
