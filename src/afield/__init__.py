"""One demonstration, repeated elsewhere: one-shot transfer of grasps and skills through neural fields."""

from afield import threads as threads
from afield.demonstration import Demonstration as Demonstration
from afield.demonstration import demonstrate as demonstrate
from afield.errors import AfieldError as AfieldError
from afield.fusion import build_scene as build_scene
from afield.hand import Hand as Hand
from afield.hand import hand_by_name as hand_by_name
from afield.observation import Camera as Camera
from afield.observation import Observation as Observation
from afield.observation import View as View
from afield.pipeline import scene_from_capture as scene_from_capture
from afield.pretrain import FieldModel as FieldModel
from afield.pretrain import train_field as train_field
from afield.result import Grasp as Grasp
from afield.run import Run as Run
from afield.scene import Scene as Scene
from afield.transfer import TransferConfig as TransferConfig
from afield.transfer import transfer_grasp as transfer_grasp
