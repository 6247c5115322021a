"""The pages beside the slides: links, formulas, headings, pictures, explorers, without node, npm or a browser."""

import json
import os
import time

import nbformat
import nbformat.v4 as v4
import pytest

pytest.importorskip("nbconvert")
from bs4 import BeautifulSoup

from rlhf_lab.errors import LabError
from slides import build, markdown_html, notebook, site, static_states
from slides.schema import Deck, T

# One pixel, black: the smallest picture there is.
PIXEL = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
NOWHERE = {}.get


def soup(markup: str) -> BeautifulSoup:
    return BeautifulSoup(markup, "html.parser")


def finished(body: str, follow=lambda link: link) -> tuple[str, tuple[markdown_html.Heading, ...]]:
    return markdown_html.finished(body, follow, "here")


# --- formulas ---------------------------------------------------------------------------------------------------


def test_formulas_of_markdown_are_marked_with_their_source_and_their_kind():
    made = markdown_html.markdown("If $a<b$ then\n\n$$\\frac{a}{b}$$\n\n`$not$` this.\n")
    assert '<span class="tex">a&lt;b</span>' in made
    assert '<span class="tex" data-display>\\frac{a}{b}</span>' in made
    assert "<code>$not$</code>" in made


def test_formulas_of_an_objects_own_html_are_marked_where_they_are_text_and_not_where_they_are_code():
    page = soup("<td>$\\displaystyle x_1 &lt; 2$ and $$y$$</td><code>$z$</code><pre>$5</pre>")
    markdown_html.mark_formulas(page, "here")
    assert [one.get_text() for one in page.select("span.tex")] == ["\\displaystyle x_1 < 2", "y"]
    assert page.find("code").get_text() == "$z$"
    assert page.find("pre").get_text() == "$5"


def test_marks_survive_the_way_through_the_parser_as_the_typesetter_looks_for_them():
    from slides import render

    body, _ = finished("<h1>T</h1>" + markdown_html.markdown("$x$ and $$y < z$$"))
    seen = []

    def setter(formulas):
        seen.extend(formulas)
        return [f"[{source}]" for source, _ in formulas]

    page = render.typeset(body, setter)
    assert sorted(seen) == [("x", False), ("y < z", True)]
    assert "span" not in page


def test_a_dollar_without_its_partner_is_refused_with_its_place():
    with pytest.raises(LabError, match="here: unpaired dollar sign in 'costs 5"):
        markdown_html.mark_formulas(soup("<p>costs 5$</p>"), "here")


# --- headings ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "anchor"),
    [("ReST, RAFT and PPO", "rest-raft-and-ppo"), ("What is often confused", "what-is-often-confused"), ("KL", "kl")],
)
def test_anchors_are_those_that_the_documents_link(words, anchor):
    assert markdown_html.slug(words) == anchor


def test_equal_headings_get_anchors_of_their_own_and_an_id_set_by_hand_is_left_to_its_owner():
    page = soup('<h1>A</h1><a id="c"></a><h2>B</h2><h2>B</h2><h2>C</h2>')
    lines = markdown_html.number_headings(page, "here")
    assert [line.anchor for line in lines] == ["b", "b-1", "c"]
    ids = [node["id"] for node in page.find_all(id=True)]
    assert sorted(ids) == sorted(set(ids))


def test_a_heading_that_leaves_out_a_level_is_raised():
    page = soup("<h1>A</h1><h3>B</h3><h2>C</h2><h3>D</h3>")
    lines = markdown_html.number_headings(page, "here")
    assert [(line.level, line.words) for line in lines] == [(2, "B"), (2, "C"), (3, "D")]
    assert [node.name for node in page.find_all(["h1", "h2", "h3"])] == ["h1", "h2", "h2", "h3"]


@pytest.mark.parametrize("markup", ["<h2>A</h2>", "<h1>A</h1><h1>B</h1>"])
def test_a_page_has_one_first_heading(markup):
    with pytest.raises(LabError, match="and no other, has level 1"):
        markdown_html.number_headings(soup(markup), "here")


