"""The models of this project in EleutherAI's lm-eval, and tasks that need no network.

    pip install 'sparse_jax[lm_eval]'
    python -m sparse_jax.evaluate.lm_eval --model sparse_jax --model_args path=MODEL \\
        --tasks local_arc_easy,local_piqa --metadata data_dir=DIR

is lm-eval's own command line, of which every option works. `register` does the same
for its Python interface.
"""

from sparse_jax.evaluate.lm_eval.documents import documents
from sparse_jax.evaluate.lm_eval.model import Adapter
from sparse_jax.evaluate.lm_eval.setup import LOCAL_TASKS, register

__all__ = ["LOCAL_TASKS", "Adapter", "documents", "register"]
