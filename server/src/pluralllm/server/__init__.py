"""The coordinator: runs rounds with the clients over gRPC. All results are durable and reproducible bit for bit.

The packages, from the inside out: `rounds` decides. `process` holds what the other packages use. `storage` keeps the state.
`aggregation` calculates. `members` admits members. `runs` joins the packages before it. `rpc` answers calls. `observe` shows the
state. `commands` holds the operator's commands. The server imports neither torch nor the client.
Start reading at rounds/machine.py, then at runs/coordinator.py. composition.py joins the packages.
"""
