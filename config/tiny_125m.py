# The full-size model: 12 layers of width 768, 125M parameters with GPT-2's whole vocabulary, about 91M with
# one book's. Better with a demo as its --teacher.
n_layer = 12
n_head = 12
n_embd = 768
block_size = 512
rope_base = 100.0          # as in the demo
dropout = 0.4              # a model of this size could learn the text by heart

learning_rate = 3e-4
min_lr = 0.05
batch_size = 8             # 4,096 tokens a step
grad_accum = 1
carry_over = True          # one warm-up and cosine over all stages

# the demo's stages
for _stage, _steps in zip(stages, (30, 250, 2_720)):
    _stage["mask_rate"], _stage["replay"] = [0.05, 0.5], 0.0
    _stage["epochs"], _stage["max_steps"], _stage["lr_factor"] = 100_000, _steps, 1.0
stages[2]["mask_rate"] = [0.0, 1.0]
eval_interval = 500
