"""The stages from a video to the labels of an affordance function, one file each; `from_video` puts them in order."""
