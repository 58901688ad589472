"""Weights and updates as files: safetensors layouts, encodings, and chunks addressed by digest.

May touch: files. Start reading at layout.py.
"""
