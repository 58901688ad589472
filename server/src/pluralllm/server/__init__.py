"""The coordinator: rounds over gRPC, durable and bit-reproducible.

Rooms, inward to outward: rounds decides; aggregation calculates; storage remembers; members admits; runs joins them; rpc answers;
observe shows; commands are typed by the operator; process is the ground of all. Nothing here imports torch or the client.
Start reading at rounds/machine.py, then runs/coordinator.py; composition.py joins the rooms.
"""
