# The README's run: a small model of one book in about four minutes on two CPU cores. What is here is what got a small model off the
# unigram plateau soonest: few layers, QK norm, short rotary wavelengths, small batches, few masks before many.
n_layer = 2                # two layers learn neighbours sooner than four in the same time
n_head = 3
n_embd = 192
block_size = 128
rope_base = 100.0          # all wavelengths shorter than the rows: positions nearby are told apart at once
dropout = 0.1              # a short book is seen many times

learning_rate = 1e-3
batch_size = 4             # steps count more than tokens
grad_accum = 1
warmup_steps = 100
carry_over = True          # one cosine over both stages

stages = [                 # few masks first, then the range that sampling needs; the whole text in both
    {"name": "few masks", "data": "stage3", "mask_rate": [0.05, 0.5], "replay": 0.0, "epochs": 1000, "max_steps": 1600, "lr_factor": 1.0},
    {"name": "all masks", "data": "stage3", "mask_rate": [0.0, 1.0], "replay": 0.0, "epochs": 1000, "max_steps": 4000, "lr_factor": 1.0},
]
eval_interval = 400
