"""MuJoCo worlds and the grasp test."""

from afield.simulate.grasp_test import GraspTest as GraspTest
from afield.simulate.grasp_test import GraspTestConfig as GraspTestConfig
from afield.simulate.grasp_test import simulate_grasp as simulate_grasp
from afield.simulate.rehearse import rehearse as rehearse
from afield.simulate.world import World as World
from afield.simulate.world import build_world as build_world
from afield.simulate.world import world_from_capture as world_from_capture
from afield.simulate.world import world_from_scene as world_from_scene
