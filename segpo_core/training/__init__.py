"""The loop: collect, score, credit, update, record; checkpoints, evaluation, several processes."""
