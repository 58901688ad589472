"""The commands `pluralllm model export`, `model serve`, `score` and `pairs`, as entry points of `pluralllm.commands`.

May touch: the terminal, and what pluralllm.align touches. Start reading at model.py.
"""
