"""Likelihood and generation tasks of language models, defined as lm-eval defines them, over local files; scored here and sharded over Ray."""
