"""From a trained model to the same with weights of few bits: which codes to choose, and what the choice costs.

sites.py        the matrices of a model, by what they read, and where a scale of their inputs can be moved to
calibration.py  real text on its way through the layers, and what is kept of every matrix's inputs
clip.py, gptq.py, awq.py  the methods: pure functions from a matrix and its inputs to a QuantizedWeight
run.py          a whole model, layer by layer
mixed.py        bits by sensitivity under a budget; aware.py: training that knows of the rounding
measure.py      loss and agreement beside the original's; report.py: all that is told of it

What the formats are, and the modules that multiply by them, is model/quantized.py's; the file is weights/'s.
"""
