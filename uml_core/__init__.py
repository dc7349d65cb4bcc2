"""The method: corpora, encoders, store, mixing, shared-weight models, training, evaluation. Never imports ray."""
