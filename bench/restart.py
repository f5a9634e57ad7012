"""Restart of a set of 200,000 x 384 to the first answered search: a table, and a CSV row for each
point. usage: restart.py [N [DIM]]"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests" / "crash"))
from test_restart import measure

n = int(sys.argv[1]) if len(sys.argv) > 1 else 200000
dim = int(sys.argv[2]) if len(sys.argv) > 2 else 384
print(f"restart to the first search, {n} x {dim}, default settings")
for what, seconds in measure(n, dim, 1, show=lambda text: None).items():
    print(f"  {what:40} {seconds:8.3f} s")
    print(f"csv,restart,{n},{dim},{what.strip('()').replace(',', '')},{seconds:.4f}")
