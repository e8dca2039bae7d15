"""Programs that measure: `python -m benchmarks.NAME --help`. Their tables are in results/.

attention       time and memory of one attention call, beside dense attention and other sparse kernels
compile_report  registers, spills and shared memory of every Triton launch, without a GPU
gpu             correctness, launches, speed and planning on a GPU, in minutes
planning        time and memory of a plan, beside the dense attention it replaces
quality         distance to dense attention at equal density: made-up and captured tensors, whole videos
calibration     what a calibration brings on unseen prompts, beside one density for all and a random allocation
guidance        time of a clip guided by heads, beside an unguided one
hunt            what searches for heads find, and what they cost
memory          what many runs of the demo leave behind in one process
"""

from pathlib import Path

RESULTS = Path(__file__).with_name("results")