def test_the_table_of_contents_has_the_second_level_inside_the_first_and_no_link_in_a_link():
    lines = [
        markdown_html.Heading(2, "a", "A"), markdown_html.Heading(3, "b", '<a href="x">B</a>'),
        markdown_html.Heading(3, "c", "C"),
        markdown_html.Heading(2, "d", "D"),
    ]  # fmt: skip
    page = soup(site._contents(lines))
    top = page.find("details").find("ul").find_all("li", recursive=False)
    assert [one.find("a")["href"] for one in top] == ["#a", "#d"]
    assert [one["href"] for one in top[0].find("ul").find_all("a")] == ["#b", "#c"]
    assert top[1].find("ul") is None
    assert not page.select("a a")


# --- links ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "link", "to"),
    [
        ("docs/notation.md", "claims.md#cost", "claims.html#cost"),
        ("docs/notation.md", "#kl", "#kl"),
        ("docs/notation.md", "../notebooks/00_start_here.ipynb", "../notebooks/00_start_here.html"),
        ("docs/notation.md", "../rlhf_lab/kl.py", "../code/rlhf_lab/kl.py.html"),
        ("docs/notation.md", "https://example.org/a", "https://example.org/a"),
        ("docs/notation.md", "../LICENSE", None),
        ("docs/notation.md", "gone.md", None),
        ("notebooks/00_start_here.ipynb", "../docs/claims.md", "../docs/claims.html"),
    ],
)
def test_links_lead_to_the_sites_pages_or_to_none(source, link, to):
    path = build.ROOT / source
    page = source.rsplit(".", 1)[0] + ".html"
    assert site.Links().follow(link, path, page) == to


def test_what_a_page_links_is_what_is_copied():
    links = site.Links()
    links.follow("../rlhf_lab/kl.py", build.ROOT / "docs/notation.md", "docs/notation.html")
    links.follow("claims.md", build.ROOT / "docs/notation.md", "docs/notation.html")
    assert links.wanted == {build.ROOT / "rlhf_lab/kl.py"}


def test_a_link_that_leads_nowhere_stays_as_words_that_name_the_file():
    body, _ = finished('<h1>A</h1><p><a href="../LICENSE">the licence</a></p>', NOWHERE)
    assert '<span title="LICENSE">the licence</span>' in body
    assert "<a" not in body


def test_notebooks_that_are_mentioned_are_linked_but_not_in_code_headings_or_links():
    page = soup(
        "<h2>Notebook 04</h2><p>See notebook 04, notebooks 03 and 05, and notebook 99.</p>"
        '<p><code>notebook 04</code> <a href="x">notebook 04</a></p>'
    )
    markdown_html.link_notebooks(page, {"03": "3.html", "04": "4.html", "05": "5.html"}.get)
    found = [(one["href"], one.get_text()) for one in page.find_all("a")]
    assert found == [("4.html", "notebook 04"), ("3.html", "notebooks 03"), ("5.html", "05"), ("x", "notebook 04")]
    assert "and notebook 99." in page.get_text()


# --- tables and pictures ----------------------------------------------------------------------------------------


def test_tables_scroll_by_themselves_and_wide_ones_name_the_column_in_every_cell():
    head = "".join(f"<th>{name}</th>" for name in "abcde")
    cells = "".join(f"<td>{number}</td>" for number in range(5))
    wide = f"<table><thead><tr>{head}</tr></thead><tbody><tr>{cells}</tr></tbody></table>"
    page = soup(wide + "<table><thead><tr><th>a</th></tr></thead><tbody><tr><td>1</td></tr></tbody></table>")
    markdown_html.box_tables(page)
    assert [table.parent["class"] for table in page.find_all("table")] == [["scroll"], ["scroll"]]
    assert [cell["data-name"] for cell in page.find_all("td")[:5]] == list("abcde")
    assert "data-name" not in page.find_all("td")[5].attrs
    assert all(cell["scope"] == "col" for cell in page.find_all("th"))


def test_a_picture_without_words_is_refused():
    with pytest.raises(LabError, match=r"here: the picture 'a\.png' has no alternative text"):
        finished('<h1>A</h1><p><img src="a.png" alt=" "></p>')


def test_a_picture_alone_in_its_paragraph_becomes_a_figure():
    body, _ = finished("<h1>A</h1>" + markdown_html.markdown("![words](a.png)\n\nText ![more](b.png).\n"))
    page = soup(body)
    assert [picture.parent.name for picture in page.find_all("img")] == ["figure", "p"]


