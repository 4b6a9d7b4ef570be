"""A small inference engine whose models are made of operators alone; start at `opsocket_engine.engine.Engine`."""
