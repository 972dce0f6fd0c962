from clip3dreid.report.tables import print_table


def test_a_title_wider_than_its_table_stays_in_one_line(capsys):
    title = f"/data/[bold]{'long/' * 60}picture.png"
    print_table(title, ["rank"], [[1]])
    assert capsys.readouterr().out.splitlines()[0] == title