# --- notebooks --------------------------------------------------------------------------------------------------


def shown(text: str, mime: str = "image/png", data: str = PIXEL, **meta):
    return v4.new_output("display_data", {mime: data, "text/plain": text}, metadata=meta)


def small(*cells) -> object:
    return v4.new_notebook(cells=[v4.new_markdown_cell("# A title\n\nText."), *cells])


def draw(*cells) -> notebook.Drawn:
    return notebook.drawn(small(*cells), "07_small", lambda number, words: f"key-{number}: {words}")


def test_an_explorer_is_known_by_the_call_that_its_cell_ends_with():
    still = shown("The title: its words")
    for source in ("a = 1\nsome_explorer(a)", "widgets.some_explorer(\n    1,\n)"):
        assert notebook.shows_explorer(v4.new_code_cell(source), still)
    for source in ("some_explorer(1).picture()", "x = some_explorer(1)", "draw(some_explorer)"):
        assert not notebook.shows_explorer(v4.new_code_cell(source), still)
    assert not notebook.shows_explorer(v4.new_code_cell("some_explorer(1)"), shown("Picture: words"))


def test_an_explorer_stands_where_its_states_go_and_keeps_its_still_for_a_page_without_scripts():
    cell = v4.new_code_cell("some_explorer(1)", outputs=[shown("Title: words")])
    out = draw(cell)
    page = soup(out.body)
    assert out.states == ["key-1: Title: words"]
    assert page.select_one(".explorer")["data-states"] == "key-1: Title: words"
    assert page.select_one("noscript img")["alt"] == "Title: words"


def test_a_picture_becomes_a_file_with_its_own_words_and_its_place_kept_free():
    picture = shown("Picture: stored", **{"image/png": {"alt": "its <words>", "width": 30}})
    out = draw(v4.new_code_cell("style.show(x, y)", outputs=[picture]))
    image = soup(out.body).find("img")
    assert image["alt"] == "its <words>"
    assert (image["width"], image["height"]) == ("30", "30")  # the pixel is square
    assert out.pictures[image["src"].removeprefix("pictures/")].startswith(b"\x89PNG")


def test_the_line_below_a_picture_is_its_caption_and_is_not_heard_twice():
    cell = v4.new_code_cell("show()", outputs=[shown("Picture: a < b"), shown("In words: a < b", "text/markdown", "x")])
    page = soup(draw(cell).body)
    caption = page.select_one("figure > figcaption")
    assert caption.get_text() == "a < b"
    assert caption["aria-hidden"] == "true"


@pytest.mark.parametrize("text", ["", "Picture: ", "<Figure size 640x480 with 1 Axes>"])
def test_a_stored_picture_without_words_is_refused_with_its_cell(text):
    with pytest.raises(LabError, match="07_small, cell 1: a picture has no alternative text"):
        draw(v4.new_code_cell("plot()", outputs=[shown(text)]))


def test_exercises_are_shown_as_the_notebook_shows_them_solution_and_all():
    source = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION"
    verdict = shown("✓ nb07.f", "text/html", "<div><b>✓ nb07.f: right on every input.</b></div>")
    fold = v4.new_markdown_cell("<details><summary><b>A solution</b></summary>\n\n```python\nreturn x\n```\n</details>")
    out = draw(v4.new_code_cell(source), v4.new_code_cell('check("nb07.f", f)', outputs=[verdict]), fold)
    page = soup(out.body)
    assert page.find("pre").get_text().rstrip() == source
    assert out.exercises == 1
    assert page.find("details").find("pre").get_text().strip() == "return x"
    assert not page.find("details").has_attr("open")


def test_a_derivation_is_shown_whole():
    from rlhf_lab.derivations import library

    derivation = library()["gibbs"]
    checked = derivation.check(worlds=2)
    shown_in = [shown("x", "text/markdown", checked._repr_markdown_())]
    body, _ = finished(draw(v4.new_code_cell("gibbs.check()", outputs=shown_in)).body)
    page = soup(body)
    rows = page.select(".derivation tbody tr")
    assert draw(v4.new_code_cell("gibbs.check()", outputs=shown_in)).derivations == 1
    assert len(rows) == len(derivation.lines) + len(derivation.wrong)
    assert all(row.select("span.tex") for row in rows)
    code = page.select(".derivation details")
    assert len(code) >= len(derivation.lines) and all(one.find("pre") for one in code)


