from clip3dreid.report.tables import html_table, print_table, text_table


def test_a_title_wider_than_its_table_stays_in_one_line(capsys):
    title = f"/data/[bold]{'long/' * 60}picture.png"
    print_table(title, ["rank"], [[1]])
    assert capsys.readouterr().out.splitlines()[0] == title


def test_a_table_as_text_is_the_one_that_is_printed(capsys):
    header, rows = ["name", "R1"], [["a[b]", 1.25], ["x" * 200, 30.0]]
    print_table("title", header, rows)
    assert capsys.readouterr().out == f"title\n{text_table(header, rows)}\n"


def test_a_table_as_text_shows_nothing_by_itself_in_a_notebook(capsys, monkeypatch):
    plain = text_table(["rank"], [[1]])
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    assert text_table(["rank"], [[1]]) == plain
    assert capsys.readouterr().out == ""


def test_a_table_for_a_notebook_takes_nothing_for_markup():
    page = html_table("a <b>", ["<i>"], [["&"], [1.25]], ["note <u>"])
    assert page == (
        "<p><b>a &lt;b&gt;</b></p><table><thead><tr><th>&lt;i&gt;</th></tr></thead><tbody><tr><td>&amp;</td></tr>"
        "<tr><td>1.2</td></tr></tbody></table><ul><li>note &lt;u&gt;</li></ul>"
    )
