"""Text in, batches of tokens out: sources, tokenizers, packing and the mixture."""

from sparse_jax.data.bpe import END_OF_TEXT, train_bpe
from sparse_jax.data.config import DataConfig, default_cache_dir
from sparse_jax.data.corpus import Corpus, load_corpus
from sparse_jax.data.example_packing import Examples
from sparse_jax.data.mixture import Dataset
from sparse_jax.data.packing import Stream, make_stream
from sparse_jax.data.prepare import prepare
from sparse_jax.data.sources import Shard, SourceConfig, find_shards
from sparse_jax.data.stream import stream_from_path
from sparse_jax.data.task_files import task_source
from sparse_jax.data.tokenizer import Tokenizer, load_tokenizer

__all__ = [
    "END_OF_TEXT",
    "Corpus",
    "DataConfig",
    "Dataset",
    "Examples",
    "Shard",
    "SourceConfig",
    "Stream",
    "Tokenizer",
    "default_cache_dir",
    "find_shards",
    "load_corpus",
    "load_tokenizer",
    "make_stream",
    "prepare",
    "stream_from_path",
    "task_source",
    "train_bpe",
]
