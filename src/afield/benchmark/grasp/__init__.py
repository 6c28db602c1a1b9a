"""The grasp benchmark: the tables of the attention-field paper, in physics."""

from afield.benchmark.grasp.run import GraspBenchConfig as GraspBenchConfig
from afield.benchmark.grasp.run import run as run
