"""Scoring a corpus with Ray Data: parquet in, parquet out, a worker a device. `docs/batch.md` explains it.

`cli` is all that is imported before the command runs; what it calls needs the extra `ray`.
"""
