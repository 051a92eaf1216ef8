"""Galactica: a demo was paused; was the paper withdrawn?

Galactica (Taylor et al., arXiv 2211.09085) is told as the model that was taken back after three days. A record of what
was available when says something else: a demo of it was. The paper, the code and the weights stayed, the code was
worked on for three months more, and no retraction is known to us. To cite it is not to cite a retracted paper; that its
demo wrote fluent nonsense is another matter, and no dates decide it.

What is marked "clone" can be checked without a network in a clone of github.com/paperswithcode/galai:
`git show -s --format=%ad COMMIT`. The hash vouches for a commit; its date is what the committer's clock said. The rest
is the word of the source that is named.
"""

from __future__ import annotations

from datetime import date

from lesson import Lesson, Statement, show

RELEASED, ANNOUNCED, PAUSED = date(2022, 11, 15), date(2022, 11, 16), date(2022, 11, 17)
LAST_CHANGE = date(2023, 2, 14)
PRESS = (
    "https://www.technologyreview.com/2022/11/18/1063487/"
    "meta-large-language-model-ai-only-survived-three-days-gpt-3-science/"
)
TIMELINE = (
    (RELEASED, "code, a list of five models, a link to a demo", "galai 3f6ef0e", "clone"),
    (ANNOUNCED, "the paper is submitted, version 1", "arXiv 2211.09085", "no"),
    (PAUSED, "the demo is paused", "the message of galai 64e178d", "clone"),
    (date(2022, 11, 19), "the README no longer offers a demo", "galai 64e178d", "clone"),
    (LAST_CHANGE, "the last change of the code", "galai 3a724f5", "clone"),
)


def lesson() -> Lesson:
    return Lesson(
        title="Galactica: what was available when",
        columns=("date", "what", "where it stands", "offline"),
        rows=[(str(day), *rest) for day, *rest in TIMELINE],
        statements=(
            Statement(
                id="three-days",
                text="The demo was open for at most three days.",
                stated="3",
                found=(PAUSED - RELEASED).days,
                direction="at most",
                source=(PRESS, "Why Meta's latest large language model survived only three days online"),
            ),
            Statement(
                id="taken-back",
                text="With the demo the model was taken back: its code ends 0 days after the pause.",
                stated="0",
                found=(LAST_CHANGE - PAUSED).days,
            ),
            Statement(
                id="retracted",
                text="The paper was retracted.",
                missing="no notice of a retraction was found; that there is none cannot be shown from here",
            ),
            Statement(
                id="equations",
                text="It knows more LaTeX equations than GPT-3: 68.2 % against 49.0 %.",
                missing="corpus and training code are not in the repository, and GPT-3's answers are nowhere",
                source=(
                    "https://arxiv.org/abs/2211.09085",
                    "On technical knowledge probes such as LaTeX equations, Galactica outperforms the latest GPT-3 by "
                    "68.2% versus 49.0%.",
                ),
            ),
            Statement(
                id="cited",
                text="It was cited more than 1,000 times.",
                missing="a count of citations is a database's, of one day",
            ),
        ),
        notes=(
            "arXiv's page was read, the article in copies, the weights' own pages were not",
            "the last change is that of the newest copy of the repository that was at hand",
        ),
    )


if __name__ == "__main__":
    show(lesson())
