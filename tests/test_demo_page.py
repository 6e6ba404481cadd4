"""The demo in a real browser, headless Chromium, as a visitor uses it."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest

from mri_ddpm import MRIDDPMPipeline, commands
from mri_ddpm.diffusion import make_noise_scheduler

pytestmark = pytest.mark.slow
pytest.importorskip("gradio", reason="the extra 'demo' is not installed")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
if CHROMIUM is None:
    pytest.skip("there is no Chromium (apt-get install chromium)", allow_module_level=True)

NAMES = ("glioma_tumor", "no_tumor")
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
)  # fmt: skip
PATIENCE_MS = 60_000


class Server:
    """``mri-ddpm demo`` in a process of its own."""

    def __init__(self, *arguments, cwd, **environment):
        code = "from mri_ddpm.commands import main; main()"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, "demo", *map(str, arguments)],
            cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **environment},
        )  # fmt: skip
        self.lines = []
        for line in self.process.stdout:
            self.lines.append(line)
            if line.startswith("open http"):
                break
        self.url = re.search(r"http://\S+", "".join(self.lines))[0]

    def end(self) -> str:
        """End it, and give all that it printed."""
        self.process.send_signal(signal.SIGTERM)
        self.lines += self.process.communicate(timeout=30)[0].splitlines(keepends=True)
        return "".join(self.lines)


def save(make_unet, folder, **config):
    MRIDDPMPipeline(make_unet(**config), make_noise_scheduler()).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    from conftest import build_unet

    folder = tmp_path_factory.mktemp("demo")
    save(build_unet, folder / "model", num_class_embeds=2, class_names=NAMES)
    running = Server("model", cwd=folder)
    running.folder = folder
    yield running
    assert "Traceback" not in running.end()


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        running = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


@pytest.fixture
def visit(browser):
    """Return a function that opens an address in a tab of a visitor who is new."""
    contexts = []

    def open_tab(url: str, width: int = 1200, height: int = 900):
        context = browser.new_context(viewport={"width": width, "height": height}, accept_downloads=True)
        context.set_default_timeout(PATIENCE_MS)
        contexts.append(context)
        page = context.new_page()
        page.asked = []
        page.on("request", lambda request: page.asked.append(request.url))
        page.goto(url)
        button(page, "Sample").wait_for()
        return page

    yield open_tab
    for context in contexts:
        context.close()


def button(page, name):
    return page.get_by_role("button", name=name, exact=True)


def set_number(page, label, value):
    """Into the field of a slider, as a keyboard does."""
    field = page.get_by_label(f"number input for {label}")
    field.fill(str(value))
    field.press("Enter")


def sample(page, count=2, steps=4):
    solver = page.get_by_role("button", name="Solver, steps and guidance")
    if not page.get_by_label("number input for Steps").is_visible():
        solver.click()
    set_number(page, "Steps", steps)
    set_number(page, "Number of images", count)
    button(page, "Sample").click()


def test_a_visitor_samples_and_saves_what_the_command_line_gives(server, visit, monkeypatch):
    page = visit(server.url)
    assert page.get_by_text("Synthetic. Not for diagnosis.").is_visible()
    sample(page)
    page.get_by_text("2 images", exact=True).wait_for()
    assert page.locator(".pictures img").count() == 2
    line = page.locator(".command code").inner_text()
    monkeypatch.chdir(server.folder)
    commands.main(shlex.split(line)[1:])
    for i, file in enumerate(("glioma_tumor-00000.png", "no_tumor-00001.png")):
        with page.expect_download() as download:
            page.locator(".pictures a").nth(i).click()
        assert download.value.suggested_filename == file
        with open(download.value.path(), "rb") as saved:
            assert saved.read() == (server.folder / "out" / file).read_bytes()
    page.get_by_label("DICOM").check()
    page.locator('.pictures a[download$=".dcm"]').first.wait_for()


def test_nothing_is_asked_of_any_other_machine(server, visit):
    page = visit(server.url)
    sample(page)
    page.get_by_text("2 images", exact=True).wait_for()
    assert len(page.asked) > 5
    assert [url for url in page.asked if not url.startswith((server.url, "data:", "blob:"))] == []


def test_the_slider_goes_from_noise_to_the_image(server, visit):
    page = visit(server.url)
    page.get_by_role("tab", name="Watch").click()
    button(page, "Sample one and watch").click()
    caption = page.locator(".way figcaption").first
    caption.wait_for()
    slider = page.get_by_label("range slider for Step", exact=True)
    slider.focus()
    slider.press("Home")
    page.get_by_text("x_t, t = 300").wait_for()
    noise = page.locator(".way img").first.get_attribute("src")
    slider.press("ArrowRight")
    page.get_by_text("x_t, t = 278").wait_for()
    slider.press("End")
    page.get_by_text("x_t, t = 0", exact=True).wait_for()
    pictures = [page.locator(".way img").nth(i).get_attribute("src") for i in (0, 1)]
    assert pictures[0] == pictures[1] != noise


def test_a_refusal_is_a_sentence_in_the_page(server, visit):
    page = visit(server.url)
    page.get_by_label("Seed").fill("")
    button(page, "Sample").click()
    page.get_by_text("the seed is empty; give a whole number, such as 0.").wait_for()


def idle(process, seconds=1.0) -> bool:
    """Whether a process computes next to nothing for a while."""
    before = process.cpu_times()
    time.sleep(seconds)
    after = process.cpu_times()
    return after.user + after.system - before.user - before.system < 0.25 * seconds


def wait_until_idle(server, seconds=40):
    process, begun = psutil.Process(server.process.pid), time.monotonic()
    while not idle(process):
        assert time.monotonic() - begun < seconds, "it still computes"


def test_stop_and_a_closed_tab_leave_nothing_running(server, visit):
    for leave in (lambda page: button(page, "Stop").click(), lambda page: page.close()):
        page = visit(server.url)
        sample(page, count=64, steps=300)
        page.locator(".progress progress").wait_for()
        leave(page)
        wait_until_idle(server)


def test_two_visitors_wait_for_one_another(server, visit):
    first, second = visit(server.url), visit(server.url)
    sample(first, count=8, steps=100)
    sample(second, count=3)
    for page, count in ((first, 8), (second, 3)):
        page.get_by_text(f"{count} images", exact=True).wait_for()
        assert page.locator(".pictures img").count() == count


def test_every_control_has_a_label_and_the_page_fits_a_telephone(server, visit):
    page = visit(server.url, width=390, height=844)
    sample(page, count=4)
    page.get_by_text("4 images", exact=True).wait_for()
    unlabelled = page.evaluate(
        """() => [...document.querySelectorAll('input, select, textarea, button, a')]
            .filter(e => e.offsetParent && !(e.labels?.length || e.ariaLabel || e.title || e.textContent.trim()))
            .map(e => e.outerHTML)"""
    )
    assert unlabelled == []
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.tagName") != "BODY"


def test_it_listens_on_this_machine_alone_and_leaves_no_files(make_unet, tmp_path):
    save(make_unet, tmp_path / "model")
    (tmp_path / "files").mkdir()
    running = Server("model", cwd=tmp_path, TMPDIR=str(tmp_path / "files"))
    process = psutil.Process(running.process.pid)
    addresses = {c.laddr.ip for c in process.net_connections() if c.status == psutil.CONN_LISTEN}
    assert addresses == {"127.0.0.1"}
    assert list((tmp_path / "files").glob("mri-ddpm-demo-*"))
    running.end()
    assert list((tmp_path / "files").glob("mri-ddpm-*")) == []


def test_a_port_that_is_taken_is_refused(server, make_unet, tmp_path, capsys):
    save(make_unet, tmp_path / "model")
    port = server.url.rsplit(":", 1)[1].strip("/")
    with pytest.raises(SystemExit) as end:
        commands.main(["demo", str(tmp_path / "model"), "--port", port])
    assert end.value.code == 2
    assert f"--port {port} cannot be used" in capsys.readouterr().err