def test_what_is_printed_keeps_its_letters_and_terminals_colours_become_classes():
    cell = v4.new_code_cell(
        "print()", outputs=[v4.new_output("stream", name="stdout", text="a < b \x1b[31mred\x1b[0m\n")]
    )
    page = soup(draw(cell).body)
    assert page.select_one(".output pre").get_text() == "a < b red"
    assert page.select_one(".ansi-red-fg").get_text() == "red"


def test_an_error_among_the_outputs_is_refused():
    cell = v4.new_code_cell(
        "1/0", outputs=[v4.new_output("error", ename="ZeroDivisionError", evalue="no", traceback=[])]
    )
    with pytest.raises(LabError, match="cell 1: ZeroDivisionError: no"):
        draw(cell)


def test_every_stored_notebook_can_be_shown_and_every_picture_of_it_has_words():
    import nbformat

    for path in sorted((build.ROOT / "notebooks").glob("0[05]_*.ipynb")):
        stored = nbformat.read(path, as_version=4)
        out = notebook.drawn(stored, path.stem, lambda number, words: "key")
        body, contents = markdown_html.finished(out.body, lambda link: link, path.name)
        assert len(contents) > 2
        assert len(out.states) >= 1  # an explorer or more
        assert not [
            text for text in soup(body).find_all(string=lambda s: "$" in s) if not text.find_parents(["pre", "code"])
        ]


# --- explorers' states ------------------------------------------------------------------------------------------


def test_the_last_expression_of_a_cell_gets_a_name_and_the_rest_stays():
    space: dict = {}
    exec(static_states.with_name("a = 2\na + 1  # shown", "it"), space)
    assert (space["a"], space["it"]) == (2, 3)
    with pytest.raises(LabError, match="does not end with an expression"):
        static_states.with_name("a = 2", "it")


def test_kept_states_are_used_until_the_cells_or_a_file_that_was_loaded_change(tmp_path, monkeypatch):
    runs = []

    def run(path, sources, place):
        runs.append(sources)
        if sources[-1] == "busy()":
            write("x = 2", round(time.time()) + 9)
        files = {"lab.py": static_states._sum("lab.py")}
        place.write_text(json.dumps({"words": "W", "states": f"{len(runs)}", "files": files}))

    monkeypatch.setattr(static_states, "ROOT", tmp_path)
    monkeypatch.setattr(static_states, "CACHE", tmp_path / "cache")
    monkeypatch.setattr(static_states, "_execute", run)
    lab = tmp_path / "lab.py"

    def write(code: str, when: int) -> None:
        lab.write_text(code)
        os.utime(lab, (when, when))

    write('"""Words."""\nx = 1  # more', 1)
    path = tmp_path / "01_x.ipynb"

    def states(source: str, words: str = "W") -> tuple[str, str]:
        cells = [v4.new_code_cell("first"), v4.new_markdown_cell("no code"), v4.new_code_cell(source)]
        path.write_text(json.dumps(v4.new_notebook(cells=[*cells, v4.new_code_cell("after")])))
        return static_states.states_of(path, 2, words)

    assert states("an_explorer()") == ("1", "")
    assert runs == [["first", "an_explorer()"]]
    assert states("an_explorer()") == ("1", "")
    assert states("an_explorer(2)") == ("2", "")
    write('"""Other words."""\n\nx = (1)', 2)  # the same code
    assert states("an_explorer(2)") == ("2", "")
    write("x = 2", 3)
    assert states("an_explorer(2)") == ("3", "")
    before = len(runs)
    states("busy()")
    states("busy()")
    assert len(runs) == before + 2  # a file that changed while the cells ran: nobody knows which was loaded
    assert "01_x.ipynb was stored when its explorer's text was 'Old'" in states("an_explorer(2)", "Old")[1]


