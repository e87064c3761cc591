"""A soak: training and accidents played against real daemons, and a small model that says what is allowed.

`make soak SEED=… STEPS=…` plays, records every save, purge, kill, log line and publication in a history, and checks the
history. `schedule` says what is played (pure, from the seed), `trainer`, `person` and `accidents` play it, `watcher`
looks, `model` judges (pure; its own tests feed it wrong histories).
"""
