"""What posterity asks of the machine. Nothing in here knows what an epoch is.

`disk` makes each call that touches a run folder. `threads` and `process_end`: our threads, and who is told when the
process ends. `parallel` has work done by all cores. `event_loop` and `reader_threads`: tasks that wait for threads.
`arrays`, `buffer_pool`, `aligned`: memory. `old_pickles`: names of earlier versions.
"""
