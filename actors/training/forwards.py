"""What runs together in a forward: packs, or one conversation. Knows no model."""

from collections.abc import Iterator


def forwards(packs: list[list[int]], packing: bool) -> list[list[int]]:
    """The packs of a step, or each of their conversations: dealt to workers, they give as many forwards to each.

    Micro-example, without packing: [[4, 2], [7]] -> [[4], [2], [7]].
    """
    return packs if packing else [[i] for pack in packs for i in pack]


def rounds(packs: list[list[int]], packing: bool) -> Iterator[list[list[int]]]:
    """One pack for each worker (some are empty) as rounds of one forward each; in every round somebody has one.

    Micro-example, without packing: [[4, 2], [7]] -> [[4], [7]], then [[2], []].
    """
    if packing:
        yield packs
        return
    for number in range(max(map(len, packs))):
        yield [pack[number : number + 1] for pack in packs]
