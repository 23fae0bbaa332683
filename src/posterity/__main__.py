"""`python -m posterity`: the command line, where the script `posterity` isn't on the path."""

import sys

from ._cli import main

sys.exit(main())
