"""AlphaFold 3: a paper whose code came half a year later.

The paper (Abramson et al., doi 10.1038/s41586-024-07487-w) appeared in Nature on 8 May 2024 with a description of the
method and a server of a few predictions a day, without code. Researchers protested in an open letter; the authors then
announced the code within six months. Here the popular account is right, and the record says by how much, and what came
later still: the weights were given out on request ("at Google DeepMind's sole discretion") until July 2026, and the
code's licence allowed no commercial use until June 2026. For 187 days nobody outside could check the measurements of
the paper with its code, whatever they are worth.

What is marked "clone" can be checked without a network in a clone of github.com/google-deepmind/alphafold3:
`git show -s --format=%ad COMMIT`. The hash vouches for a commit; its date is what the committer's clock said.
"""

from __future__ import annotations

from datetime import date

from lesson import Lesson, Statement, show

PAPER, CODE, WEIGHTS = date(2024, 5, 8), date(2024, 11, 11), date(2026, 7, 23)
MONTH = 365.25 / 12
TIMELINE = (
    (PAPER, "the paper, without code; a server", "Nature 630, 493 (PMC11168924)", "no"),
    (date(2024, 5, 11), "an open letter asks for the code", "Science's report, second-hand", "no"),
    (date(2024, 5, 22), "the code is expected in six months", "fraserlab.com", "no"),
    (CODE, "inference code, CC BY-NC-SA; weights on request", "alphafold3 4f52a3b", "clone"),
    (date(2026, 6, 9), "the code's licence becomes Apache 2.0", "alphafold3 7b197fe", "clone"),
    (WEIGHTS, "an address of the weights, under terms of use", "alphafold3 dd1a7ba", "clone"),
)


def lesson() -> Lesson:
    return Lesson(
        title="AlphaFold 3: what was available when",
        columns=("date", "what", "where it stands", "offline"),
        rows=[(str(day), *rest) for day, *rest in TIMELINE],
        statements=(
            Statement(
                id="code-with-paper",
                text="The paper could be checked with its code from the start: it came 0 days after.",
                stated="0",
                found=(CODE - PAPER).days,
            ),
            Statement(
                id="six-months",
                text="The code came 6 months after the paper, as announced.",
                stated="6",
                found=(CODE - PAPER).days / MONTH,
                source=(
                    "http://fraserlab.com/2024/05/22/AlphaFold3/",
                    "In response to this letter, Deepmind announced they would release the code in 6 months.",
                ),
            ),
            Statement(
                id="open-weights",
                text="With the code the weights were open to everyone: 0 days after.",
                stated="0",
                found=(WEIGHTS - CODE).days,
            ),
            Statement(
                id="training",
                text="The training can be repeated.",
                missing='the repository is "an implementation of the inference pipeline", and holds no training code',
            ),
            Statement(
                id="accuracy",
                text="It predicts ligands far more accurately than docking tools do.",
                missing="needs the weights, their terms of use and several databases; nothing of it is here",
            ),
        ),
        notes=(
            "from which day the six months count is not known to us; from the paper on they end on 8 November",
            "that a reviewer asked for the code in vain is his account (Retraction Watch, read second-hand)",
        ),
    )


if __name__ == "__main__":
    show(lesson())
