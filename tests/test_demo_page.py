"""The demo in a real browser, headless Chromium, as a visitor uses it."""

import base64
import io
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time

import httpx
import numpy as np
import psutil
import pytest
from PIL import Image

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

    def end(self, by: int = signal.SIGTERM) -> str:
        """End it, and give all that it printed."""
        self.process.send_signal(by)
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


def put_in(page, name, file):
    with page.expect_file_chooser() as chooser:
        button(page, name).click()
    chooser.value.set_files(file)


def paint(page):
    """A stroke over the middle of the canvas."""
    canvas = page.locator("canvas").first
    canvas.scroll_into_view_if_needed()
    page.wait_for_timeout(1500)  # until the picture is drawn on it
    box = canvas.bounding_box()
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x - 40, y)
    page.mouse.down()
    page.mouse.move(x + 40, y, steps=8)
    page.mouse.up()
    page.wait_for_timeout(1000)  # it reaches the server a little later


def pixels(page) -> np.ndarray:
    """The first picture that is seen, uint8 (H, W)."""
    url = page.locator(".pictures:visible img").first.get_attribute("src")
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("L"))


def press_for_pictures(page, name):
    """Press a button, and wait until other pictures stand where those before it stood."""
    page.evaluate(
        "document.querySelectorAll('.pictures img').forEach(picture => picture.classList.add('before'))"
    )
    button(page, name).click()
    page.locator(".pictures:visible img:not(.before)").first.wait_for()
    page.locator(".pictures:visible .missing").first.wait_for(state="detached")


def test_a_visitor_paints_and_has_that_part_alone_redrawn(server, visit, tmp_path):
    scan = np.random.default_rng(0).integers(0, 256, (16, 16)).astype(np.uint8)
    Image.fromarray(scan).save(tmp_path / "scan.png")
    page = visit(server.url)
    page.get_by_role("tab", name="Edit").click()
    button(page, "Change the scan").click()
    page.get_by_text("there is no scan; put one in, or sample one.").wait_for()
    put_in(page, "Put in a scan", tmp_path / "scan.png")
    page.get_by_text("a scan, brought to 16×16 pixels").wait_for()
    button(page, "Change the scan").click()
    page.get_by_text("nothing is painted; paint over the part").wait_for()
    paint(page)
    page.get_by_label("Class").click()
    page.get_by_role("option", name="no_tumor").click()
    press_for_pictures(page, "Change the scan")
    assert page.get_by_text("no_tumor, seed 3", exact=True).is_visible()
    changed = pixels(page) != scan
    assert changed[7:9, 6:10].mean() > 0.5
    assert not changed[:4].any()
    assert not changed[12:].any()

    page.get_by_label("vary the whole scan").check()
    set_number(page, "Strength", 1)
    press_for_pictures(page, "Change the scan")
    assert (pixels(page) != scan)[:4].any()
    button(page, "Clear canvas").click()
    page.locator("canvas:visible").first.wait_for(state="detached")
    button(page, "Change the scan").click()
    page.get_by_text("there is no scan; put one in, or sample one.").nth(1).wait_for()


def test_broken_and_huge_uploads_are_refused_in_a_sentence(server, visit, tmp_path):
    page = visit(server.url)
    page.get_by_role("tab", name="Edit").click()
    (tmp_path / "text.png").write_text("no picture")
    put_in(page, "Put in a scan", tmp_path / "text.png")
    page.get_by_text(
        "text.png is not an image that Pillow can read; give an image file of one scan."
    ).wait_for()
    (tmp_path / "huge.png").write_bytes(bytes(21 * 2**20))
    put_in(page, "Put in a scan", tmp_path / "huge.png")
    page.get_by_text("exceed the maximum allowed size").wait_for()
    assert page.locator("canvas:visible").count() == 0


def test_a_mask_is_painted_put_in_and_removed(visit, make_unet, tmp_path):
    masked = {"in_channels": 4, "condition_names": ("seg",), "mask_labels": {"seg": ("core", "oedema")}}
    save(make_unet, tmp_path / "model", **masked)
    running = Server("model", cwd=tmp_path)
    try:
        page = visit(running.url)
        page.get_by_text("oedema", exact=True).wait_for()
        set_number(page, "Number of images", 1)
        found = []

        def sample_it():
            press_for_pictures(page, "Sample")
            given = "--condition" in page.locator(".command code").inner_text()
            found.append((given, pixels(page).tobytes()))

        sample_it()
        paint(page)
        sample_it()
        button(page, "Remove seg").click()
        page.wait_for_timeout(1500)
        sample_it()
        Image.fromarray(np.full((16, 16), 2, np.uint8)).save(tmp_path / "mask.png")
        put_in(page, "Put in seg", tmp_path / "mask.png")
        page.wait_for_timeout(1500)
        sample_it()
        assert [given for given, _ in found] == [False, True, False, True]
        assert found[0] == found[2]
        assert len({picture for _, picture in found}) == 3
    finally:
        assert "Traceback" not in running.end()


def test_ctrl_c_ends_it_with_a_tab_open_and_says_no_more(visit, make_unet, tmp_path):
    save(make_unet, tmp_path / "model")
    running = Server("model", cwd=tmp_path)
    visit(running.url)
    printed = running.end(signal.SIGINT)
    assert printed.splitlines()[-1].startswith(f"open {running.url}")
    assert running.process.returncode == 0


def test_ending_waits_for_uploads_and_leaves_no_file(make_unet, tmp_path):
    save(make_unet, tmp_path / "model")
    (tmp_path / "tmp").mkdir()
    running = Server("model", cwd=tmp_path, TMPDIR=str(tmp_path / "tmp"))
    sent = []

    def upload():
        for i in range(10_000):
            try:
                answer = httpx.post(
                    running.url.rstrip("/") + "/gradio_api/upload",
                    files={"files": (f"{i}.png", bytes(2**24))},
                )
            except httpx.TransportError:
                return
            sent.append(answer.status_code)

    visitors = [threading.Thread(target=upload) for _ in range(4)]
    for visitor in visitors:
        visitor.start()
    while len(sent) < 8:
        time.sleep(0.01)
    printed = running.end()
    for visitor in visitors:
        visitor.join()
    assert "Traceback" not in printed
    assert set(sent) == {200}
    assert list((tmp_path / "tmp").glob("mri-ddpm-demo-*")) == []


def test_the_keyboard_alone_is_enough_to_sample(server, visit):
    page = visit(server.url)
    focus = "document.activeElement"
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate(f"{focus}.textContent.trim() == 'Sample' && {focus}.role != 'tab'"):
            break
    page.keyboard.press("Enter")
    page.get_by_text("8 images", exact=True).wait_for()


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
