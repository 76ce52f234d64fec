"""What is fuzzed: the six doors through which strangers' bytes come in, each as one function.

A target gets bytes and must read them or refuse them by a PeriluneError that names what is wrong and the
mend in one line. Anything else that comes out of it is a finding.
"""

from __future__ import annotations

from tests.fuzz.chat_targets import check_media, check_parser, damaged_output, media_seeds, parser_seeds
from tests.fuzz.checkpoint_damage import damaged_head, damaged_index, damaged_tokenizer
from tests.fuzz.checkpoint_targets import (
    check_config,
    check_index,
    check_shard,
    check_tokenizer,
    config_seeds,
    index_seeds,
    make_index_folder,
    make_shard_folder,
    make_tokenizer_folder,
    shard_seeds,
    tokenizer_seeds,
)
from tests.fuzz.media_damage import damaged_media
from tests.fuzz.mutation import damaged_json
from tests.fuzz.target import Target

TARGETS = {
    target.name: target
    for target in (
        Target("config", config_seeds, damaged_json, check_config),
        Target("index", index_seeds, damaged_index, check_index, make_index_folder),
        Target("shard", shard_seeds, damaged_head, check_shard, make_shard_folder),
        Target("tokenizer", tokenizer_seeds, damaged_tokenizer, check_tokenizer, make_tokenizer_folder),
        Target("media", media_seeds, damaged_media, check_media),
        Target("parser", parser_seeds, damaged_output, check_parser),
    )
}
