"""`python -m torafugu.cli`."""

import sys

from . import main

sys.exit(main())
