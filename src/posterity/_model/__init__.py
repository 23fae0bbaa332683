"""What a run is, and what should happen next: pure functions of frozen values. Nothing in here waits or writes.

`registry`: what a run consists of, and each way in which that can change. `policy`: what memory and disk need next.
`states`: of a backend. `metadata`: what the numbers mean. `options`: what a backend can be told. `file_names`;
`bounds` of numbers.
"""
