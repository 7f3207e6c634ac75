# The autoregressive twin: same network, data and schedule, predicting each token from those before it.
causal = True
stages = [{"name": "autoregressive", "data": "stage3", "mask_rate": [0.0, 1.0], "replay": 0.0,
           "epochs": 30, "lr_factor": 1.0}]
