"""How good a trained model is: perplexity, public benchmarks, programs that are run, answers that must match."""
