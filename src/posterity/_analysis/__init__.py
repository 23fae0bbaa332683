"""What the chains say, in numbers and in pictures.

`components` reads parameters one after the other, for runs larger than memory; `summaries`, `plots`.
"""