def test_a_kernel_leaves_an_explorers_states_its_words_and_what_it_loaded(tmp_path):
    from rlhf_lab.figures.picture import Picture
    from rlhf_lab.widgets.explorer import Explorer, Toggle

    def picture(up: bool) -> Picture:
        return Picture(f"It is {up}.")

    place = tmp_path / "compressed_states.json"
    static_states.dump(Explorer(picture, {"up": Toggle(True, "up")}, "Title"), str(place))
    kept = json.loads(place.read_text(encoding="utf-8"))
    assert kept["words"] == "Title: It is True."
    assert json.loads(kept["states"])["count"] == 2
    assert kept["files"]["rlhf_lab/widgets/explorer.py"] == static_states._sum("rlhf_lab/widgets/explorer.py")


def test_layers_that_come_and_go_are_written_once_each_and_come_back():
    from slides import compressed_states

    # A line of its own in every fourth picture, a star in every second, a frame in all: lists of 1 to 3 layers.
    layers = [
        [{"frame": [0] * 50}, *([{"star": i % 4}] if i % 2 else []), *([{"line": i}] if i % 4 == 0 else [])]
        for i in range(60)
    ]
    pictures = [{"layers": some, "text": str(i)} for i, some in enumerate(layers)]
    folded = compressed_states.fold(pictures)
    small = static_states.pooled(folded)
    slots = {slot[0][0]: slot for slot in small["slots"]}
    assert len(slots["text"]) == 3
    _, values, which, parts = slots["layers"]
    assert len(parts) == 1 + 2 + 15
    assert [[parts[number] for number in values[which[i]]] for i in range(60)] == layers


