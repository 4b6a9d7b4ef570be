"""Requests as a real model makes them, recorded by scripts/record_traffic.py and replayed with random numbers."""
