"""What axe-core finds serious in built pages, at two widths, light and dark.

    python tests/axe.py axe.min.js site report.html

Exit code 1 where there is a serious violation or an error in the browser's console.
"""

import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import product
from pathlib import Path
from urllib.parse import urlsplit

from selenium import webdriver

WIDTHS = {"desktop": 1300, "phone": 400}
SCHEMES = ("light", "dark")
SERIOUS = ("serious", "critical")
NOT_OURS = ("favicon.ico",)
RUN = "const done = arguments[0]; axe.run({resultTypes: ['violations']}).then(found => done(found.violations))"


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *args):
        pass


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """The folder's address: scripts of a site do not run from files."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


@contextmanager
def headless() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    with tempfile.TemporaryDirectory() as profile:
        switches = ["headless=new", "no-sandbox", "disable-gpu", "disable-background-networking", "disable-sync"]
        for switch in [*switches, f"user-data-dir={profile}"]:
            options.add_argument(f"--{switch}")
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
        browser.set_script_timeout(120)
        yield browser
        browser.quit()


def look(browser: webdriver.Chrome, address: str, width: int, scheme: str) -> None:
    """Open a page as a screen of that width and a reader of that preference see it, who has not been there before."""
    forget = {"origin": "{0.scheme}://{0.netloc}".format(urlsplit(address)), "storageTypes": "local_storage"}
    browser.execute_cdp_cmd("Storage.clearDataForOrigin", forget)
    media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
    metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    browser.get(address)


def violations(browser: webdriver.Chrome, axe: str) -> Iterator[str]:
    """One line for each element with a serious violation, and for each error of the console."""
    browser.execute_script(axe)
    for violation in browser.execute_async_script(RUN):
        if violation["impact"] in SERIOUS:
            for node in violation["nodes"]:
                yield f"{violation['id']}: {' '.join(map(str, node['target']))}: {node['html'][:120]}"
    for entry in browser.get_log("browser"):
        if entry["level"] == "SEVERE" and not any(name in entry["message"] for name in NOT_OURS):
            yield f"console: {entry['message'][:200]}"


def pages(given: Path) -> list[str]:
    """Addresses below the folder that is served."""
    return sorted(path.relative_to(given).as_posix() for path in given.rglob("*.html"))


def main(axe_file: str, *given: str) -> int:
    axe, found = Path(axe_file).read_text(encoding="utf-8"), 0
    with headless() as browser:
        for path in map(Path, given):
            folder, names = (path, pages(path)) if path.is_dir() else (path.parent, [path.name])
            with served(folder) as address:
                for name, (screen, width), scheme in product(names, WIDTHS.items(), SCHEMES):
                    look(browser, f"{address}/{name}", width, scheme)
                    lines = list(violations(browser, axe))
                    found += len(lines)
                    print(f"{name} {screen} {scheme}: {len(lines)}", *lines, sep="\n  ", flush=True)
    return int(found > 0)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
