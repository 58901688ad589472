"""The coordinator: a pure round machine in thin asyncio shells."""
