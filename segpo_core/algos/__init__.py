"""The methods, one paper a file."""

from segpo_core.algos.base import CriticMethod, Method
from segpo_core.algos.entropy_tokens import EntropyTokens
from segpo_core.algos.forks import Forks
from segpo_core.algos.grpo import GRPO
from segpo_core.algos.gspo import GSPO
from segpo_core.algos.papo import PAPO
from segpo_core.algos.pgpo import PGPO
from segpo_core.algos.ppo import PPO
from segpo_core.algos.rloo import RLOO
from segpo_core.algos.sapo import SAPO
from segpo_core.algos.spo_chain import SPOChain
from segpo_core.algos.spo_tree import SPOTree
from segpo_core.algos.srpo import SRPO
from segpo_core.algos.tempo import TEMPO
from segpo_core.algos.treerl import TreeRL
from segpo_core.algos.vcppo import VCPPO
from segpo_core.algos.vineppo import VinePPO
from segpo_core.algos.vppo import VPPO

METHODS: dict[str, type[Method]] = {
    method.name: method
    for method in (
        PPO, RLOO, GRPO, GSPO, VinePPO, SPOChain, SPOTree, SAPO, SRPO,
        VCPPO, EntropyTokens, TEMPO, TreeRL, VPPO, PGPO, PAPO, Forks,
    )
}  # fmt: skip

__all__ = [
    "CriticMethod",
    "EntropyTokens",
    "Forks",
    "GRPO",
    "GSPO",
    "METHODS",
    "Method",
    "PAPO",
    "PGPO",
    "PPO",
    "RLOO",
    "SAPO",
    "SPOChain",
    "SPOTree",
    "SRPO",
    "TEMPO",
    "TreeRL",
    "VCPPO",
    "VPPO",
    "VinePPO",
]
