"""The coordinator: runs rounds with the clients over gRPC. All results are durable and reproducible bit for bit.

The packages, from the inside out: `rounds` makes the decisions about a run. `process` holds the configuration, the metrics
and other parts that all packages use. `storage` keeps the state in a database and a blob store. `aggregation` calculates
model versions. `members` admits members and checks their calls. `runs` holds the loop that drives all runs. `rpc` answers
the calls of clients and operators. `observe` shows the state as metrics and as a web page. `commands` holds the operator's
commands. The server imports neither torch nor the client's package.
Start reading at rounds/machine.py, then at runs/coordinator.py. composition.py connects the packages.
"""
