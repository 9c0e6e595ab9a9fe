"""Which row is whose is measured by an inner backward, and only as long as it is not known: that doubles a step."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import gradscope
from gradscope.capture.layout import Rows, find_layout
from gradscope.reference import per_sample_gradients

N, POSITIONS, WIDTH, WORDS = 5, 4, 6, 9


class Flat(nn.Module):
    """A linear layer over all positions of all samples in one dimension, as GPT-2's layers have it."""

    def __init__(self, rows, columns):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(rows, columns) / 3), nn.Parameter(torch.zeros(columns))

    def forward(self, x):
        return torch.addmm(self.bias, x.reshape(-1, x.shape[-1]), self.weight).view(*x.shape[:-1], -1)


class Tapped(nn.Module):
    """Counts how often a gradient passes between its layers: an inner backward passes there too."""

    def __init__(self):
        super().__init__()
        self.taps = 0

    def tap(self, x):
        x = x * 1.0
        if x.requires_grad:
            x.register_hook(self.count)
        return x

    def count(self, grad):
        self.taps += 1


class Language(Tapped):
    """The last position has no next word: nothing flows through the last layers' rows there."""

    def __init__(self, layer=Flat):
        super().__init__()
        self.table, self.first, self.last = nn.Embedding(WORDS, WIDTH), layer(WIDTH, 8), layer(8, WIDTH)
        self.head = nn.Linear(WIDTH, WORDS, bias=False)

    def forward(self, ids):
        x = self.table(ids)
        return self.head(x + self.last(self.tap(self.first(x)).tanh()))


class Folded(Language):
    """``nn.Linear`` on rows that were folded before, and unfolded behind it."""

    def __init__(self):
        super().__init__(nn.Linear)

    def forward(self, ids):
        x = self.table(ids).flatten(0, 1)
        return self.head(x + self.last(self.tap(self.first(x)).tanh())).view(*ids.shape, WORDS)


class InTurn(Language):
    """Positions before samples."""

    def forward(self, ids):
        return super().forward(ids.T).transpose(0, 1)


class Unsure(Tapped):
    """A second head whose loss is multiplied by a number that may be zero."""

    def __init__(self):
        super().__init__()
        self.body, self.head, self.other = nn.Linear(WIDTH, 8), nn.Linear(8, 3), nn.Linear(8, 3)
        self.share = 0.0

    def forward(self, x):
        x = self.tap(self.body(x)).tanh()
        return self.head(x) + self.share * self.other(x)


class Routed(Tapped):
    """Rows go where their values send them."""

    def __init__(self):
        super().__init__()
        self.body, self.expert = nn.Linear(WIDTH, 8), nn.Linear(8, 3)

    def forward(self, x):
        x = self.tap(self.body(x))
        order = x.detach().mean(1).argsort()
        return self.expert(x[order])[order.argsort()]


