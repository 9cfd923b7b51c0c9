"""The pages of a run and of a comparison in a browser, as readers of phones and of desktops see them."""

import json
import pathlib
import shutil

import pytest
from absl import flags
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select
from selenium.webdriver.support.ui import WebDriverWait

import mhd_jax as mhd
from mhd_jax.cli.comparison import compare
from mhd_jax.cli.settings import RunSettings
from mhd_jax.runs import comparison_curves, page, report, unfinished

pytestmark = pytest.mark.browser

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
OPTIONS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
)
WIDTHS = (1440, 768, 390)  # of a desktop, a tablet and a phone, in pixels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A comparison and its runs."""
    folder = tmp_path_factory.mktemp("runs") / "compare"
    settings = RunSettings(num_clients=3, steps=6, eval_every=2, batch_size=4)
    algorithms = {"isolated": mhd.algorithms.isolated(), "mhd": mhd.algorithms.mhd(num_aux_heads=2)}
    flags.FLAGS(["compare"])  # which say who watches
    compare(settings, algorithms, [0, 1, 2], folder)
    return folder


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """A run of two models with an adversary."""
    folder = tmp_path_factory.mktemp("runs") / "mixed"
    data = mhd.data.load("digits")
    clients = mhd.make_clients(data, 4, "mlp_small:2,mlp:2", adversaries={3: "label_flip"})
    algorithm = mhd.algorithms.mhd(num_aux_heads=1)
    how = {"steps": 6, "eval_every": 2, "batch_size": 4, "workdir": folder}
    mhd.simulate("ring", clients, algorithm, **how)
    return folder


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The page of a study that goes on, and that of a finished one, in two folders."""
    folder = tmp_path_factory.mktemp("study")
    going, finished = folder / "going", folder / "finished"
    going.mkdir()
    finished.mkdir()
    cells = [page.Cell("a case with a long name=" + "0.1," * 20), page.of_text("2 of 3")]
    table = page.Table("Runs that have finished", ("row", "finished"), [cells])
    said = {"title": "2 of 3 runs have finished: a", "sentences": ["Runs that go on: 1."]}
    history = [
        {"step": step, **{m: {"main": step / 10} for m in ("beta_sh", "beta_priv")}}
        for step in (2, 4)
    ]
    drawn = comparison_curves.of({"a": {0: history, 1: history}, "b": {0: history[:1]}}, None)
    unfinished.write_study(going, **said, share=0.7, table=table, curves=drawn, environments=[])
    rows = [[page.Cell(name), page.of_text(text)] for name, text in (("a", "9 B"), ("b", "10 B"))]
    tables = [(page.Table("results", ("case", "sent"), rows), ["One note."])]
    report.write_study(finished, tables, {})
    return going, finished


@pytest.fixture(scope="module")
def browser():
    if CHROMIUM is None or DRIVER is None:
        pytest.fail("chromium and chromedriver are missing; see `make browser`")
    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for option in OPTIONS:
        options.add_argument(option)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(DRIVER))
    yield driver
    driver.quit()


@pytest.fixture(params=WIDTHS)
def show(request, browser):
    """Opens a page at one of the widths; at the end the console must hold no complaint."""
    size = {"width": request.param, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def show(page: pathlib.Path):
        browser.get(page.as_uri())
        assert browser.execute_script("return innerWidth") == request.param
        return browser

    yield show
    severe = [entry for entry in browser.get_log("browser") if entry["level"] != "INFO"]
    assert severe == []


@pytest.mark.parametrize(
    "page", ["report.html", "mhd/seed_0/report.html", "isolated/seed_1/report.html"]
)
def test_figures_load_and_only_boxes_scroll_sideways(show, folder, page):
    browser = show(folder / page)
    widths = [
        browser.execute_script("return arguments[0].naturalWidth", image)
        for image in browser.find_elements(By.TAG_NAME, "img")
    ]
    assert len(widths) >= 1 and min(widths) > 0
    require_only_boxes_scroll(browser)


def require_only_boxes_scroll(browser):
    scrolled, shown = browser.execute_script(
        "return [document.documentElement.scrollWidth, document.documentElement.clientWidth]"
    )
    assert scrolled <= shown


def test_a_study_that_goes_on_reloads_and_a_finished_one_sorts(show, study):
    going, finished = study
    browser = show(going / "report.html")
    bar = browser.find_element(By.TAG_NAME, "progress")
    assert float(bar.get_attribute("value")) == 0.7 and bar.size["width"] > 200
    assert browser.find_elements(By.CSS_SELECTOR, "meta[http-equiv=refresh]")
    ends = "over step; at the end a 0.400, b 0.200"
    assert [box.get_attribute("aria-label") for box in charts(browser)] == [
        f"β_sh (uniform labels), last head {ends}",
        f"β_priv (own labels), main head {ends}",
    ]
    require_only_boxes_scroll(browser)
    browser = show(finished / "report.html")
    assert not browser.find_elements(By.CSS_SELECTOR, "meta[http-equiv=refresh]")
    table = browser.find_element(By.TAG_NAME, "table")
    table.find_elements(By.CSS_SELECTOR, "thead button")[1].click()
    assert column(table, 0) == ["a", "b"]  # by number, not as text
    require_only_boxes_scroll(browser)


def test_the_reader_chooses_whose_curves(show, mixed):
    browser = show(mixed / "report.html")
    require_only_boxes_scroll(browser)
    chooser = Select(browser.find_element(By.ID, "curves-group"))
    names = [option.text for option in chooser.options]
    kinds = ["clients with mlp_small", "clients with mlp"]
    assert names == ["all clients", "honest clients", *kinds]
    summary = json.loads((mixed / "summary.json").read_text())
    for name, who in zip(names, ([0, 1, 2, 3], [0, 1, 2], [0, 1], [2, 3]), strict=True):
        chooser.select_by_visible_text(name)
        drawn = [box for box in charts(browser) if box.is_displayed()]
        assert len(drawn) == (3 if name == "all clients" else 2)
        each = [summary["per_client"][client]["beta_sh"]["aux_1"] for client in who]
        ends = drawn[0].get_attribute("aria-label").split("aux_1 ")[1]
        assert float(ends) == pytest.approx(sum(each) / len(each), abs=6e-4)
        ((x, low, high, _), *_) = rows(browser, 0, "aux_1")
        first = json.loads((mixed / "metrics.jsonl").read_text().splitlines()[0])
        each = [first["per_client"]["beta_sh"]["aux_1"][client] for client in who]
        assert [x, low, high] == pytest.approx([2, min(each), max(each)], abs=6e-5)


def charts(browser, place="#curves"):
    """A page's charts, once they are drawn."""
    boxes = browser.find_elements(By.CSS_SELECTOR, f"{place} .chart")
    drawn = "svg .mark-symbol path"
    for box in boxes:
        WebDriverWait(browser, 20).until(
            lambda _, box=box: not box.is_displayed() or box.find_elements(By.CSS_SELECTOR, drawn)
        )
    return boxes


