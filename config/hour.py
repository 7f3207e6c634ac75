# A good half hour of one CPU core on a novel: wider and deeper than the demo. Better with a demo as
# its --teacher.
n_layer = 4
n_head = 4
n_embd = 256
block_size = 256
rope_base = 100.0          # as in the demo
dropout = 0.3              # the text is seen 75 times; at .2 the bound rises after 30

learning_rate = 1e-3
min_lr = 0.02
batch_size = 4             # 1,024 tokens a step
grad_accum = 1
carry_over = True          # one warm-up and cosine over all stages

# simple sentences, then linked pairs, both with few masks; then all of the text at all mask rates
for _stage, _steps in zip(stages, (60, 500, 5_440)):
    _stage["mask_rate"], _stage["replay"] = [0.05, 0.5], 0.0
    _stage["epochs"], _stage["max_steps"], _stage["lr_factor"] = 10_000, _steps, 1.0
stages[2]["mask_rate"] = [0.0, 1.0]
eval_interval = 500