class Windows(Language):
    """Positions in windows, which are folded into the samples' dimension."""

    def forward(self, ids):
        x = self.table(ids).view(2 * N, POSITIONS // 2, WIDTH)
        x = self.head(x + self.last(self.tap(self.first(x)).tanh()))
        return x.view(N, POSITIONS, WORDS)


class Last(Tapped):
    """One position of each sequence is read, another one in each window."""

    def __init__(self, read):
        super().__init__()
        self.table, self.body, self.head = nn.Embedding(WORDS, WIDTH), nn.Linear(WIDTH, 8), nn.Linear(8, 3)
        self.read = read

    def forward(self, ids):
        x = self.tap(self.body(self.table(ids))).tanh()
        x = x + x.mean(1, keepdim=True)
        return self.head(self.read(x, ids.sum(1) % POSITIONS))


READS = {
    "index": lambda x, last: x[torch.arange(N), last],
    "index, both at once": lambda x, last: x[torch.arange(N)[:, None], last[:, None]].squeeze(1),
    "gather": lambda x, last: x.gather(1, last.view(N, 1, 1).expand(N, 1, 8)).squeeze(1),
    "gather, counted from behind": lambda x, last: x.gather(-2, last.view(N, 1, 1).expand(N, 1, 8)).squeeze(1),
}


def one_row_at_a_time(x, last):
    rows, flat = torch.arange(N) * POSITIONS + last, x.flatten(0, 1)
    return torch.cat([flat.gather(0, row.view(1, 1).expand(1, 8)) for row in rows])


MOVES = {
    "gathers of one row each": one_row_at_a_time,
    "index in another order": lambda x, last: x[torch.arange(N).roll(1), last.roll(1)].roll(-1, 0),
    "mask": lambda x, last: x[last[:, None] == torch.arange(POSITIONS)],
    "gather of several": lambda x, last: x.gather(1, last.view(N, 1, 1).expand(N, 2, 8)).sum(1),
    "index_select": lambda x, last: x.index_select(0, torch.arange(N))[:, 0],
}


def ids(k):
    return torch.randint(WORDS, (N, POSITIONS), generator=torch.Generator().manual_seed(k))


def inputs(k):
    return 0.5 + torch.randn(N, WIDTH, generator=torch.Generator().manual_seed(k), dtype=torch.float64)


def next_words(model, batch):
    return F.cross_entropy(model(batch)[:, :-1].flatten(0, 1), batch[:, 1:].flatten())


def squares(model, batch):
    return model(batch).square().mean()


def taps(model, loss_of, batch, windows, before=lambda k, model: None):
    """How often a gradient passed in each window; every window's norms are held against single samples."""
    model, found = model.double(), []
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with gradscope.watch(model, optimizer) as scope:
        for k in range(windows):
            before(k, model)
            expected = per_sample_gradients(model, loss_of, batch(k))
            model.taps = 0
            loss_of(model, batch(k)).backward()
            found.append(model.taps)
            optimizer.step()
            optimizer.zero_grad()
            report = scope.last
            for name, gradients in expected.items():
                norms = gradients.flatten(1).norm(dim=1)
                torch.testing.assert_close(report.parameters[name].sample_norms, norms, rtol=1e-9, atol=1e-12)
                assert report.coverage[name].status == "exact"
    return found


@pytest.mark.parametrize("build", [Language, Folded, InTurn, Windows], ids=lambda build: build.__name__)
def test_samples_that_are_folded_into_rows_are_measured_twice(build):
    torch.manual_seed(0)
    assert taps(build(), next_words, ids, 8) == [2, 2, 1, 1, 1, 1, 1, 1]


def classes(model, batch):
    return F.cross_entropy(model(batch), batch[:, 0] % 3)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_which_entry_of_its_own_slice_is_read_moves_no_samples(read):
    torch.manual_seed(0)
    assert taps(Last(read), classes, ids, 6) == [2, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("read", MOVES.values(), ids=MOVES)
def test_what_may_read_other_slices_is_measured_in_every_window(read):
    torch.manual_seed(0)
    assert taps(Last(read), classes, ids, 4) == [2] * 4


def test_where_nothing_flows_no_layout_is_waited_for():
    torch.manual_seed(0)
    found = taps(Unsure(), squares, inputs, 10)
    assert found[0] == 2
    assert found[5:] == [1] * 5


def test_where_something_flows_later_it_is_measured():
    def switch(k, model):
        model.share = 0.7 if k >= 7 else 0.0

    torch.manual_seed(0)
    found = taps(Unsure(), squares, inputs, 12, switch)
    assert found[5:8] == [1, 1, 1]
    assert found[8] == 2
    assert found[10:] == [1, 1]


def test_rows_that_go_where_their_values_send_them_are_measured_in_every_window():
    torch.manual_seed(0)
    assert taps(Routed(), squares, inputs, 6) == [2] * 6


def test_rows_that_fit_both_ways_of_folding_are_not_taken_for_either():
    """Rows 0, 5, 10 and 15 of twenty are those of samples 0 to 3 whether samples are apart or in turn."""
    tags, plain = torch.tensor([-1.5, -0.5, 0.5, 1.5], dtype=torch.float64), torch.zeros(20, 2, dtype=torch.float64)
    plain[::5] = torch.randn(4, 2, dtype=torch.float64)
    by_row = tags.repeat_interleave(5).unsqueeze(1)
    found = find_layout(plain, plain * by_row, tags, torch.Size([20]), [], torch.float64)
    assert isinstance(found, Rows)
    assert not found.folded
    plain = torch.randn(20, 2, dtype=torch.float64)
    plain[4::5] = 0
    for by_row in (tags.repeat_interleave(5), tags.repeat(5)):
        found = find_layout(plain, plain * by_row.unsqueeze(1), tags, torch.Size([20]), [], torch.float64)
        assert found.folded
        assert torch.equal(tags[found.sample_of_row], by_row)
