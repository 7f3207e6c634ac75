# No curriculum: the whole text at all mask rates, for as long as the default curriculum's last stage.
stages = [{"name": "uniform", "data": "stage3", "mask_rate": [0.0, 1.0], "replay": 0.0,
           "epochs": 300, "lr_factor": 1.0}]
