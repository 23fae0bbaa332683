"""A run that is written: two faces, and the threads around one lock.

`blocking` and `awaited` are the faces, `service` is the open run, `hand_over` the rule by which epochs come in.
`ledger` is all that threads share, with its parts `admission`, `pins`, `wakers`, `run_schema`, `write_failures`,
`device_progress`. `writer` and `device_fetcher` work behind the sampler. `receipts`, `status`, `monitor`, `waiting`,
`sigterm`: what is told, and who waits for it.
"""
