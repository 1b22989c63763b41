"""Requests to models: their bodies, parsed and checked."""
