"""What posterity asks of the machine. Nothing in here knows how a run is stored.

`disk` makes each call that touches a run folder. `threads`: those of ours; `process_end` tells them when nobody hands
over any more. `parallel` has work done by all cores. `event_loop` and `reader_threads`: tasks that wait for threads.
`arrays`, `buffer_pool`, `aligned`: memory. `old_pickles`: names of earlier
versions. `uncopyable`: what owns something of the system.
"""
