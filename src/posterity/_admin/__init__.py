"""Looking after run folders: nothing in here needs the process that writes them.

`run_info`: what a run is; `follow`: how it grows; `verify`, `repair`, `compact`.
"""
