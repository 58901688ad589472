"""Shows the coordinator's state as Prometheus gauges and as a web page. The package changes no state.

The package may touch HTTP on a loopback address and the Prometheus registry.
Start reading at page_facts.py, which does no input or output.
"""
