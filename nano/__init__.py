"""The recipe of the bundled checkpoint: corpus, tokenizer, traces, trainer, evaluation, publication."""
