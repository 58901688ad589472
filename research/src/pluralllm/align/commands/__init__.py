"""The commands `pluralllm model`, `score` and `pairs`, found by the entry points of `pluralllm.commands`.

May touch: the terminal. Start reading at model.py.
"""
