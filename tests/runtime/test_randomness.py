"""Random numbers of a batch, which must not depend on how the batch is split."""

import torch

from runtime.randomness import BatchRandom


def test_numbers_of_a_batch_do_not_depend_on_how_it_is_split():
    like = torch.zeros(())

    def sampled(rng, *parts):
        numbers = []
        for rows in parts:
            sample = rng.for_rows(rows)
            numbers.append(torch.cat([sample(torch.rand, (len(rows), 3), like),
                                      sample(torch.randn, (len(rows), 2), like)], dim=-1))
        return torch.cat(numbers)

    rows = torch.arange(10)
    whole = sampled(BatchRandom(7, 10), rows)
    assert torch.equal(whole, sampled(BatchRandom(7, 10), *rows.split(3)))
    assert torch.equal(whole[4:], sampled(BatchRandom(7, 10), rows[4:]))
    assert not torch.equal(whole, sampled(BatchRandom(8, 10), rows))
    assert len(whole.unique()) == whole.numel()
