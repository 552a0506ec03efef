"""`python -m spin_utils`: the command line."""

from spin_utils import processes
from spin_utils.cli import main

processes.leave(main())