def rows(browser, chart, name):
    """What a chart of the page draws of a line: x, the range's ends, and y."""
    return browser.execute_async_script(
        """
      const [chart, name, done] = arguments;
      charts.ofPage.drawn[chart].then(({ view }) => done(view.data("rows")
        .filter((row) => row.series === name).map(({ x, low, high, y }) => [x, low, high, y])));
    """,
        chart,
        name,
    )


def points(box, shape=""):
    """The first chart's marked points of one colour, from left to right."""
    found = box.find_elements(By.CSS_SELECTOR, f"svg .mark-symbol path{shape}")
    return sorted(found, key=lambda point: point.location["x"])


def test_a_comparisons_curves_are_means_or_of_a_seed(show, folder):
    browser = show(folder / "report.html")
    drawn = charts(browser)
    assert len(drawn) == 6 and all(box.is_displayed() for box in drawn)
    require_only_boxes_scroll(browser)
    ends = {}
    for seed in (0, 1, 2):
        lines = (folder / f"mhd/seed_{seed}/metrics.jsonl").read_text().splitlines()
        ends[seed] = json.loads(lines[-1])
    chooser = Select(browser.find_element(By.ID, "curves-group"))
    each = {"the mean over seeds": list(ends), **{f"seed {seed}": [seed] for seed in ends}}
    assert [option.text for option in chooser.options] == list(each)
    for name, seeds in each.items():
        chooser.select_by_visible_text(name)
        for panel, axis in ((0, "step"), (1, "bytes"), (2, "seconds")):
            x, *_, y = rows(browser, panel, "mhd")[-1]
            there = [ends[seed] for seed in seeds]
            assert x == pytest.approx(sum(end[axis] for end in there) / len(there), abs=1e-3)
            wanted = sum(end["beta_sh"]["aux_2"] for end in there) / len(there)
            assert y == pytest.approx(wanted, abs=6e-5)
        level = [y for *_, y in rows(browser, 1, "isolated")]
        assert len(level) == 2 and level[0] == level[1]  # it sends nothing


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_reader_points_at_lines_hides_them_and_zooms(show, mixed, scheme):
    chosen = [{"name": "prefers-color-scheme", "value": scheme}]
    browser = show(mixed / "report.html")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": chosen})
    try:
        history = [json.loads(line) for line in (mixed / "metrics.jsonl").read_text().splitlines()]
        box = charts(browser)[0]
        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", box)
        point = points(box, "[fill='#000000']")[1]
        mouse = ActionChains(browser)
        mouse.move_to_element(point).perform()
        told = WebDriverWait(browser, 10).until(
            lambda _: browser.find_element(By.CSS_SELECTOR, "#vg-tooltip-element.visible")
        )
        value = history[1]["beta_sh"]["main"]
        assert told.text.split() == [
            *(
                "line",
                "main",
                "step",
                "4",
                "β_sh",
                "(uniform",
                "labels)",
                f"{value:.3f}".rstrip("0"),
            ),
            *("range", f"{min(history[1]['per_client']['beta_sh']['main']):.3f}", "to"),
            f"{max(history[1]['per_client']['beta_sh']['main']):.3f}",
        ]
        require_only_boxes_scroll(browser)
        before = [x for x, *_ in rows(browser, 0, "main")]
        assert before == [2, 4, 6]
        name = browser.find_element(By.CSS_SELECTOR, "#curves .legend button")
        name.send_keys(Keys.ENTER)  # by the keyboard
        assert name.get_attribute("aria-pressed") == "false"
        assert rows(browser, 0, "main") == [] and len(rows(browser, 1, "aux_1")) == 3
        name.click()
        assert len(rows(browser, 0, "main")) == 3
        whole = browser.execute_async_script(SHOWN)
        middle = box.find_element(By.CSS_SELECTOR, "svg .background")
        mouse.click_and_hold(middle).move_by_offset(60, 0).release().perform()
        moved = browser.execute_async_script(SHOWN)
        assert moved[0] < whole[0] - 0.3 and moved[1] - moved[0] == pytest.approx(4)
        mouse.double_click(middle).perform()
        assert browser.execute_async_script(SHOWN) == whole == [2, 6]
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


