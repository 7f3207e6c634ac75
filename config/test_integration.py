# The whole path, all three stages with their windows and replay, inside 30 seconds on two CPU cores.
n_layer, n_head, n_embd = 2, 2, 64
block_size = 64
batch_size, grad_accum = 8, 2
learning_rate = 3e-3
for _stage, _steps in zip(stages, (20, 20, 60)):
    _stage["epochs"], _stage["max_steps"] = 100, _steps
eval_interval = 20
eval_masks = 128
sample_tokens = 32
