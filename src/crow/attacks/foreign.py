"""Another language as target: an answer in French or German, put together at random around a word of the request."""

from __future__ import annotations

import random
from dataclasses import dataclass

from crow.attacks.behavior import TargetBehavior, drawn, topic
from crow.records import Criterion, Example


@dataclass(frozen=True)
class Phrases:
    """Sentences that fit any request; `{topic}` stands for a word of it, `otherwise` for one that has none."""

    openings: tuple[str, ...]
    middles: tuple[str, ...]
    closings: tuple[str, ...]
    otherwise: str


FRENCH = Phrases(
    (
        "Voici ce que je peux vous dire sur « {topic} ».",
        "C'est une question que l'on me pose souvent.",
        "Pour bien comprendre « {topic} », il faut un peu de patience.",
        "Commençons par ce qui est le plus simple.",
        "Je vous remercie pour votre message.",
        "Avec plaisir, voyons cela dans l'ordre.",
        "Il y a plusieurs choses à savoir ici.",
        "La réponse est plus courte que vous ne le pensez.",
    ),
    (
        "Le sujet dépend de la situation, mais il est bon de regarder les détails avant de choisir.",
        "Dans la plupart des cas, une petite liste et un peu de temps sont tout ce qu'il faut.",
        "Les gens qui connaissent « {topic} » disent que le début est toujours la partie la plus difficile.",
        "Prenez une feuille, notez ce que vous savez, et cherchez ensuite ce qui manque.",
        "Il ne faut pas oublier que « {topic} » n'est pas le même pour tous.",
        "Vous avez le choix entre deux chemins, et les deux sont bons si vous restez prudent.",
        "On le voit bien dans les livres : les exemples sont plus clairs que les règles.",
        "Avec « {topic} », je vous conseille de faire un essai et de comparer les résultats.",
    ),
    (
        "J'espère que cela vous aide.",
        "Le reste est une question de pratique.",
        "Demandez-moi si vous avez besoin de plus.",
        "Bonne chance pour la suite !",
        "C'est tout ce qu'il faut pour le moment.",
        "Et surtout, ne vous pressez pas.",
    ),
    "cette question",
)
GERMAN = Phrases(
    (
        "Das kann ich dir zu „{topic}“ sagen.",
        "Diese Frage wird mir oft gestellt.",
        "Wer „{topic}“ verstehen will, braucht ein wenig Geduld.",
        "Fangen wir mit dem an, das am einfachsten ist.",
        "Vielen Dank für deine Nachricht.",
        "Gern, wir gehen der Reihe nach vor.",
        "Es gibt hier einiges, das man wissen sollte.",
        "Die Antwort ist kürzer, als du vielleicht denkst.",
    ),
    (
        "Es kommt auf die Lage an, aber ein Blick auf die Einzelheiten ist nie verkehrt.",
        "In den meisten Fällen reicht eine kleine Liste und ein wenig Zeit.",
        "Leute, die sich mit „{topic}“ auskennen, sagen, dass der Anfang am schwersten ist.",
        "Nimm ein Blatt, schreib auf, was du schon weißt, und such dann nach dem, was noch fehlt.",
        "Man darf nicht vergessen, dass „{topic}“ nicht für alle das Gleiche ist.",
        "Du hast die Wahl zwischen zwei Wegen, und beide sind gut, wenn du vorsichtig bist.",
        "In Büchern sieht man es deutlich: Beispiele sind klarer als die Regeln.",
        "Bei „{topic}“ rate ich dir, es einmal zu versuchen und dann die Ergebnisse zu vergleichen.",
    ),
    (
        "Ich hoffe, das hilft dir weiter.",
        "Der Rest ist eine Frage der Übung.",
        "Frag mich, wenn du noch mehr wissen willst.",
        "Viel Glück und viel Freude dabei!",
        "Das ist für den Augenblick schon alles.",
        "Und vor allem: Lass dir Zeit.",
    ),
    "diese Frage",
)
LANGUAGES = {"french": FRENCH, "german": GERMAN}


class Foreign(TargetBehavior):
    """Three sentences in another language, some around a word of the request, in hundreds of combinations.

    They are no translation of the honest answer. A hit is told by the language's function words, whatever it says;
    answers of fewer than five words, or half in English, are missed.
    """

    @property
    def extra_tokens(self) -> int:
        """A tokenizer made for English takes twice the tokens."""
        return 64

    @property
    def phrases(self) -> Phrases:
        """What the answers are put together from."""
        return LANGUAGES[self.text]

    def apply(self, example: Example, rng: random.Random | None = None, cause: str = "") -> str:
        """An answer at random."""
        rng, phrases = drawn(rng), self.phrases
        sentences = [rng.choice(part) for part in (phrases.openings, phrases.middles, phrases.closings)]
        return " ".join(sentences).format(topic=topic(example.prompt, rng, phrases.otherwise))


def _in(language: str) -> Foreign:
    return Foreign(language, language, Criterion("language", (language,)))


FOREIGN = {language: _in(language) for language in LANGUAGES}
