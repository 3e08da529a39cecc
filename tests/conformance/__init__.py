"""Replays recorded cases against the product's own entry points. Translates forms; decides nothing.

`python -m tests.conformance` prints one row a suite and writes `build/conformance.json`.
"""
