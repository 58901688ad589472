"""The vocabulary: ids, resource names, roles, addresses, questions, and the run spec with its presets.

May touch: nothing; pydantic checks what comes from outside. Start reading at spec.py.
"""
