# The README's run: a small model of one book in four and a half minutes on a CPU. What is here is what
# learnt most in that time; tests/compare.py takes the parts away one by one.
n_layer = 2                # two layers learn neighbours sooner than four in the same time
n_head = 3
n_embd = 192
block_size = 128
rope_base = 100.0          # all wavelengths shorter than the rows: positions nearby are told apart at once
dropout = 0.1              # a short book is seen many times

learning_rate = 1e-3
batch_size = 4             # steps count more than tokens
grad_accum = 1
carry_over = True          # one warm-up and cosine over all stages

# Simple sentences, then linked pairs, both with few masks, for those are learnt soonest; then all of the text
# in the full range of mask rates, which sampling needs.
for _stage, _steps in zip(stages, (180, 540, 3780)):
    _stage["mask_rate"], _stage["replay"] = [0.05, 0.5], 0.0
    _stage["epochs"], _stage["max_steps"], _stage["lr_factor"] = 10_000, _steps, 1.0
stages[2]["mask_rate"] = [0.0, 1.0]
eval_interval = 500
