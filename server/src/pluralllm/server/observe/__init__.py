"""Shows the coordinator's state: Prometheus gauges and the page for people. Reads only.

May touch: HTTP on loopback, the Prometheus registry.
Start reading at page_facts.py, which is pure.
"""
