"""The stages from a video to the labels of an affordance function, one file each; `from_video` puts them in order.

A stage says what is asked of a video and what is kept of it: its function takes what earlier stages have found and returns a
dataclass, which is written to and read from a folder of its own; its sentences say what a user can give where it cannot go on.
How pictures are looked at (flow, structure from motion, plane sweep, networks, GrabCut) is in `afield.perception`, whose
algorithms know nothing of stages, hands-free frames or folders, and stand behind protocols where there is a choice.
"""