SHOWN = "charts.ofPage.drawn[0].then(({ view }) => arguments[0](view.scale('x').domain()))"


def test_the_reader_orders_the_clients_of_class_maps(show, mixed):
    browser = show(mixed / "report.html")
    chooser = browser.find_element(By.ID, "class-order")
    orders = [json.loads(option.get_attribute("value")) for option in Select(chooser).options]
    assert orders[1] == [0, 1, 2, 3] and len(orders) == 3
    chooser.send_keys(Keys.HOME)
    for order in orders:  # by the keyboard
        assert json.loads(chooser.get_attribute("value")) == order
        for drawn in browser.find_elements(By.CSS_SELECTOR, "svg.class-map"):
            rows = drawn.find_elements(By.CSS_SELECTOR, ".row")
            down = sorted(rows, key=lambda row: row.location["y"])
            assert [int(row.get_attribute("data-client")) for row in down] == order
            assert [row.find_element(By.TAG_NAME, "text").text for row in down] == list(
                map(str, order)
            )
        chooser.send_keys(Keys.ARROW_DOWN)


def column(table, place):
    cells = table.find_elements(By.CSS_SELECTOR, f"tbody tr > :nth-child({place + 1})")
    return [cell.text for cell in cells]


def test_a_table_sorts_by_number_both_ways(show, folder):
    browser = show(folder / "mhd/seed_0/report.html")
    (table,) = (
        table
        for table in browser.find_elements(By.TAG_NAME, "table")
        if "Private data" in table.find_element(By.TAG_NAME, "caption").text
    )
    samples = table.find_elements(By.CSS_SELECTOR, "thead button")[1]
    before = [int(text.replace(",", "")) for text in column(table, 1)]
    assert min(map(len, column(table, 1))) > 0 and len(set(before)) > 1
    samples.click()
    assert [int(text.replace(",", "")) for text in column(table, 1)] == sorted(before)
    heading = samples.find_element(By.XPATH, "..")
    assert heading.get_attribute("aria-sort") == "ascending"
    samples.send_keys(Keys.ENTER)  # a keyboard serves as well
    assert [int(text.replace(",", "")) for text in column(table, 1)] == sorted(before)[::-1]
    assert heading.get_attribute("aria-sort") == "descending"


