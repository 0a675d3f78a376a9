"""Puts this directory on the path, so that test directories can share `footprint`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
