"""An epoch checked and owned, on its way in.

`prepare` checks what a sampler hands over; its `Prepared` makes an epoch that is `owned`: that is the copy. `cost`
estimates beforehand how long that takes. `template` recognises epochs that are built alike. `device` takes over, cuts
and fetches arrays of JAX's. `jexplore` knows how to take its epochs without waiting.
"""
