"""Weights and updates as files: safetensors layouts, encodings, and chunks addressed by digest.

The package may read and write files. Start reading at layout.py.
"""
