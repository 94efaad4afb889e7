"""What an engine keeps besides weights: states of parameters that no loss reaches, and counts that begin anew with a round."""

import torch
from transformers import AutoModel, BertConfig

from fmray.objectives import LossParts
from fmray.train.engine import TorchEngine
from fmray.train.optim import Optim
from tests.parity.workers import OBJECTIVE, Case, batches, model

SMALL = BertConfig(vocab_size=100, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, hidden_dropout_prob=0.1)


class LastHidden:
    """Learns from hidden states alone, as the contrastive objective with mean pooling does."""

    def count(self, batch):
        return len(batch["input_ids_BT"])

    def loss(self, model, batch):
        return LossParts(model(input_ids=batch["input_ids_BT"]).last_hidden_state.square().sum(), len(batch["input_ids_BT"]))


def test_a_parameter_that_no_loss_reaches_is_saved_like_all_others(tmp_path):
    torch.manual_seed(0)
    engine = TorchEngine(AutoModel.from_config(SMALL), Optim(), lambda step: 1e-3, precision="fp32")
    pooler = engine.module.pooler.dense.weight.detach().clone()
    ids = torch.randint(5, 100, (4, 8))
    engine.train_batch([{"input_ids_BT": ids}], LastHidden())
    engine.save(tmp_path)
    again = TorchEngine(AutoModel.from_config(SMALL), Optim(), lambda step: 1e-3, precision="fp32")
    again.load(tmp_path)
    torch.testing.assert_close(again.module.pooler.dense.weight, engine.module.pooler.dense.weight, rtol=0, atol=0)
    # Decayed, as DeepSpeed's zero gradient does too, and not moved otherwise.
    torch.testing.assert_close(again.module.pooler.dense.weight, pooler * (1 - 1e-3 * Optim().weight_decay))


def test_a_round_begins_with_no_skipped_update():
    rates = []
    engine = TorchEngine(model(), Optim(), lambda step: rates.append(step) or 1e-3, precision="fp32")
    engine.step, engine.skipped = 10, 3
    engine.begin_round()
    micro_batches, _ = next(batches(Case("one", engine="torch", micro_batch_size=4), 0, 1, 0))
    engine.train_batch(micro_batches, OBJECTIVE)
    assert rates == [10]