def test_bytes_sort_by_size_and_not_as_text(show, folder):
    browser = show(folder / "report.html")
    script = """
      const rows = ["9 kB", "10 MB", "–", "2 B"].map((text, i) => {
        const row = document.createElement("tr");
        const cell = row.insertCell();
        cell.textContent = text;
        cell.dataset.value = ["9e3", "1e7", "", "2"][i];
        return row;
      });
      const body = document.createElement("tbody");
      body.append(...rows);
      return [1, -1].map((sign) => {
        sortRows(body, 0, sign);
        return [...body.rows].map((row) => row.textContent);
      });
    """
    assert browser.execute_script(script) == [
        ["2 B", "9 kB", "10 MB", "–"],
        ["10 MB", "9 kB", "2 B", "–"],
    ]


def test_the_reader_chooses_a_client(show, folder):
    browser = show(folder / "mhd/seed_0/report.html")
    data = json.loads((folder / "mhd/seed_0/summary.json").read_text())
    label = browser.find_element(By.XPATH, "//label[text()='Client']")
    chooser = browser.find_element(By.ID, label.get_attribute("for"))
    view = browser.find_element(By.ID, "client-view")
    drawn = set()
    for client in range(3):
        Select(chooser).select_by_visible_text(str(client))
        assert view.find_element(By.TAG_NAME, "h3").text == f"Client {client}"
        table = view.find_element(By.TAG_NAME, "table")
        assert column(table, 1) == [str(n) for n in data["data"]["private_samples"][client]]
        known = data["per_client"][client]["per_class_accuracy"]["aux_2"]
        assert column(table, 4) == [f"{x:.3f}" for x in known]
        drawings = charts(browser, "#client-view")
        assert len(drawings) == 2 and all(drawing.size["width"] > 200 for drawing in drawings)
        drawn.add(drawings[0].get_attribute("aria-label"))
    assert len(drawn) == 3


def test_the_reader_chooses_a_baseline(show, folder):
    browser = show(folder / "report.html")
    chooser = Select(browser.find_element(By.ID, "baseline"))
    assert [option.text for option in chooser.options] == ["isolated", "mhd"]
    for baseline, other in (("mhd", "isolated"), ("isolated", "mhd")):
        chooser.select_by_visible_text(baseline)
        shown = [
            plot
            for plot in browser.find_elements(By.CSS_SELECTOR, "[data-baseline] svg")
            if plot.is_displayed()
        ]
        assert len(shown) == 2 and min(plot.size["width"] for plot in shown) > 200
        for plot in shown:
            assert f"minus that of {baseline}: {other}" in plot.get_attribute("aria-label")


