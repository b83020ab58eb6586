"""The classification benchmark: what is trained and deleted, and how methods are compared."""
