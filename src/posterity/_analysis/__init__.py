"""What the chains say, in numbers and in pictures.

`components` reads parameters one after the other, for runs larger than memory; `summaries`, with ESS and R-hat of
arviz-stats'; `plots`.
"""
