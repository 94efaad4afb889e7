"""Packing loses no token, marks every document and restarts its positions."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fmray.data.packing import Packer, Rows

PAD = 0
documents_ = st.lists(st.lists(st.integers(1, 99), max_size=20), max_size=12)


def pack(batches: list[list[list[int]]], seq_len: int) -> Rows:
    packer = Packer(seq_len, PAD)
    made = [*(packer.add(batch) for batch in batches), packer.finish()]
    return Rows(
        *(
            np.concatenate([getattr(rows, name) for rows in made])
            for name in ("input_ids_NT", "segment_ids_NT", "position_ids_NT")
        )
    )


@given(documents_, st.integers(1, 9))
def test_every_token_is_kept_in_order_and_only_the_last_row_is_padded(documents: list[list[int]], seq_len: int) -> None:
    rows = pack([documents], seq_len)
    tokens = [token for document in documents for token in document]
    used = rows.segment_ids_NT.reshape(-1) > 0
    assert rows.input_ids_NT.reshape(-1)[used].tolist() == tokens
    assert used[: len(tokens)].all()
    assert len(rows) == -(-len(tokens) // seq_len)
    assert (rows.input_ids_NT.reshape(-1)[~used] == PAD).all()
    assert (rows.position_ids_NT.reshape(-1)[~used] == 0).all()


@given(documents_, st.integers(1, 9))
def test_segments_and_positions_follow_the_documents(documents: list[list[int]], seq_len: int) -> None:
    rows = pack([documents], seq_len)
    segments, positions, at = list[int](), list[int](), 0
    for document in documents:
        for place in range(len(document)):
            new_row = at % seq_len == 0
            starts = place == 0 or new_row
            segments.append(1 if new_row else segments[-1] + starts)
            positions.append(0 if starts else positions[-1] + 1)
            at += 1
    assert rows.segment_ids_NT.reshape(-1)[:at].tolist() == segments
    assert rows.position_ids_NT.reshape(-1)[:at].tolist() == positions


@given(documents_, st.integers(1, 9), st.integers(1, 5))
def test_how_documents_arrive_changes_nothing(documents: list[list[int]], seq_len: int, size: int) -> None:
    whole = pack([documents], seq_len)
    parts = pack([documents[i : i + size] for i in range(0, len(documents), size)], seq_len)
    for name in ("input_ids_NT", "segment_ids_NT", "position_ids_NT"):
        np.testing.assert_array_equal(getattr(whole, name), getattr(parts, name))


def test_an_example_by_hand() -> None:
    rows = pack([[[5, 6, 7], [8, 9, 10, 11]]], 4)
    assert rows.input_ids_NT.tolist() == [[5, 6, 7, 8], [9, 10, 11, 0]]
    assert rows.segment_ids_NT.tolist() == [[1, 1, 1, 2], [1, 1, 1, 0]]
    assert rows.position_ids_NT.tolist() == [[0, 1, 2, 0], [0, 1, 2, 0]]
