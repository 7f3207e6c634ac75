# A small GPU, for a novel. With a demo as its --teacher: alone it begins to learn the book by heart after a
# quarter of its steps.
n_layer = 8
n_head = 8
n_embd = 512
block_size = 512           # as long as prepare.py's examples
rope_base = 100.0          # as in the demo
dropout = 0.4              # a model of this size could learn the text by heart

learning_rate = 6e-4
min_lr = 0.05
batch_size = 4             # 2,048 tokens a step
grad_accum = 1
carry_over = True          # one warm-up and cosine over all stages

# the demo's stages
for _stage, _steps in zip(stages, (60, 500, 5_440)):
    _stage["mask_rate"], _stage["replay"] = [0.05, 0.5], 0.0
    _stage["epochs"], _stage["max_steps"], _stage["lr_factor"] = 100_000, _steps, 1.0
stages[2]["mask_rate"] = [0.0, 1.0]
eval_interval = 500
