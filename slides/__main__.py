"""Commands of the slides: `python -m slides live | build | practice | site | check | preview BLOCK`."""

from __future__ import annotations

import argparse
import sys
import time

from rlhf_lab.errors import LabError


def _check() -> None:
    """Check the content: its format, the derivations, explorers and claims it names, and formulas if KaTeX is there."""
    from slides import build, explorers, render, vendor
    from slides.deck import deck

    made = deck()
    for slide, part in render.explorers_of(made):
        try:
            explorers.make(part.name, part.at, part.only, part.panels)
        except LabError as error:
            raise LabError(f"Slide {slide.key!r}: {error}") from None
    katex = vendor.katex if vendor.ready() else render.raw
    context = render.Context(build.static_place, worlds=20)
    render.typeset(render.sections(made, context), katex)
    for sentence in context.missing:
        print(f"not shown yet: {sentence}")
    every = list(made.slides())
    for block in made.blocks:
        print(f"{block.key:20} {len(block.slides):3} slides {block.minutes:6.1f} min  lecture {block.lecture}")
    minutes = {number: sum(b.minutes for b in made.blocks if b.lecture == number) for number in (1, 2)}
    print(f"{len(every)} slides; lecture 1: {minutes[1]:g} min, lecture 2: {minutes[2]:g} min")


def _preview(name: str) -> None:
    from slides import build, render, vendor
    from slides.deck import TITLE, deck
    from slides.schema import Deck

    made = deck()
    blocks = tuple(block for block in made.blocks if name in (block.key, "all")) or None
    if blocks is None:
        import importlib

        blocks = (importlib.import_module(f"slides.deck.{name}").BLOCK,)
    folder = build.BUILD / "preview"
    build.library(folder / "lib")
    context = render.Context(build.static_place)
    page = render.typeset(render.sections(Deck(TITLE, blocks), context), vendor.katex)
    folder.joinpath("index.html").write_text(build.page(page, "lib", TITLE, []), encoding="utf-8")
    for sentence in context.missing:
        print(f"not shown yet: {sentence}")
    print(f"{folder / 'index.html'}  (without explorers; see them with make slides)")


def main() -> None:
    """Run the command that the command line names."""
    parser = argparse.ArgumentParser(prog="slides", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    live = commands.add_parser("live", help="build and open the live slides")
    live.add_argument("--port", type=int, default=0)
    live.add_argument("--no-browser", action="store_true")
    live.add_argument("--lang", choices=["en", "zh"], default="en")
    commands.add_parser("check", help="check the content without building it")
    preview = commands.add_parser("preview", help="one block as a page")
    preview.add_argument("block", help="a file's name without .py, a block's key, or all")
    commands.add_parser("build", help="build the live slides beforehand, so that they open immediately")
    commands.add_parser("practice", help="run the whole lecture and report whether this machine is ready")
    commands.add_parser("site", help="write build/site")
    arguments = parser.parse_args()
    begin = time.monotonic()
    try:
        if arguments.command == "check":
            _check()
        elif arguments.command == "preview":
            _preview(arguments.block)
        elif arguments.command == "build":
            from slides import live as view
            from slides.deck import TITLE, deck

            view.prepare(deck(), TITLE)
        elif arguments.command == "site":
            from slides import site

            site.write()
        elif arguments.command == "practice":
            from slides import practice

            sys.exit(practice.run())
        else:
            from slides import live as view
            from slides.deck import TITLE, deck

            view.present(deck(), TITLE, arguments.port, not arguments.no_browser, arguments.lang)
    except LabError as error:
        sys.exit(f"{error}")
    if arguments.command in ("check", "preview"):
        print(f"{time.monotonic() - begin:.1f} s")


if __name__ == "__main__":
    main()
