"""The vocabulary: ids, resource names, roles, addresses, questions, and the run spec with its presets.

The package may read its own presets and the spec files that it is given, and nothing else; pydantic checks values from outside.
Start reading at spec.py.
"""
