"""`python -m spin_utils`: the command line."""

import sys

from spin_utils.cli import main

sys.exit(main())
