"""`python -m s2l_ray`: the command `s2l`."""

import sys

from s2l_ray.cli import main

sys.exit(main())
