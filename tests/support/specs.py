"""Orders with any content, for property tests."""

from __future__ import annotations

from hypothesis import strategies as st

from divserve.decoding import Look, Program, Spec, Switch

NUMBERS = st.floats(allow_nan=False)
IDS = st.lists(st.integers(0, 50_000), max_size=4)
PROGRAMS = st.builds(Program, *[NUMBERS] * len(Program._fields))
SWITCHES = st.builds(
    Switch,
    NUMBERS,
    st.integers(1, 9),
    st.integers(1, 9),
    st.sampled_from(["small", "large"]),
    st.lists(NUMBERS).map(tuple),
    st.integers(0, 9),
)
LOOKS = st.builds(
    Look,
    NUMBERS,
    st.integers(1, 20),
    st.integers(0, 9),
    st.sampled_from(["prefix", "generated", "prefix+generated"]),
    st.booleans(),
)
SPECS = st.builds(
    Spec,
    PROGRAMS,
    st.lists(IDS, max_size=2),
    st.none() | PROGRAMS,
    IDS,
    st.booleans(),
    st.lists(st.sampled_from(["amateur", "tuned"])).map(tuple),
    st.none() | SWITCHES,
    st.none() | LOOKS,
    top=st.integers(0, 20),
)
TOPS = st.lists(
    st.tuples(IDS.map(tuple), st.lists(NUMBERS, max_size=3).map(tuple)), max_size=3
).map(tuple)
