"""Makes texts safe to show, and says which texts may be names of groups. The package is pure and imports nothing of this project.

Start reading at printable.py.
"""
