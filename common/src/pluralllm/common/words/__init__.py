"""The vocabulary: ids, resource names, roles, addresses, questions, and the run spec with its presets.

The package may read its own presets and the spec files that a caller names, but no other file. Pydantic checks values from
outside. Start reading at spec.py.
"""
