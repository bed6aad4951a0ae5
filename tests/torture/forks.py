"""Real processes that start at once: forked from one that has imported everything, in a second and not in ten."""

import multiprocessing

forked = multiprocessing.get_context("forkserver")
forked.set_forkserver_preload(
    ["tests.torture.kills", "tests.torture.disks", "segpo_core.training.loop", "segpo_core.training.progress"]
)
