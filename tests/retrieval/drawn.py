"""Hand-drawn examples, four queries by five gallery pictures, one for each protocol.

Pictures stand on a line and the nearest comes first, so that every order can be read off:

    gallery   g0=0  g1=1  g2=2  g3=3  g4=4
    q0 = -1   sees g0 g1 g2 g3 g4
    q1 = 5    sees g4 g3 g2 g1 g0
    q2 = 2.1  sees g2 g3 g1 g4 g0
    q3 = 0.9  sees g1 g0 g2 g3 g4

Marks: `+` positive, `j` junk, `.` another person, ` ` not asked. Numbers: (first hit, ap, inp) of each query
that has a positive.
"""

from typing import Any, NamedTuple

QUERIES = [[-1.0], [5.0], [2.1], [0.9]]
GALLERY = [[0.0], [1.0], [2.0], [3.0], [4.0]]


class Drawn(NamedTuple):
    query: dict[str, list[Any]]
    gallery: dict[str, list[Any]]
    marks: list[str]
    numbers: list[tuple[float, float, float] | None]


# a stands at g0, g2, g3 and b at g1, g4; c is not in the gallery. b never changes clothes.
STREET = (
    {"person": ["a", "a", "b", "c"], "camera": ["1", "2", "3", "1"], "clothes": ["a1", "a2", "b1", "c1"]},
    {
        "person": ["a", "b", "a", "a", "b"],
        "camera": ["1", "1", "2", "3", "2"],
        "clothes": ["a1", "b1", "a1", "a2", "b1"],
    },
)
GENERAL = Drawn(
    *STREET,
    ["j.++.", "+.j+.", ".+..+", "....."],
    [
        (2, (1 / 2 + 2 / 3) / 2, 2 / 3),  # g1 g2 g3 g4
        (2, (1 / 2 + 2 / 4) / 2, 2 / 4),  # g4 g3 g1 g0
        (3, (1 / 3 + 2 / 4) / 2, 2 / 4),  # g2 g3 g1 g4 g0
        None,
    ],
)
# The same street: cameras 1 and 2 are indoors, 3 outdoors; `l` and `m` are scales, of pictures rather than cameras.
PLACES = (
    {
        "person": ["a", "a", "b", "c"],
        "camera": ["1", "2", "3", "1"],
        "location": ["in", "in", "out", "in"],
        "scale": ["l", "m", "l", "l"],
    },
    {
        "person": ["a", "b", "a", "a", "b"],
        "camera": ["1", "1", "2", "3", "2"],
        "location": ["in", "in", "in", "out", "in"],
        "scale": ["m", "l", "l", "l", "m"],
    },
)
# PRCC: the gallery is camera A; q0 and q2 were taken by B, q1 and q3 by C.
PRCC = (
    {"person": ["a", "a", "b", "c"], "camera": ["B", "C", "B", "C"], "query_set": ["B", "C", "B", "C"]},
    {"person": ["a", "b", "a", "a", "b"], "camera": ["A"] * 5},
)
# a stands at g0 and g1, b at g2, c at g3 and g4: whichever picture of a person is drawn, the people's order
# is the same.
PRCC_PEOPLE = (
    {"person": ["a", "a", "b", "b"], "camera": ["B", "C", "B", "C"], "query_set": ["B", "C", "B", "C"]},
    {"person": ["a", "a", "b", "c", "c"], "camera": ["A"] * 5},
)
# Cameras 1 to 4; each protocol takes two of them. All four queries show a, and so does the gallery but for g1.
GAME = (
    {"person": ["a", "a", "a", "a"], "camera": ["2", "3", "4", "1"]},
    {"person": ["a", "b", "a", "a", "a"], "camera": ["2", "3", "3", "4", "1"]},
)

