"""A registry scope of this package, `raggedbev.mm`, for names that a head compares with a fixed string.

BEVFusion's head refuses any assigner whose type is not literally 'HungarianAssigner3D'. A config keeps that type and
adds `_scope_='raggedbev.mm'`; the name is then looked up here, beside the user's own class of the same name.
"""

from mmengine.registry import TASK_UTILS as MMENGINE_TASK_UTILS
from mmengine.registry import Registry

__all__ = ["TASK_UTILS"]

TASK_UTILS = Registry("task util", parent=MMENGINE_TASK_UTILS, scope="raggedbev.mm", locations=["raggedbev.mm"])
