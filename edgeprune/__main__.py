"""`python -m edgeprune`, which `accelerate launch -m edgeprune` needs."""

import sys

from edgeprune.cli import main

sys.exit(main())
