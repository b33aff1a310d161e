"""What the loss benchmark works on: a seed or an info file in, ground truth, predictions and the versions to time out.

`generate` makes objects and predictions, `infos` reads objects from an info file, `losses` is a training step's loss
work in every version. Tools and benchmarks import this; the package itself does not.
"""
