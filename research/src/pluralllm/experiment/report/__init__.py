"""Shows results as a page: figures, tables and findings of an experiment or of a live run.

May touch: matplotlib and files; no torch, no gRPC.
Start reading at experiment.py and live_page.py, the two pages.
"""
