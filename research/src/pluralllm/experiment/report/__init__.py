"""Shows results as a page: figures, tables and findings of an experiment or of a live run.

The package may touch matplotlib and files; it uses neither torch nor gRPC.
Start reading at experiment.py and live_page.py, which build the two pages.
"""