def test_the_pages_script_reads_pooled_states(tmp_path):
    import shutil
    import subprocess

    if shutil.which("node") is None:
        pytest.skip("needs node")
    from slides import compressed_states

    pictures = [{"layers": [{"a": i % 2}, *[{"b": j % 3} for j in range(i % 5)]]} for i in range(40)]
    small = static_states.pooled(compressed_states.fold(pictures))
    assert len(small["slots"][0]) == 4
    script = tmp_path / "unfold.js"
    source = (build.ASSETS / "explorers.js").read_text(encoding="utf-8")
    script.write_text(
        f"globalThis.window = globalThis; {source}; const s = {json.dumps(small)};"
        "console.log(JSON.stringify([...Array(s.count).keys()].map((i) => window.StaticExplorers.unfold(s, i))));"
    )
    done = subprocess.run(["node", str(script)], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == pictures


def test_states_that_two_pages_show_are_one_file(tmp_path):
    shared = site.StateFiles(tmp_path)
    one, two = '{"slots": [], "same": 1}', '{"slots": [], "same": 2}'
    shared.there("slide", one, "slides/states/slide.js")
    assert shared.written("a-1", one) == ("slide", "slides/states/slide.js")
    assert shared.written("b-1", two) == ("b-1", "notebooks/states/b-1.js")
    assert shared.written("c-1", two) == ("b-1", "notebooks/states/b-1.js")
    assert [file.name for file in tmp_path.rglob("*.js")] == ["b-1.js"]


# --- pages ------------------------------------------------------------------------------------------------------


def page(path: str, **more) -> site.Page:
    return site.Page(path, f"Title of {path} & more", "<h1>A</h1>", **more)


def test_a_page_says_its_language_has_a_skip_link_and_knows_the_ways_to_root_and_neighbours():
    made = soup(site.framed(page("notebooks/b.html"), page("notebooks/a.html"), page("notebooks/c.html")))
    assert made.html["lang"] == "en"
    assert made.title.get_text() == "Title of notebooks/b.html & more"
    first = made.body.find("a")
    assert (first["class"], first["href"]) == (["skip"], "#main")
    assert made.find(id="main").name == "main"
    assert made.select_one('a[rel="prev"]')["href"] == "a.html"
    assert made.select_one('a[rel="next"]')["href"] == "c.html"
    assert {link["href"].rsplit("/", 1)[0] for link in made.find_all("link", rel="stylesheet")} <= {
        "../lib",
        "../lib/katex",
    }


def test_only_a_page_with_explorers_loads_what_they_need_each_file_once():
    plain = soup(site.framed(page("docs/a.html")))
    assert [s["src"] for s in plain.find_all("script")] == ["../lib/theme.js", "../lib/page.js"]
    script = "slides/states/x.js"
    made = soup(site.framed(page("notebooks/a.html", states=(script, script))))
    sources = [s["src"] for s in made.find_all("script")]
    assert sources.count(f"../{script}") == 1
    assert sources.index("../lib/explorers.js") < sources.index(f"../{script}") < sources.index("../lib/mount.js")


def test_a_notebooks_entry_has_its_reading_time_from_the_metadata_of_its_first_cell(tmp_path):
    path = tmp_path / "03_a.ipynb"
    for minutes, about in ((30, "30 minutes"), (1, "1 minute"), (None, "")):
        metadata = {} if minutes is None else {"minutes_to_read": minutes}
        first = v4.new_markdown_cell("# A title\n\n**It takes** 99 minutes to read.", metadata=metadata)
        nbformat.write(v4.new_notebook(cells=[first]), path)
        made = site.notebook_page(path, tmp_path, site.Links(), site.StateFiles(tmp_path))
        assert (made.title, made.about) == ("03 · A title", about)


def test_the_entrance_leads_to_every_page():
    notebooks, docs = [page("notebooks/a.html", about="25 minutes")], [page("docs/claims.html")]
    made = soup(site.entrance(Deck(T("Title", "题目"), ()), notebooks, docs))
    to = {link["href"] for link in made.find_all("a")}
    assert {"notebooks/a.html", "docs/claims.html", "slides/index.html?lang=en", "slides/index.html?lang=zh"} <= to
    assert {node["lang"] for node in made.select("[lang]")} == {"en", "zh"}


def folder(tmp_path, index: str, more: str = "") -> object:
    (tmp_path / "index.html").write_text(f'<a href="a.html#there">a</a>{index}')
    (tmp_path / "a.html").write_text(f'<p id="there">{more}</p>')
    return tmp_path


def test_a_whole_site_is_let_through(tmp_path):
    site.audit(folder(tmp_path, '<a href="https://example.org">out</a><a href="a.html?x=1#/there">slide</a>'))


@pytest.mark.parametrize(
    ("index", "complaint"),
    [
        ('<a href="b.html">b</a>', "index.html links to b.html"),
        ('<a href="a.html#gone">b</a>', "index.html links to a.html#gone"),
        ('<a href="a.html?lang=en#/gone">b</a>', "links to a.html.lang=en#/gone"),
        ('<img alt="x" src="x.png">', "links to x.png"),
        ('<script src="https://cdn.example/x.js"></script>', "loads https://cdn.example/x.js"),
        ('<link rel="stylesheet" href="//cdn.example/x.css">', "loads //cdn.example/x.css"),
    ],
)
def test_a_dead_link_or_another_host_ends_the_export(tmp_path, index, complaint):
    with pytest.raises(LabError, match=complaint):
        site.audit(folder(tmp_path, index))


def test_a_style_sheet_may_not_ask_another_host(tmp_path):
    (tmp_path / "x.css").write_text("@font-face { src: url(https://fonts.example/a.woff2) }")
    with pytest.raises(LabError, match=r"x\.css loads from another host"):
        site.audit(folder(tmp_path, ""))


def test_a_site_that_is_too_heavy_is_refused(tmp_path):
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "a").write_bytes(b"x" * 3000)
    assert site.sizes(tmp_path, limit=3000) == 3000
    with pytest.raises(LabError, match="at most"):
        site.sizes(tmp_path, limit=2999)


def test_colours_of_code_keep_their_contrast_on_the_pages_own_ground():
    import re

    def light(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        parts = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    sheet = (build.ASSETS / "page.css").read_text(encoding="utf-8")
    grounds = dict(zip(("light", "dark"), re.findall(r"--soft: (#[0-9a-f]{6})", sheet), strict=False))
    style = dict(zip(("light", "dark"), site.code_style().split("@media screen"), strict=True))
    assert '[data-theme="dark"]' not in style["light"]
    for theme, ground in grounds.items():
        colours = set(re.findall(r"[{ ]color: (#[0-9A-Fa-f]{6})", style[theme]))
        assert len(colours) > 3
        for colour in colours:
            high, low = sorted((light(colour), light(ground)), reverse=True)
            assert (high + 0.05) / (low + 0.05) >= 4.5, (theme, colour)
