# Three epochs in seconds: does everything run?
n_layer, n_head, n_embd = 2, 2, 64
block_size = 64
batch_size, grad_accum = 16, 1
for _stage in stages:
    _stage["epochs"], _stage["max_steps"] = 1, 20
eval_interval = 20
eval_masks = 64
sample_tokens = 16
