"""`python -m spin_utils`: the command line."""

from spin_utils.cli.main import main
from spin_utils.files import processes

processes.leave(main())