EXAMPLES = {
    "general": GENERAL,
    "deepchange_camera": GENERAL,
    "clothes_changing": Drawn(
        *STREET,
        ["j.j+.", "+.jj.", ".j..j", "....."],
        [(2, 1 / 2, 1 / 2), (3, 1 / 3, 1 / 3), None, None],  # g1 g3 g4; g4 g1 g0
    ),
    "same_clothes": Drawn(
        *STREET,
        ["j.+j.", "j.j+.", ".+..+", "....."],
        [(2, 1 / 2, 1 / 2), (2, 1 / 2, 1 / 2), (3, (1 / 3 + 2 / 4) / 2, 2 / 4), None],  # g1 g2 g4; g4 g3 g1
    ),
    "same_location": Drawn(
        *PLACES,
        ["j.+j.", "+.jj.", ".j..j", "....."],
        [(2, 1 / 2, 1 / 2), (3, 1 / 3, 1 / 3), None, None],  # g1 g2 g4; g4 g1 g0
    ),
    "location_changing": Drawn(
        *PLACES,
        ["j.j+.", "j.j+.", ".+..+", "....."],
        # g1 g3 g4; g4 g3 g1; g2 g3 g1 g4 g0
        [(2, 1 / 2, 1 / 2), (2, 1 / 2, 1 / 2), (3, (1 / 3 + 2 / 4) / 2, 2 / 4), None],
    ),
    "same_scale": Drawn(
        *PLACES,
        ["j.++.", "+.jj.", ".+..j", "....."],
        # g1 g2 g3 g4; g4 g1 g0; g2 g3 g1 g0
        [(2, (1 / 2 + 2 / 3) / 2, 2 / 3), (3, 1 / 3, 1 / 3), (3, 1 / 3, 1 / 3), None],
    ),
    "scale_changing": Drawn(
        *PLACES,
        ["j.jj.", "j.j+.", ".j..+", "....."],
        [None, (2, 1 / 2, 1 / 2), (3, 1 / 3, 1 / 3), None],  # g4 g3 g1; g2 g3 g4 g0
    ),
    "no_removal": Drawn(
        *STREET,
        ["+.++.", "+.++.", ".+..+", "....."],
        [
            (1, (1 + 2 / 3 + 3 / 4) / 3, 3 / 4),
            (2, (1 / 2 + 2 / 3 + 3 / 5) / 3, 3 / 5),
            (3, (1 / 3 + 2 / 4) / 2, 2 / 4),
            None,
        ],
    ),
    "prcc_same_clothes": Drawn(
        *PRCC,
        ["+.++.", "     ", ".+..+", "     "],
        [(1, (1 + 2 / 3 + 3 / 4) / 3, 3 / 4), None, (3, (1 / 3 + 2 / 4) / 2, 2 / 4), None],
    ),
    "prcc_clothes_changing": Drawn(
        *PRCC,
        ["     ", "+.++.", "     ", "....."],
        [None, (2, (1 / 2 + 2 / 3 + 3 / 5) / 3, 3 / 5), None, None],
    ),
    "prcc_same_clothes_single_shot": Drawn(
        *PRCC_PEOPLE,
        ["++...", "     ", "..+..", "     "],
        [(1, 1, 1), None, (1, 1, 1), None],
    ),
    "prcc_clothes_changing_single_shot": Drawn(
        *PRCC_PEOPLE,
        ["     ", "++...", "     ", "..+.."],
        # q1 sees c, b, a: third, where all pictures would make it fourth. q3 sees a, b, c: second, not third.
        [None, (3, 1 / 3, 1 / 3), None, (2, 1 / 2, 1 / 2)],
    ),
    "vc_clothes_same": Drawn(
        *GAME,
        ["j.+  ", "+.j  ", "     ", "     "],
        [(2, 1 / 2, 1 / 2), (2, 1 / 2, 1 / 2), None, None],  # q0: g1 g2; q1: g1 g0
    ),
    "vc_clothes_changing": Drawn(
        *GAME,
        ["     ", " .j+ ", " .+j ", "     "],
        [None, (1, 1, 1), (1, 1, 1), None],  # q1: g3 g1; q2: g2 g1
    ),
    "celeb_first_digit": Drawn(
        {"person": ["a", "a", "b", "c"], "frame": [1, 21, 3, 1]},
        {"person": ["a", "b", "a", "a", "b"], "frame": [10, 1, 2, 119, 30]},
        ["j.+j.", "+.j+.", ".+..j", "....."],
        [
            (2, 1 / 2, 1 / 2),  # g1 g2 g4
            (2, (1 / 2 + 2 / 4) / 2, 2 / 4),  # g4 g3 g1 g0
            (3, 1 / 3, 1 / 3),  # g2 g3 g1 g0
            None,
        ],
    ),
    "deepchange_tracklet": Drawn(
        {"person": ["a", "a", "b", "c"], "tracklet": ["t1", "t2", "t3", "t4"], "camera": ["1"] * 4},
        {
            "person": ["a", "b", "a", "a", "b"],
            "tracklet": ["t1", "t3", "t1", "t2", "t5"],
            "camera": ["1"] * 5,
        },
        ["j.j+.", "+.+j.", ".j..+", "....."],
        [
            (2, 1 / 2, 1 / 2),  # g1 g3 g4
            (2, (1 / 2 + 2 / 4) / 2, 2 / 4),  # g4 g2 g1 g0
            (3, 1 / 3, 1 / 3),  # g2 g3 g4 g0
            None,
        ],
    ),
    "cuhk03_single_shot": Drawn(
        {"person": ["a", "a", "b", "c"], "camera": ["1", "2", "1", "1"]},
        {"person": ["a", "a", "b", "c", "c"], "camera": ["1", "2", "2", "2", "2"]},
        # Junk is never drawn for the query's own person: q0 always finds g1, q1 always g0.
        ["j+...", "+j...", "..+..", "...++"],
        [(1, 1, 1), (3, 1 / 3, 1 / 3), (1, 1, 1), (3, 1 / 3, 1 / 3)],
    ),
}
