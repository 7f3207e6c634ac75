# Composes with any preset, for a GPU of 8 GB: python train.py config/tiny_125m.py config/memory_efficient.py
grad_accum = batch_size * grad_accum     # the same effective batch ...
batch_size = 1                           # ... one example at a time
checkpointing = True                     # activations are computed again in backward
