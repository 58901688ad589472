"""The commands `pluralllm model export`, `model serve`, `score` and `pairs`, as entry points of `pluralllm.commands`.

The package may touch the terminal and everything that pluralllm.align touches. Start reading at model.py.
"""
