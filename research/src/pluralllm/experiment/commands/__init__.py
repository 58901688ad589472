"""The commands `pluralllm experiment` and `pluralllm report`, as entry points of `pluralllm.commands`.

May touch: the terminal, files of results, and the coordinator through `operator`. Start reading at experiment.py.
"""