def test_a_client_of_the_graph_tells_about_itself_by_keyboard(show, folder):
    browser = show(folder / "mhd/seed_0/report.html")
    said = browser.find_element(By.ID, "graph-said")
    nothing = said.text
    clients = browser.find_elements(By.CSS_SELECTOR, ".graph .client")
    assert len(clients) == 3
    for client in clients:
        browser.execute_script("arguments[0].focus()", client)
        assert said.text == client.get_attribute("aria-label") != nothing
        number = client.get_attribute("data-client")
        for curve in browser.find_elements(By.CSS_SELECTOR, ".graph .learned"):
            ends = (curve.get_attribute("data-from"), curve.get_attribute("data-to"))
            assert ("own" in curve.get_attribute("class")) == (number in ends)
    browser.execute_script("arguments[0].blur()", clients[-1])
    assert said.text == nothing


def looks(browser):
    """What the replay moves: cursors of the curves, fills of clients and of cells."""
    return browser.execute_script("""
      const each = (selector, name) =>
        [...document.querySelectorAll(selector)].map((one) => one.getAttribute(name));
      return [each("#curves .cursor_marks line", "transform"), each(".graph .knows", "fill"),
              each(".graph .learned", "stroke-width"), each(".class-map .cells rect", "fill")];
    """)


def test_one_slider_plays_the_training(show, folder):
    browser = show(folder / "mhd/seed_0/report.html")
    slider = browser.find_element(By.ID, "replay-step")
    said = browser.find_element(By.ID, "replay-said")
    at_first = looks(browser)
    assert said.text == "step 6 of 6" and browser.find_element(By.ID, "replay-play").is_displayed()
    slider.send_keys(Keys.HOME)
    assert said.text == "step 2 of 6"
    early = looks(browser)
    assert len(early[3]) == 2 * 3 * 10
    assert all(before != now for before, now in zip(at_first, early, strict=True))
    slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
    assert said.text == "step 6 of 6"
    cursors, *others = looks(browser)
    assert len(cursors) == 3 and cursors != early[0]
    assert others[0] == at_first[1] and others[2] == at_first[3]  # as the page began


def test_reduced_motion_leaves_the_slider_and_nothing_that_moves(show, folder):
    browser = show(folder / "mhd/seed_0/report.html")
    reduce = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": reduce})
    try:
        browser.refresh()
        assert not browser.find_element(By.ID, "replay-play").is_displayed()
        assert browser.find_element(By.ID, "replay-step").is_displayed()
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def contrast(browser, selector):
    """The contrast of an element's text with the page (WCAG 2)."""
    return browser.execute_script(
        """
      const light = (colour) => {
        const parts = colour.match(/[0-9.]+/g).slice(0, 3).map((x) => x / 255)
          .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4));
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
      };
      const one = light(getComputedStyle(document.querySelector(arguments[0])).color);
      const two = light(getComputedStyle(document.body).backgroundColor);
      return (Math.max(one, two) + 0.05) / (Math.min(one, two) + 0.05);
    """,
        selector,
    )


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read_by_day_and_by_night(show, folder, scheme):
    browser = show(folder / "report.html")
    chosen = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": chosen})
    try:
        for selector in ("h1", "caption", "figcaption", "td a"):
            assert contrast(browser, selector) >= 4.5
        ground = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (ground == "rgb(255, 255, 255)") == (scheme == "light")
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": []})


def test_print_shows_whole_tables(show, folder):
    browser = show(folder / "mhd/seed_0/report.html")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    try:
        size = {"width": 700, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)  # of A4, with margins
        rights = browser.execute_script(
            "return [...document.querySelectorAll('table')]"
            ".map((table) => table.getBoundingClientRect().right)"
        )
        assert max(rights) <= 700
    finally:
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
