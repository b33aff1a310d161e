"""Parts of ``tools/create_infos.py``: nuScenes tables in, mmdet3d v2 info entries out."""
