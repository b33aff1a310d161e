"""Synthetic driving scenes in the nuScenes format.

In: a seed, a number of scenes and of keyframes. Out: a data root with tables, camera images and lidar sweeps.

`layout` builds a world and moves it, `models` and `textures` say what things look like, `rig` holds the sensors,
`scenery` paints ground and sky, `render` and `lidar` observe one frame, `tables` writes the records and `build`
runs the whole job on several processes. `geometry` has the few rotations they share.
"""
