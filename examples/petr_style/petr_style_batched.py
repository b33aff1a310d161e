# python examples/petr_style/swap.py
# petr_style.py with two types changed.
_base_ = ["./petr_style.py"]

model = dict(
    type="BatchedPETRStyleHead",
    train_cfg=dict(assigner=dict(type="BatchedHungarianAssigner3D")),
)
