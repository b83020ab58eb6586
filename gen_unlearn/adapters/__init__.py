"""Adapter ensembles: many small heads on a frozen backbone, each fit on the few images routed to it."""
