"""What a trained model can do: its loss by position, on held-out text.

curve.py      losses of windows to buckets of positions, with errors; numpy alone
windows.py    which held-out text is read: windows inside single documents
position.py   the losses themselves: models over windows
"""
