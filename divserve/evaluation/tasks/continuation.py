"""Open-ended continuation of short openings: judged by repetition and diversity alone."""

from __future__ import annotations

from divserve.evaluation.items import Item, Task

__all__ = ["task"]

TOKENS = 128
OPENINGS = """
The ferry had left without him, and the next one would not come before the morning.
In the cellar of the town hall there is a door that nobody has opened for sixty years.
Bees find their way home by the sun, but on cloudy days they use something else.
When the power failed, the whole street went out to look at the stars.
My grandmother kept three clocks, and none of them agreed with the others.
The first maps of the island were drawn by people who had never been there.
To bake bread that keeps for a week, begin on the evening before.
Nobody at the station could say where the train with the blue cars had come from.
The mountain village has one telephone, and it rings only on Sundays.
After the flood, the river ran on the other side of the church.
The museum bought the painting for a small sum, because it was thought to be a copy.
A good bicycle repair begins with a clean chain.
She had promised to write every week, and for two years she did.
The smallest desert in the world can be crossed on foot in an hour.
At the edge of the orchard stood a machine that no one remembered buying.
The committee met in the gymnasium, since the library was being painted.
Wolves had not been seen in the valley since his father was a child.
The recipe called for saffron, which cost more than all the rest together.
On the last day of school the teacher brought a box of letters.
Early glass was green, because the sand had iron in it.
The lighthouse keeper wrote down every ship, even those that he only heard.
There are two ways to cross the bog, and both are marked with white stones.
The violin had been repaired so often that little of the first one was left.
Before the bridge was built, a rope was enough to settle who could pass.
The observatory closes when the moon is full.
He learned the language from the labels of tins and from the radio.
In winter the lake sings at night, and children are told that it is asking for someone.
The shop sold only three things, and the owner would not say why.
The bus driver knew all of them by their shoes.
Salt was once carried over the pass by goats.
The letter was addressed to a house that had burned down.
A fog that lasts longer than nine days has a name of its own here.
The choir practised in the swimming bath because of the echo.
Our neighbour builds boats, although we live four hundred kilometres from the sea.
The old tree was cut down, and what was found inside it is now in the town museum.
Each autumn the storks gather on the roof of the brewery.
The archive smelled of vinegar, which is what old film turns into.
She planted the seeds that she had found in the pocket of his coat.
Two of the seven wells were said to be connected, and one summer it was tried with ink.
The last page of the diary had been cut out with great care.
"""


def task() -> Task:
    """Forty openings."""
    return Task(
        name="continuation",
        items=[
            Item(
                id=str(number),
                messages=[{"role": "user", "content": f"Continue this story: {opening}"}],
                document=opening,
                judge="none",
                max_tokens=TOKENS,
            )
            for number, opening in enumerate(OPENINGS.strip().splitlines())
        ],
    )
