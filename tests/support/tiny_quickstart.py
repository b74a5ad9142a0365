"""The shipped quickstart workflow and the values that make it tiny."""

from __future__ import annotations

from pathlib import Path

QUICKSTART = Path(__file__).resolve().parents[2] / "workflows" / "api" / "quickstart.json"
# A mask embedding of three steps draws dim noise, so the rules for masks are off.
TINY = """
3.steps=3 3.augmented_copies=1 3.resolution=64 3.batch_size=2
4.steps=3 4.augmented_copies=1 4.resolution=64 4.batch_size=2
5.count=2 5.size=64 5.steps=2 5.threshold=0.1 5.border_rule=false
5.largest_area=1 5.smallest_area=0 5.speck_area=0 5.most_components=0
6.count=2 6.size=64 8.steps=2 8.control_samples=1 8.min_effect=0 9.min_effect=0
10.size=64 10.steps=2 10.width=4 10.runs=2 10.batch_size=2
""".split()
