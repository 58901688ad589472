"""The program that a partner runs: the daemon, its commands, and all code that handles the partner's private data.

Its packages: `joining` makes an identity. `data` reads the private file. `link` calls the coordinator. `disclosure` decides
what may leave this machine. `keeping` stores the state that must survive a restart. `work` trains in a separate process.
`daemon` joins these packages. `process` holds the configuration and the metrics of all these packages.
The package imports nothing of the server, of the operator's command line or of research.
Start reading at daemon/daemon.py.
"""
