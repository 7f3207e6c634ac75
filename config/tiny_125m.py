# The full-size model: 12 layers of width 768, 125M parameters with GPT-2's whole vocabulary, about 91M with
# one book's.
n_layer = 12
n_head = 12
n_embd = 768
block_size = 512

batch_size = 8             # with grad_accum an effective batch of 16 examples
grad_accum = 2
learning_rate = 1e-4
beta1, beta2 = 0.9, 0.95
weight_decay = 0.01
warmup_steps = 1500        # at most a tenth of the stage
label_smoothing = 0.1      # softens a model that sees one book hundreds of times
grad_clip = 1.0
dropout = 0.1
conv, embedding_init = 0, "normal"   # not measured at this size yet; both won at 1M parameters
dtype = "auto"             # bfloat16 where the GPU has it, else float16 with loss scaling; float32 on a CPU

stages[0]["epochs"], stages[1]["epochs"], stages[2]["epochs"] = 75, 150, 300
eval_interval = 500
