"""The commands `pluralllm experiment` and `pluralllm report`, found by the entry points of `pluralllm.commands`.

May touch: the terminal. Start reading at experiment.py.
"""
